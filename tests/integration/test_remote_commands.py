"""The command line at an appliance elsewhere: over TLS, with a token, through the API alone."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.api.services import Services
from appliance.api.tls import fingerprint
from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from appliance.catalog.channel import CHANNEL
from appliance.catalog.job import JOB, RunKind
from appliance.catalog.job_runs import RunCause, RunEnd
from appliance.catalog.runs import RunOutcome
from appliance.cli.main import main
from appliance.cli.remote import REMOTE
from appliance.jobs.certificate_store import CertificateStore
from appliance.jobs.live_run import LiveRun
from appliance.service.operations import OperationEnd, OperationKind, OperationOrder
from tests.support.api_server import api_serving, make_token
from tests.support.small_backups import back_up_bytes

Command = Callable[..., Any]


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    (tmp_path / "appliance").mkdir()
    with api_serving(tmp_path / "appliance") as (services, port):
        (tmp_path / "token").write_text(
            make_token(services.catalog, "cli", Role.ADMINISTRATOR) + "\n"
        )
        monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "nothing here"))
        monkeypatch.setenv("HOLDFAST_APPLIANCE", f"https://127.0.0.1:{port}")
        monkeypatch.setenv("HOLDFAST_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("HOLDFAST_APPLIANCE_FINGERPRINT", fingerprint(tmp_path / "appliance"))
        yield services
    assert not (tmp_path / "nothing here").exists()


@pytest.fixture
def answer(services: Services, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*words, "--json"]) == code
        document = json.loads(capsys.readouterr().out)
        assert main([*words]) in (code, 1)  # what removes cannot do so twice
        return document

    return run


def test_points_are_listed_shown_and_forgotten(services: Services, answer: Command) -> None:
    """Oldest first, as here; nothing of this machine is touched."""
    points = [back_up_bytes(services.repository, bytes([n]) * 5000, "web").point_id for n in (1, 2)]
    assert sorted(each["point_id"] for each in answer("point", "list")) == sorted(points)
    assert answer("point", "list", "--vm", "db") == []
    assert answer("point", "show", points[0])["vm"] == "web"
    assert answer("point", "forget", points[0])[0]["state"] == "done"
    assert services.repository.points.ids() == [points[1]]
    assert answer("repo", "stats")["point_count"] == 1


def test_jobs_and_runs_are_those_of_the_appliance(services: Services, answer: Command) -> None:
    """A run that is asked for there waits there; it is shown and cancelled from here."""
    job = {"name": "nightly", "kind": "gc"}
    services.catalog.jobs.save([], [JOB.validate_python(job)])
    run = services.catalog.job_runs.add("nightly", RunKind.GC, RunCause.MANUAL)
    services.catalog.job_runs.begin(run.run_id)
    services.catalog.job_runs.end(run.run_id, RunEnd(outcome=RunOutcome.WARNING))
    assert answer("job", "list")[0]["latest_run"]["outcome"] == "warning"
    assert answer("job", "show", "nightly")["kind"] == "gc"
    assert answer("run", "list")[0]["run_id"] == run.run_id
    assert answer("run", "show", run.run_id)["outcome"] == "warning"
    started = answer("job", "run", "nightly")
    assert services.catalog.job_runs.get(started["run_id"]).outcome is None
    assert answer("run", "cancel", started["run_id"]) == {"cancelled": started["run_id"]}
    assert services.catalog.job_runs.get(started["run_id"]).outcome is RunOutcome.CANCELLED
    assert answer("job", "disable", "nightly")["done"] == "disable"
    assert not services.catalog.jobs.get("nightly").job.enabled
    assert "nightly" in answer("job", "export")["text"]
    assert answer("job", "remove", "nightly")["done"] == "remove"


def test_settings_and_sessions_are_listed(services: Services, answer: Command) -> None:
    """What has no more than a list."""
    channel = {"name": "log", "kind": "syslog", "server": "127.0.0.1", "transport": "udp"}
    services.catalog.notifications.add(CHANNEL.validate_python(channel), None)
    assert answer("notify", "list")[0]["name"] == "log"
    assert answer("notify", "test", "log") == {"tested": "log"}
    assert answer("notify", "remove", "log") == {"removed": "log"}
    assert answer("approval", "list")["require"] == "nothing"
    assert answer("instant", "list") == []
    assert answer("host", "list") == []
    assert answer("vm", "list")["vms"] == []


def _two_administrators(services: Services) -> None:
    for name in ("anna", "ben"):
        password = Secret.of_text("correct horse battery")
        services.catalog.accounts.create(name, password, Role.ADMINISTRATOR)


def test_a_job_is_created_and_a_file_of_jobs_compared_and_applied(
    services: Services, answer: Command, tmp_path: Path
) -> None:
    """As here: a policy of its own from the options; a dry run shows the difference only."""
    made = answer("job", "create", "nightly", "--vm", "web*", "--at", "22:00", "--keep-daily", "7")
    assert made["policy_fields"]["retention"]["keep_daily"] == 7
    assert services.catalog.jobs.get("nightly").job.policy == "nightly"
    file = tmp_path / "jobs.toml"
    file.write_text(answer("job", "export")["text"].replace("22:00", "23:00"))
    (change,) = answer("job", "apply", str(file), "--dry-run")["changed"]
    assert [each["field"] for each in change["fields"]] == ["schedule.at"]
    assert "22:00" in answer("job", "export")["text"]
    assert answer("job", "apply", str(file))["changed"] == [change]
    assert "23:00" in answer("job", "export")["text"]


def test_channels_are_added_and_a_second_administrator_required(
    services: Services, answer: Command, tmp_path: Path
) -> None:
    """The secret goes with the channel and is not told."""
    (tmp_path / "key").write_text("sesame-key\n")
    _two_administrators(services)
    secret = ("--secret-file", str(tmp_path / "key"))
    url = "https://hook.example.org/"
    added = answer("notify", "add", "hook", "--type", "webhook", "--url", url, *secret)
    assert added["has_secret"] and "sesame-key" not in json.dumps(added)
    assert answer("approval", "require", "second-administrator")["state"] == "done"
    assert services.catalog.approvals.guard() == "second-administrator"


def test_operations_are_listed_shown_and_cancelled(services: Services, answer: Command) -> None:
    """One that goes on there is ended from here; the exit code says how it ended."""

    def work(live: LiveRun) -> OperationEnd:
        live.begins("wait")
        live.context.cancel.wait(60)
        live.context.cancel.check()
        raise AssertionError("it was not cancelled")

    order = OperationOrder(kind=OperationKind.RESTORE, vm="web", host=None)
    run_id = services.recover.operations.begin(order, work)
    (listed,) = answer("operation", "list")
    assert (listed["run_id"], listed["outcome"]) == (run_id, None)
    assert answer("operation", "show", run_id)["vm"] == "web"
    assert answer("operation", "cancel", run_id) == {"cancelled": run_id}
    assert answer("operation", "show", run_id, "--wait", code=1)["outcome"] == "cancelled"


def test_what_is_asked_of_sessions_and_restores_reaches_the_api(
    services: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is refused there by what it names; what works only there is refused before."""
    for words, code in (
        (("instant", "start", "20260101T000000Z-00000000"), "repository.point-not-found"),
        (("restore", "vm", "20260101T000000Z-00000000"), "repository.point-not-found"),
        (("restore", "vm", "20260101T000000Z-00000000", "--in-place"), "point-not-found"),
        (("instant", "start", "--resume", "none"), "session"),
        (("instant", "finalise", "none"), "session"),
        (("instant", "discard", "none"), "session"),
    ):
        assert main([*words]) == 1
        assert code in capsys.readouterr().err, words
    for wrong in (
        ("instant", "start", "x", "--target", "local"),
        ("restore", "vm", "x", "--transport", "hot-add"),
    ):
        assert main([*wrong]) == 2
        assert "at the appliance itself only" in capsys.readouterr().err


