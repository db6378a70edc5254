"""Deletion that two administrators have to want: through the API, the console, and kills."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.api.services import Services
from appliance.base.errors import StorageError
from appliance.base.ids import RecoveryPointId
from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from appliance.catalog.approvals import ApprovalState, Guard
from appliance.catalog.catalog import Catalog
from appliance.cli.main import main
from appliance.repository.repository import Repository
from appliance.service.repository_deletion import ask_for_deletion
from tests.support.api_server import Client, api_serving, make_token
from tests.support.holdfast_program import serving
from tests.support.job_world import MovedClock
from tests.support.small_backups import back_up_bytes

PASSWORD = "correct horse battery"


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock(datetime(2026, 11, 21, 12, tzinfo=UTC))


@pytest.fixture
def served(tmp_path: Path, clock: MovedClock) -> Iterator[tuple[Services, int]]:
    with api_serving(tmp_path, clock) as (services, port):
        for name in ("anna", "bert"):
            services.catalog.accounts.create(name, Secret.of_text(PASSWORD), Role.ADMINISTRATOR)
        yield services, port


@pytest.fixture
def services(served: tuple[Services, int]) -> Services:
    return served[0]


@pytest.fixture
def anna(served: tuple[Services, int]) -> Client:
    return logged_in(served[1], "anna")


@pytest.fixture
def bert(served: tuple[Services, int]) -> Client:
    return logged_in(served[1], "bert")


def logged_in(port: int, name: str) -> Client:
    client = Client(port)
    assert client.log_in(name, PASSWORD).status == 204
    return client


def guarded(client: Client) -> None:
    answer = client.api("PUT", "/approvals/guard", {"require": "second-administrator"})
    assert answer.document["state"] == "done"


def test_without_a_guard_one_administrator_forgets_at_once(
    services: Services, anna: Client
) -> None:
    """As it always was."""
    point = back_up_bytes(services.repository, b"x" * 5000, "web").point_id
    answer = anna.api("DELETE", f"/points/{point}")
    assert (answer.status, answer.document["state"]) == (200, "done")
    assert not services.repository.points.ids()


def test_a_guarded_point_goes_when_a_second_administrator_approves(
    services: Services, anna: Client, bert: Client
) -> None:
    """Not before, not by who asked, not twice; all of it is in the audit log."""
    point = back_up_bytes(services.repository, b"x" * 5000, "web").point_id
    guarded(anna)
    asked = anna.api("DELETE", f"/points/{point}").document
    assert asked["state"] == "waits-for-approval"
    number = asked["approval"]["id"]
    assert anna.api("DELETE", f"/points/{point}").document["approval"]["id"] == number
    own = anna.api("POST", f"/approvals/{number}/approve")
    assert (own.status, own.document["code"]) == (403, "approval.own-request")
    assert services.repository.points.ids() == [point]
    assert bert.api("POST", f"/approvals/{number}/approve").document["state"] == "done"
    assert not services.repository.points.ids()
    again = bert.api("POST", f"/approvals/{number}/approve")
    assert (again.status, again.document["code"]) == (409, "approval.decided")
    entries = bert.api("GET", "/audit").document
    assert ("bert", "POST /approvals/{id}/approve", "ok") in {
        (each["actor"], each["action"], each["outcome"]) for each in entries
    }


def test_refused_and_expired_requests_delete_nothing(
    services: Services, anna: Client, bert: Client, clock: MovedClock
) -> None:
    """A request is good for a week, and its own author may take it back."""
    point = back_up_bytes(services.repository, b"x" * 5000, "web").point_id
    guarded(anna)
    for client in (bert, anna):
        number = anna.api("DELETE", f"/points/{point}").document["approval"]["id"]
        assert client.api("POST", f"/approvals/{number}/refuse").document["state"] == "refused"
    number = anna.api("DELETE", f"/points/{point}").document["approval"]["id"]
    clock.set(clock.now() + timedelta(days=7))
    bert.log_in("bert", PASSWORD)
    late = bert.api("POST", f"/approvals/{number}/approve")
    assert (late.status, late.document["code"]) == (409, "approval.decided")
    assert bert.api("GET", "/approvals").document[0]["state"] == "expired"
    assert services.repository.points.ids() == [point]


def test_one_administrator_alone_finds_no_way_around(
    services: Services, anna: Client, bert: Client
) -> None:
    """Not by a token, not by a new administrator, not by another's password or second factor, and
    not by lowering the guard."""
    point = back_up_bytes(services.repository, b"x" * 5000, "web").point_id
    guarded(anna)
    body = {"name": "mine", "role": "administrator"}
    token = Client(anna.port, token=anna.api("POST", "/tokens", body).document["token"])
    asked = token.api("DELETE", f"/points/{point}").document["approval"]
    assert asked["requested_by"] == "anna"
    nested = {"name": "nested", "role": "administrator"}
    second = Client(anna.port, token=token.api("POST", "/tokens", nested).document["token"])
    assert second.api("DELETE", f"/points/{point}").document["approval"]["id"] == asked["id"]
    for client in (token, second):
        assert client.api("POST", f"/approvals/{asked['id']}/approve").status == 403
    services.catalog.accounts.create("carl", Secret.of_text(PASSWORD), Role.OPERATOR)
    new = {"name": "puppet", "password": PASSWORD, "role": "administrator"}
    for refused in (
        anna.api("POST", "/accounts", new),
        anna.api("PATCH", "/accounts/carl", {"role": "administrator"}),
        anna.api("PATCH", "/accounts/bert", {"password": "another password"}),
        anna.api("DELETE", "/accounts/bert/totp"),
        token.api("PATCH", "/accounts/anna", {"password": "another password"}),
    ):
        assert (refused.status, refused.document["code"]) == (409, "approval.guarded")
    lowered = anna.api("PUT", "/approvals/guard", {"require": "nothing"}).document
    assert lowered["state"] == "waits-for-approval"
    assert anna.api("GET", "/approvals/guard").document["require"] == "second-administrator"
    number = lowered["approval"]["id"]
    assert anna.api("POST", f"/approvals/{number}/approve").status == 403
    assert bert.api("POST", f"/approvals/{number}/approve").status == 200
    assert anna.api("GET", "/approvals/guard").document["require"] == "nothing"
    assert services.repository.points.ids() == [point]


def test_the_guard_needs_two_administrators(services: Services, anna: Client) -> None:
    """With one alone nothing could ever be approved."""
    services.catalog.accounts.change("bert", disabled=True)
    answer = anna.api("PUT", "/approvals/guard", {"require": "second-administrator"})
    assert (answer.status, answer.document["code"]) == (409, "approval.too-few")


def test_the_database_itself_refuses_that_one_asks_and_approves(
    services: Services, anna: Client, tmp_path: Path
) -> None:
    """Whatever a defect of ours may try."""
    point = back_up_bytes(services.repository, b"x" * 5000, "web").point_id
    guarded(anna)
    anna.api("DELETE", f"/points/{point}")
    with (
        sqlite3.connect(tmp_path / "catalog.sqlite") as other,
        pytest.raises(sqlite3.IntegrityError),
    ):
        other.execute("UPDATE approvals SET state = 'approved', decided_by = 'anna'")
    other.close()


def test_an_approval_that_was_cut_short_is_carried_out_later(
    services: Services, anna: Client, bert: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails or the daemon dies in the middle: what is left goes at the next start."""
    points = [back_up_bytes(services.repository, bytes([n]) * 5000, f"vm{n}").id for n in range(3)]
    guarded(anna)
    number = services.deletion.forget(points, by="anna").approval
    assert number is not None
    whole, calls = services.repository.points.forget, iter(range(10))

    def failing(point: RecoveryPointId) -> None:
        if next(calls) == 1:
            raise StorageError("the disk is gone")
        whole(point)

    monkeypatch.setattr(services.repository.points, "forget", failing)
    assert bert.api("POST", f"/approvals/{number.id}/approve").status == 502
    assert services.catalog.approvals.get(number.id).state is ApprovalState.APPROVED
    assert len(services.repository.points.ids()) == 2
    services.deletion.resume()
    assert services.catalog.approvals.get(number.id).state is ApprovalState.DONE
    assert not services.repository.points.ids()


