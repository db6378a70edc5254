"""Notifications to real servers on loopback: over real TLS, after failures, and after a restart."""

from __future__ import annotations

import email
import email.policy
import hashlib
import hmac
import json
import socket
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.reasons import Reason
from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from appliance.catalog.catalog import Catalog
from appliance.catalog.channel import CHANNEL, Channel
from appliance.catalog.errors import SecretDamagedError
from appliance.catalog.job import JOB, RunKind
from appliance.catalog.job_runs import RunCause, RunEnd
from appliance.catalog.notifications import Delivery
from appliance.catalog.runs import RunOutcome
from appliance.cli.main import main
from appliance.repository.repository import Repository
from appliance.service.notify.post import Post
from tests.support.api_server import Client, make_token
from tests.support.holdfast_program import serving
from tests.support.job_world import MovedClock
from tests.support.notify_servers import (
    PASSWORD,
    USER,
    Authority,
    authority_in,
    hook_server,
    mail_server,
    syslog_stream,
    syslog_udp,
)

KEY = Secret.of_text("a key that both sides know")
START = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority_in(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock(START)


@pytest.fixture
def catalog(tmp_path: Path, clock: MovedClock) -> Iterator[Catalog]:
    with Catalog.open(tmp_path, clock=clock) as catalog:
        yield catalog


def mail_channel(authority: Authority, port: int, **more: Any) -> Channel:
    return CHANNEL.validate_python(
        {
            "name": "mail",
            "kind": "email",
            "server": "localhost",
            "port": port,
            "sender": "holdfast@example.org",
            "recipients": ["admin@example.org", "second@example.org"],
            "ca_pem": authority.pem,
        }
        | more
    )


def hook_channel(authority: Authority, port: int, **more: Any) -> Channel:
    url = f"https://127.0.0.1:{port}/in?team=backup"
    fields = {"name": "hook", "kind": "webhook", "url": url, "ca_pem": authority.pem}
    return CHANNEL.validate_python(fields | more)


def ended(catalog: Catalog, outcome: RunOutcome, **more: Any) -> None:
    run = catalog.job_runs.add("nightly", more.pop("kind", RunKind.BACKUP), RunCause.SCHEDULE)
    catalog.job_runs.begin(run.run_id)
    catalog.job_runs.end(run.run_id, RunEnd(outcome=outcome, **more))


def two_of_fourteen(catalog: Catalog) -> None:
    vms = [
        {"vm": f"vm{n}", "outcome": "success", "error": None, "point_id": "p"} for n in range(12)
    ]
    vms += [
        {"vm": name, "outcome": "failed", "error": {"code": "x.stuck", "message": "snapshot stuck"}}
        for name in ("db01", "db02\r\nBcc: victim@example.org")
    ]
    result = {"vm_count": 14, "failed_vm_count": 2, "vms": vms, "hosts_failed": []}
    ended(catalog, RunOutcome.FAILED, error_code="job.vms-failed", error="2 of 14", result=result)


@pytest.mark.parametrize("implicit_tls", [False, True], ids=["starttls", "tls"])
def test_a_failed_job_is_an_e_mail_whose_subject_says_what_happened(
    catalog: Catalog, authority: Authority, implicit_tls: bool
) -> None:
    """Encrypted, logged in, to all recipients; what a VM is called forges no header."""
    with mail_server(authority, implicit_tls=implicit_tls, login=True) as server:
        security = "tls" if implicit_tls else "starttls"
        channel = mail_channel(authority, server.port, security=security, user=USER)
        catalog.notifications.add(channel, Secret.of_text(PASSWORD))
        two_of_fourteen(catalog)
        Post(catalog).work()
    (envelope,) = server.mails
    assert envelope.rcpt_tos == ["admin@example.org", "second@example.org"]
    assert isinstance(envelope.content, bytes)
    mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert mail["Subject"] == "Holdfast: job nightly failed: 2 of 14 VMs; db01: snapshot stuck"
    assert mail["Bcc"] is None
    assert "- db02 Bcc: victim@example.org: failed: [x.stuck] snapshot stuck" in mail.get_content()
    assert catalog.notifications.recent()[0].state is Delivery.SENT


def test_a_webhook_is_json_that_its_receiver_can_check(
    catalog: Catalog, authority: Authority
) -> None:
    """The signature is HMAC-SHA256 over time and body under the shared secret."""
    with hook_server(authority) as server:
        catalog.notifications.add(hook_channel(authority, server.port), KEY)
        reason = Reason("cbt.reset", "change tracking was reset", "nothing")
        ended(catalog, RunOutcome.WARNING, reasons=(reason,))
        Post(catalog).work()
    ((path, headers, body),) = server.requests
    assert path == "/in?team=backup"
    signed = headers["X-Holdfast-Timestamp"].encode() + b"." + body
    expected = hmac.new(KEY.reveal(), signed, hashlib.sha256).hexdigest()
    assert headers["X-Holdfast-Signature"] == f"sha256={expected}"
    document = json.loads(body)
    assert document["subject"] == (
        "Holdfast: job nightly ended with warnings: change tracking was reset"
    )
    assert document["facts"]["outcome"] == "warning"


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
def test_syslog_gets_one_line_with_its_facts(
    catalog: Catalog, authority: Authority, transport: str
) -> None:
    """RFC 5424 by all three transports; streams count their octets."""
    fields = {"name": "log", "kind": "syslog", "server": "127.0.0.1", "transport": transport}
    if transport == "udp":
        with syslog_udp() as (port, receiver):
            catalog.notifications.add(CHANNEL.validate_python(fields | {"port": port}), None)
            two_of_fourteen(catalog)
            Post(catalog).work()
            line = receiver.recv(65536).decode()
    else:
        trusted = authority if transport == "tls" else None
        with syslog_stream(trusted) as (port, arrived):
            more = {"port": port, "ca_pem": authority.pem if trusted else None}
            catalog.notifications.add(CHANNEL.validate_python(fields | more), None)
            two_of_fourteen(catalog)
            Post(catalog).work()
            count, _, raw = arrived.get(timeout=10).partition(b" ")
            assert int(count) == len(raw)
            line = raw.decode()
    assert line.startswith("<131>1 2026-11-21T12:00:00Z ")
    assert ' run [holdfast@32473 job="nightly" kind="backup" ' in line
    assert line.endswith("Holdfast: job nightly failed: 2 of 14 VMs; db01: snapshot stuck")


def test_a_server_that_is_not_trusted_gets_nothing(
    catalog: Catalog, authority: Authority, tmp_path: Path
) -> None:
    """Certificates are verified by every channel that has one: authority and name."""
    other = authority_in(tmp_path / "other")
    fields = {"name": "log", "kind": "syslog", "server": "127.0.0.1", "ca_pem": other.pem}
    with (
        mail_server(authority) as mails,
        hook_server(authority) as hooks,
        syslog_stream(authority) as (port, arrived),
    ):
        catalog.notifications.add(mail_channel(other, mails.port), None)
        catalog.notifications.add(hook_channel(other, hooks.port), KEY)
        catalog.notifications.add(CHANNEL.validate_python(fields | {"port": port}), None)
        two_of_fourteen(catalog)
        Post(catalog).work()
    assert [each.error_code for each in catalog.notifications.recent()] == [
        "notify.certificate"
    ] * 3
    assert (mails.mails, hooks.requests, arrived.empty()) == ([], [], True)


def refused_login(authority: Authority, catalog: Catalog) -> None:
    with mail_server(authority, login=True) as server:
        channel = mail_channel(authority, server.port, user=USER)
        catalog.notifications.add(channel, Secret.of_text("wrong"))
        Post(catalog).test("mail")


def refused_mail(authority: Authority, catalog: Catalog) -> None:
    with mail_server(authority) as server:
        server.answer = "554 no thanks"
        catalog.notifications.add(mail_channel(authority, server.port), None)
        Post(catalog).test("mail")


def busy_mail(authority: Authority, catalog: Catalog) -> None:
    with mail_server(authority) as server:
        server.answer = "452 disk full"
        catalog.notifications.add(mail_channel(authority, server.port), None)
        Post(catalog).test("mail")


def redirected_hook(authority: Authority, catalog: Catalog) -> None:
    with hook_server(authority) as server:
        server.statuses = [302]
        catalog.notifications.add(hook_channel(authority, server.port), KEY)
        Post(catalog).test("hook")


def nobody_there(authority: Authority, catalog: Catalog) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    catalog.notifications.add(hook_channel(authority, port), KEY)
    Post(catalog).test("hook")


@pytest.mark.parametrize(
    ("attempt", "code"),
    [
        (refused_login, "notify.login"),
        (refused_mail, "notify.refused"),
        (busy_mail, "notify.busy"),
        (redirected_hook, "notify.refused"),
        (nobody_there, "notify.unreachable"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_failure_has_its_reason(
    catalog: Catalog,
    authority: Authority,
    attempt: Callable[[Authority, Catalog], None],
    code: str,
) -> None:
    """A test of a channel fails with a typed error that says where; no secret is in it."""
    with pytest.raises(ApplianceError) as caught:
        attempt(authority, catalog)
    assert caught.value.code == code
    assert "127.0.0.1" in str(caught.value) or "localhost" in str(caught.value)
    assert "wrong" not in str(caught.value) and KEY.reveal().decode() not in str(caught.value)


def test_a_delivery_is_tried_again_later_and_later_and_then_given_up(
    catalog: Catalog, authority: Authority, clock: MovedClock
) -> None:
    """A receiver that comes back gets it; one that stays away for a day does not fill the disk."""
    with hook_server(authority) as server:
        catalog.notifications.add(hook_channel(authority, server.port), KEY)
        server.statuses = [503, 503]
        two_of_fourteen(catalog)
        post = Post(catalog)
        for _ in range(4):
            post.work()
            clock.set(clock.now() + timedelta(minutes=3))
        assert len(server.requests) == 3
        assert catalog.notifications.recent()[0].state is Delivery.SENT
        server.statuses = [503] * 100
        two_of_fourteen(catalog)
        for _ in range(200):
            post.work()
            clock.set(clock.now() + timedelta(minutes=15))
    given_up = catalog.notifications.recent()[0]
    assert (given_up.state, given_up.error_code) == (Delivery.GIVEN_UP, "notify.busy")
    assert given_up.attempts == 11


def test_nothing_is_lost_when_the_daemon_is_killed(
    tmp_path: Path, authority: Authority, clock: MovedClock
) -> None:
    """Killed between a run's end and its message, or with a message waiting: the next start sends
    each once."""
    with hook_server(authority) as server:
        with Catalog.open(tmp_path, clock=clock) as first:
            first.notifications.add(hook_channel(authority, server.port), KEY)
            server.statuses = [503]
            two_of_fourteen(first)
            Post(first).work()
            two_of_fourteen(first)
        clock.set(clock.now() + timedelta(minutes=5))
        with Catalog.open(tmp_path, clock=clock) as second:
            Post(second).work()
            Post(second).work()
            states = [each.state for each in second.notifications.recent()]
    assert states == [Delivery.SENT] * 2
    assert len(server.requests) == 3


def test_what_is_signed_is_the_time_of_the_attempt(
    catalog: Catalog, authority: Authority, clock: MovedClock
) -> None:
    """A receiver refuses what is old, as the documents ask of it; a delivery that is tried again
    hours after the run must not look like a repeated one."""
    with hook_server(authority) as server:
        catalog.notifications.add(hook_channel(authority, server.port), KEY)
        server.statuses = [503]
        two_of_fourteen(catalog)
        post = Post(catalog)
        post.work()
        clock.set(START + timedelta(hours=6))
        post.work()
    stamps = [int(headers["X-Holdfast-Timestamp"]) for _, headers, _ in server.requests]
    assert stamps == [int(START.timestamp()), int(START.timestamp()) + 6 * 3600]
    (told,) = {json.loads(body)["at"] for _, _, body in server.requests}
    assert datetime.fromisoformat(told) == START


def test_a_channel_whose_server_is_away_keeps_no_other_waiting(
    catalog: Catalog, authority: Authority
) -> None:
    """However much waits for it."""
    gone = "https://127.0.0.1:1/"
    with hook_server(authority) as server:
        catalog.notifications.add(hook_channel(authority, 1, name="away", url=gone), KEY)
        for number in range(250):
            ended(catalog, RunOutcome.FAILED, error_code=f"x.{number}")
        post = Post(catalog)
        post.work()
        catalog.notifications.add(hook_channel(authority, server.port), KEY)
        two_of_fourteen(catalog)
        post.work()
        assert len(server.requests) == 1


def test_a_channel_is_told_of_what_it_asked_for(catalog: Catalog, authority: Authority) -> None:
    """Recovery is its own occasion; success is silence unless asked for."""
    with hook_server(authority) as server:
        some = hook_channel(authority, server.port, occasions=["recovered"])
        every = hook_channel(authority, server.port, name="all", occasions=["failed", "success"])
        catalog.notifications.add(some, KEY)
        catalog.notifications.add(every, KEY)
        ends = (
            RunOutcome.SUCCESS, RunOutcome.FAILED, RunOutcome.CANCELLED,
            RunOutcome.SUCCESS, RunOutcome.SUCCESS,
        )  # fmt: skip
        for outcome in ends:
            ended(catalog, outcome)
        Post(catalog).work()
    told = [(each.channel, each.message.subject) for each in catalog.notifications.recent()]
    assert list(reversed(told)) == [
        ("all", "Holdfast: job nightly ended well"),
        ("all", "Holdfast: job nightly failed: no reason was recorded"),
        ("all", "Holdfast: job nightly works again"),
        ("hook", "Holdfast: job nightly works again"),
        ("all", "Holdfast: job nightly ended well"),
    ]


def test_a_digest_comes_once_a_day_at_its_local_time(
    catalog: Catalog, authority: Authority, clock: MovedClock
) -> None:
    """It tells of what ended since the one before, also of a day on which the daemon was off."""
    with hook_server(authority) as server:
        channel = hook_channel(
            authority, server.port, occasions=[], digest_at="07:00", time_zone="Europe/Berlin"
        )
        catalog.notifications.add(channel, KEY)
        clock.set(START + timedelta(seconds=1))
        post = Post(catalog, unprotected=lambda: ("web01",))
        two_of_fourteen(catalog)
        ended(catalog, RunOutcome.SUCCESS)
        for moment in (START + timedelta(hours=17, minutes=59), START + timedelta(hours=18)):
            clock.set(moment)  # 06:59 and 07:00 in Berlin
            post.work()
            post.work()
        clock.set(START + timedelta(days=3))
        post.work()
    subjects = [json.loads(body)["subject"] for _, _, body in server.requests]
    assert subjects == [
        "Holdfast: 2 runs, 1 failed, 1 VMs without a recent recovery point",
        "Holdfast: 0 runs, 1 VMs without a recent recovery point",
    ]
    assert "db01" in json.loads(server.requests[0][2])["text"]


def test_a_digest_of_a_busy_day_leaves_no_failure_out(
    catalog: Catalog, authority: Authority, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that run every few minutes make more runs than there is room for; all are counted."""
    monkeypatch.setattr("appliance.service.notify.post._DIGEST_RUNS_MAX", 3)
    with hook_server(authority) as server:
        catalog.notifications.add(
            hook_channel(authority, server.port, occasions=[], digest_at="07:00"), KEY
        )
        clock.set(START + timedelta(minutes=1))
        ended(catalog, RunOutcome.FAILED, error_code="x.first", error="the first of the day")
        for minute in range(2, 8):
            clock.set(START + timedelta(minutes=minute))
            ended(catalog, RunOutcome.SUCCESS)
        clock.set(START + timedelta(days=1))
        Post(catalog, unprotected=tuple).work()
    ((_, _, body),) = server.requests
    assert json.loads(body)["subject"] == "Holdfast: 7 runs, 1 failed"
    assert "the first of the day" in json.loads(body)["text"]


def test_a_night_on_which_the_clock_is_set_back_has_no_digest_more(
    catalog: Catalog, authority: Authority, clock: MovedClock
) -> None:
    """Yesterday's was 25 hours before today's: at midnight none is due."""
    with hook_server(authority) as server:
        clock.set(datetime(2026, 10, 23, 12, tzinfo=UTC))
        catalog.notifications.add(
            hook_channel(
                authority, server.port, occasions=[], digest_at="07:00", time_zone="Europe/Berlin"
            ),
            KEY,
        )
        post = Post(catalog, unprotected=tuple)
        for hour in range(96):
            clock.set(datetime(2026, 10, 23, 13, tzinfo=UTC) + timedelta(hours=hour))
            post.work()
    ends = [datetime.fromisoformat(json.loads(body)["at"]) for _, _, body in server.requests]
    assert [f"{end:%d %H}" for end in ends] == ["24 05", "25 06", "26 06", "27 06"]


def test_a_secret_opens_for_its_own_server_only(
    catalog: Catalog, authority: Authority, tmp_path: Path
) -> None:
    """Somebody who can write to the catalog cannot have the password sent elsewhere."""
    catalog.notifications.add(mail_channel(authority, 25, user=USER), Secret.of_text(PASSWORD))
    with sqlite3.connect(tmp_path / "catalog.sqlite") as other:
        (sealed,) = other.execute("SELECT sealed_secret FROM channels").fetchone()
        assert PASSWORD.encode() not in sealed
        other.execute(
            "UPDATE channels SET document = replace(document, 'localhost', 'evil.example')"
        )
    other.close()
    with pytest.raises(SecretDamagedError):
        Post(catalog).test("mail")


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "webhook", "url": "http://example.org/"},
        {"kind": "webhook", "url": "https://user:pw@example.org/"},
        {"kind": "webhook", "url": "https://example.org/\r\nX: y"},
        {"kind": "email", "server": "a b", "sender": "a@b.c", "recipients": ["a@b.c"]},
        {"kind": "email", "server": "mx", "sender": "a@b.c\nBcc: x@y.z", "recipients": ["a@b.c"]},
        {"kind": "email", "server": "mx", "sender": "a@b.c", "recipients": []},
        {"kind": "syslog", "server": "log", "ca_pem": "not PEM"},
        {"kind": "syslog", "server": "log", "digest_at": "25:00"},
    ],
)
def test_a_channel_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    """Plain http, forged headers, empty lists, broken certificates: a clear error each."""
    with pytest.raises(ValueError, match=r"."):
        CHANNEL.validate_python({"name": "x"} | fields)


def test_secrets_go_with_what_they_are_for(catalog: Catalog, authority: Authority) -> None:
    """A webhook is always signed; user and password of a mail server go together."""
    for channel, secret in (
        (hook_channel(authority, 443), None),
        (mail_channel(authority, 25), KEY),
        (mail_channel(authority, 25, user=USER), None),
    ):
        with pytest.raises(UsageError):
            catalog.notifications.add(channel, secret)


def test_the_command_line_adds_tests_lists_and_removes_a_channel(
    tmp_path: Path, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    """The secret comes from a file; the list shows the last delivery, and never the secret."""
    (tmp_path / "secret").write_text("a key of both sides\n")
    common = ["--home", str(tmp_path / "home"), "--json"]
    with hook_server(authority) as server:
        adding = ["notify", "add", "hook", "--type", "webhook", "--on", "failed", *common]
        adding += ["--secret-file", str(tmp_path / "secret")]
        adding += ["--ca-file", str(authority.folder / "ca-cert.pem")]
        assert main([*adding, "--url", f"http://127.0.0.1:{server.port}/"]) == 2
        assert main([*adding, "--server", "mx", "--url", f"https://127.0.0.1:{server.port}/"]) == 2
        assert main([*adding, "--url", f"https://127.0.0.1:{server.port}/"]) == 0
        assert main(["notify", "test", "hook", *common]) == 0
    assert json.loads(server.requests[0][2])["event"] == "test"
    capsys.readouterr()
    assert main(["notify", "list", *common]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)[0]["occasions"] == ["failed"]
    assert "a key of both sides" not in text
    assert main(["notify", "remove", "hook", *common]) == 0
    assert main(["notify", "remove", "hook", *common]) == 1


def test_the_daemon_tells_of_a_run_that_ended(tmp_path: Path, authority: Authority) -> None:
    """From the end of a run to the receiver, with nobody asking for it."""
    Repository.create(tmp_path / "repository")
    serve = ("serve", "--bind", "127.0.0.1", "--port", "0", "--nfs-port", "0", "--portmap", "none")
    with hook_server(authority) as server:
        with Catalog.open(tmp_path) as catalog:
            catalog.jobs.save([], [JOB.validate_python({"name": "tidy", "kind": "gc"})])
            channel = hook_channel(authority, server.port, occasions=["success"])
            catalog.notifications.add(channel, KEY)
            token = make_token(catalog, "t", Role.OPERATOR)
        with serving(tmp_path, *serve) as (_, document):
            client = Client(document["web"]["port"], token=token)
            assert client.api("POST", "/jobs/tidy/run").status == 200
            assert server.arrived.wait(timeout=60)
    ((_, _, body),) = server.requests
    assert json.loads(body)["subject"] == "Holdfast: gc of job tidy ended well"
