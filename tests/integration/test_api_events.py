"""Events and operations over the API: told as they happen, bounded, ended with the login."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.api.services import Services
from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from appliance.jobs.live_run import LiveRun
from appliance.service.operations import OperationEnd, OperationKind, OperationOrder
from tests.support.api_server import Client, api_serving, make_token

PASSWORD = "correct horse battery"
ORDER = OperationOrder(kind=OperationKind.RESTORE, vm="web", host=None, facts={"point_id": "p"})


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Services, int]]:
    with api_serving(tmp_path) as (services, port):
        yield services, port


@pytest.fixture
def services(served: tuple[Services, int]) -> Services:
    return served[0]


@pytest.fixture
def restorer(served: tuple[Services, int]) -> Client:
    services, port = served
    token = make_token(services.catalog, "r", Role.RESTORE_ONLY)
    return Client(port, token=token)


@pytest.fixture
def operator(served: tuple[Services, int]) -> Client:
    services, port = served
    token = make_token(services.catalog, "o", Role.OPERATOR)
    return Client(port, token=token)


def test_what_happens_to_a_run_is_told(operator: Client) -> None:
    """First to look at the whole, then each change, and only of the kinds asked for."""
    operator.api("POST", "/jobs", {"job": {"name": "gc", "kind": "gc"}})
    with operator.events("run") as events:
        assert next(events) == ("resync", {})
        run = operator.api("POST", "/jobs/gc/run").document
        kind, fields = next(events)
        assert (kind, fields["state"]) == ("run", "waiting")
        operator.api("POST", f"/runs/{run['run_id']}/cancel")
        kind, fields = next(events)
        assert (fields["run_id"], fields["outcome"]) == (run["run_id"], "cancelled")


def test_an_operation_shows_its_progress_and_its_result(
    services: Services, restorer: Client
) -> None:
    """While it goes on, and when it has ended; with what its work found worth saying."""
    go_on = threading.Event()
    note = Reason("test.note", "text", "step")

    def work(live: LiveRun) -> OperationEnd:
        live.begins("write disks")
        live.context.progress.expect(100)
        live.context.progress.advance(40)
        assert go_on.wait(60)
        return OperationEnd(result={"vm": "new"}, reasons=(note,))

    with restorer.events("operation,progress") as events:
        assert next(events)[0] == "resync"
        run_id = services.recover.operations.begin(ORDER, work)
        told = dict(next(events) for _ in range(2))
        assert set(told) == {"operation", "progress"}
        shown = restorer.api("GET", f"/operations/{run_id}").document
        assert shown["live"]["step"] == "write disks"
        assert (shown["live"]["done_bytes"], shown["outcome"]) == (40, None)
        assert shown["result"] == {"point_id": "p"}
        go_on.set()
        assert next(each for each in events if each[0] == "operation")[1]["state"] == "ended"
    shown = restorer.api("GET", f"/operations/{run_id}").document
    assert (shown["outcome"], shown["live"]) == ("warning", None)
    assert (shown["result"]["vm"], shown["result"]["point_id"]) == ("new", "p")
    assert [each["code"] for each in shown["result"]["reasons"]] == ["test.note"]
    (listed,) = restorer.api("GET", "/operations").document
    assert listed["run_id"] == run_id
    late = restorer.api("POST", f"/operations/{run_id}/cancel")
    assert (late.status, late.document["code"]) == (409, "run.ended")


def test_an_operation_is_cancelled_or_fails_in_one_way(
    services: Services, restorer: Client, operator: Client
) -> None:
    """Whatever its work raises, defects too; the code and the next step are kept."""

    def waits(live: LiveRun) -> OperationEnd:
        live.context.cancel.wait(60)
        live.context.cancel.check()
        raise AssertionError

    def refuses(live: LiveRun) -> OperationEnd:
        raise UsageError("no such network")

    def breaks(live: LiveRun) -> OperationEnd:
        raise ZeroDivisionError

    operations = services.recover.operations
    run_id = operations.begin(ORDER, waits)
    assert restorer.api("POST", f"/operations/{run_id}/cancel").status == 204
    for work in (refuses, breaks):
        operations.begin(ORDER, work)
    operations.stop()
    found = operator.api("GET", "/operations").document
    codes = {each["error_code"]: each for each in found}
    assert set(codes) == {"run.unexpected", "usage", "run.cancelled"}
    assert codes["usage"]["result"]["error"] == "no such network"
    refused = restorer.api("POST", "/restores", {"point": "none"})
    assert refused.status == 404


def test_only_so_many_operations_go_on_at_once(services: Services) -> None:
    """Another one is refused, and may be begun later."""
    go_on = threading.Event()

    def work(live: LiveRun) -> OperationEnd:
        assert go_on.wait(60)
        return OperationEnd(result={})

    operations = services.recover.operations
    for _ in range(16):
        operations.begin(ORDER, work)
    with pytest.raises(Exception, match="16 operations") as refused:
        operations.begin(ORDER, work)
    assert getattr(refused.value, "code", "") == "operation.too-many"
    go_on.set()


def test_a_backup_is_no_operation(services: Services, operator: Client) -> None:
    """Runs of other kinds are not shown as restores, nor cancelled as such."""
    run_id = services.repository.new_run_id()
    with services.catalog.run_locks.hold(run_id):
        services.catalog.runs.begin(run_id, kind="backup", vm="web")
    assert operator.api("GET", "/operations").document == []
    assert operator.api("POST", f"/operations/{run_id}/cancel").status == 404


def test_a_stream_keeps_no_login_alive(served: tuple[Services, int]) -> None:
    """Nor does a page that asks by itself: what nobody uses ends after its time."""
    services, port = served
    services.catalog.accounts.create("a", Secret.of_text(PASSWORD), Role.READ_ONLY)
    client = Client(port)
    client.log_in("a", PASSWORD)
    sessions = services.catalog.web_sessions
    calls: list[bool] = []
    original = sessions.find

    def find(secret: str, *, used: bool = True) -> object:
        calls.append(used)
        return original(secret, used=used)

    sessions.find = find  # type: ignore[method-assign, assignment]
    client.call("GET", "/runs", **{"X-Background": "1"})
    assert calls[0] is False
    with client.events():
        pass
    assert calls[-1] is False


def test_events_of_no_kind_are_refused(operator: Client) -> None:
    """Rather than never told."""
    assert operator.api("GET", "/events?kinds=weather").status == 422