def test_any_call_of_the_api_is_reachable(
    services: Services, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a query, with a body from a file, and as the answer comes."""
    _two_administrators(services)
    assert main(["api", "GET", "/api/v1/audit?limit=1"]) == 0
    assert len(json.loads(capsys.readouterr().out)) <= 1
    (tmp_path / "body").write_text(json.dumps({"require": "second-administrator"}))
    assert main(["api", "PUT", "approvals/guard", "--body", str(tmp_path / "body")]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "done"
    assert main(["api", "GET", "approvals/guard", "-o", str(tmp_path / "kept")]) == 0
    assert json.loads((tmp_path / "kept").read_bytes()) == {"require": "second-administrator"}
    assert main(["api", "GET", "nothing/there", "-o", str(tmp_path / "none")]) == 1
    assert not (tmp_path / "none").exists()
    for wrong in ("https://elsewhere/x", "//elsewhere/x"):
        assert main(["api", "GET", wrong]) == 2


def test_certificates_are_listed_and_shown(
    services: Services, answer: Command, tmp_path: Path
) -> None:
    """With the file itself, which can be checked offline."""
    CertificateStore(tmp_path / "appliance").rotate()
    (listed,) = answer("certificate", "list")
    assert (listed["kind"], listed["failure"]) == ("key-rotation", None)
    shown = answer("certificate", "show", str(listed["sequence"]))
    assert shown["file"] and shown["body"]


def test_errors_of_the_appliance_are_told_with_their_code(
    services: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if it had happened here: exit code 1, code and next step."""
    assert main(["job", "show", "none", "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"]["code"] == "appliance.refused"
    assert "job.not-found" in shown.err


@pytest.mark.parametrize("words", [("lab", "status"), ("repo", "check"), ("serve",)], ids=" ".join)
def test_a_command_that_needs_the_machine_says_so(
    services: Services, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Rather than do it here by mistake."""
    assert main([*words]) == 2
    assert "needs the appliance's own machine" in capsys.readouterr().err


def test_another_certificate_gets_no_token(
    services: Services, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither when the fingerprint differs, nor, without one, when no authority vouches."""
    for wrong in ("AA:" * 31 + "AA", None):
        if wrong:
            monkeypatch.setenv("HOLDFAST_APPLIANCE_FINGERPRINT", wrong)
        else:
            monkeypatch.delenv("HOLDFAST_APPLIANCE_FINGERPRINT")
        assert main(["host", "list", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "appliance.certificate"
    tokens = services.catalog.api_tokens.list()
    assert [token.used_at for token in tokens] == [None]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOLDFAST_APPLIANCE", "http://127.0.0.1:1"),
        ("HOLDFAST_APPLIANCE", "https://user:pw@127.0.0.1:1"),
        ("HOLDFAST_APPLIANCE", "https://127.0.0.1:1/path"),
        ("HOLDFAST_APPLIANCE_FINGERPRINT", "12:34"),
        ("HOLDFAST_TOKEN_FILE", "/nothing/here"),
    ],
)
def test_what_cannot_be_an_appliance_is_refused(
    services: Services, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Before anything is sent."""
    monkeypatch.setenv(name, value)
    assert main(["host", "list"]) == 2


def test_an_appliance_that_does_not_answer_is_named(
    services: Services, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody listens, or somebody who hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        monkeypatch.setenv("HOLDFAST_APPLIANCE", f"https://127.0.0.1:{port}")
        assert main(["host", "list", "--json"]) == 1
        thread.join()
    assert main(["host", "list", "--json"]) == 1
    assert capsys.readouterr().err.count("[appliance.unreachable]") == 2


def test_every_command_of_the_table_is_one_of_the_command_line() -> None:
    """The table names functions that subcommands run; none is there twice."""
    assert len(set(REMOTE.values())) == len(REMOTE)