def test_what_cannot_be_carried_out_does_not_keep_the_daemon_from_starting(
    services: Services, anna: Client, bert: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VMs that run from their backup need it; the request stays approved, the others are done."""
    points = [back_up_bytes(services.repository, bytes([n]) * 5000, f"vm{n}").id for n in range(2)]
    guarded(anna)
    numbers = []
    for point in points:
        asked = services.deletion.forget([point], by="anna").approval
        assert asked is not None
        numbers.append(asked.id)
        services.catalog.approvals.decide(asked.id, ApprovalState.APPROVED, by="bert")
    whole = services.repository.points.forget

    def failing(point: RecoveryPointId) -> None:
        if point == points[0]:
            raise StorageError("the file system is read-only")
        whole(point)

    monkeypatch.setattr(services.repository.points, "forget", failing)
    services.deletion.resume()
    states = [services.catalog.approvals.get(number).state for number in numbers]
    assert states == [ApprovalState.APPROVED, ApprovalState.DONE]
    assert services.repository.points.ids() == [points[0]]


def test_two_administrators_stay_while_deletion_is_guarded(
    services: Services, anna: Client, bert: Client
) -> None:
    """One alone could neither delete nor lower the guard nor make a second one, for ever."""
    guarded(anna)
    for refused in (
        anna.api("DELETE", "/accounts/bert"),
        bert.api("DELETE", "/accounts/bert"),
        bert.api("PATCH", "/accounts/bert", {"disabled": True}),
        bert.api("PATCH", "/accounts/bert", {"role": "operator"}),
    ):
        assert (refused.status, refused.document["code"]) == (409, "approval.guarded")
    services.catalog.accounts.create("carl", Secret.of_text(PASSWORD), Role.ADMINISTRATOR)
    assert bert.api("PATCH", "/accounts/bert", {"role": "operator"}).status == 200
    assert anna.api("DELETE", "/accounts/bert").status == 204


def test_a_point_is_not_forgotten_while_it_is_not_known_what_a_session_runs_from(
    tmp_path: Path,
) -> None:
    """What its guest wrote may still be had, and is worth nothing without the point."""
    home = tmp_path / "home"
    Repository.create(home / "repository")
    with Repository.open(home / "repository") as repository:
        point = back_up_bytes(repository, b"x" * 5000, "web").point_id
    with Catalog.open(home) as catalog:
        token = make_token(catalog, "t", Role.ADMINISTRATOR)
    damaged = home / "sessions" / "0123abcd"
    damaged.mkdir(parents=True)
    (damaged / "session.json").write_text("{")
    ports = ["--port", "0", "--nfs-port", "0", "--portmap", "none", "--bind", "127.0.0.1"]
    with serving(home, "serve", *ports, "--home", home) as (_, served):
        client = Client(served["web"]["port"], token=token)
        answer = client.api("DELETE", f"/points/{point}")
        assert (answer.status, answer.document["code"]) == (502, "session.damaged")
    with Repository.open(home / "repository") as repository:
        assert repository.points.ids() == [point]


def test_the_console_asks_and_decides_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`point forget` and `prune` at a guarded appliance name an administrator and remove nothing;
    another one decides."""
    home, secret = tmp_path / "home", tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    Repository.create(home / "repository")
    with Repository.open(home / "repository") as repository:
        points = [back_up_bytes(repository, bytes([n]) * 5000, "web").point_id for n in range(3)]
    with Catalog.open(home) as catalog:
        for name in ("anna", "bert"):
            catalog.accounts.create(name, Secret.of_text(PASSWORD), Role.ADMINISTRATOR)
        catalog.approvals.set_guard(Guard.SECOND_ADMINISTRATOR)
    common = ["--home", str(home), "--json"]
    who = ["--password-file", str(secret), "--account"]

    def answer(*words: str) -> object:
        capsys.readouterr()
        assert main([*words, *common]) == 0
        return json.loads(capsys.readouterr().out)

    assert main(["point", "forget", points[0], *common]) == 2
    asked = answer("point", "forget", points[0], *who, "anna")
    assert isinstance(asked, dict) and asked["forgotten"] == []
    number = str(asked["approval"]["id"])
    pruned = answer("prune", "--keep-last", "1", *who, "anna")
    assert isinstance(pruned, dict) and len(pruned["approval"]["objects"]) == 2
    assert main(["approval", "decide", number, "approve", *who, "anna", *common]) == 1
    decided = answer("approval", "decide", number, "approve", *who, "bert")
    assert isinstance(decided, dict) and decided["state"] == "done"
    listed = answer("approval", "list")
    assert isinstance(listed, dict) and listed["require"] == "second-administrator"
    assert [each["state"] for each in listed["requests"]] == ["waiting", "done"]
    with Repository.open(home / "repository") as repository:
        assert set(repository.points.ids()) == set(points[1:])


def test_the_deletion_of_a_repository_is_approved_here_and_carried_out_on_the_machine(
    services: Services, anna: Client, bert: Client
) -> None:
    """The page says so; approving deletes nothing, for the daemon has the repository open."""
    point = back_up_bytes(services.repository, b"x" * 5000, "web").point_id
    guarded(anna)
    repository_id = services.repository.id.hex()
    number = ask_for_deletion(services.catalog, repository_id, by="anna").id
    text = bert.call("GET", "/approvals").body.decode()
    assert repository_id in text and "holdfast repo delete" in text
    approved = bert.api("POST", f"/approvals/{number}/approve").document
    assert (approved["kind"], approved["state"]) == ("delete-repository", "approved")
    assert services.repository.points.ids() == [point]
    assert services.catalog.approvals.guard() is Guard.SECOND_ADMINISTRATOR
