"""The gate that hands out places of hosts and datastores to parallel backups."""

from __future__ import annotations

import threading

import pytest

from appliance.base.errors import CancelledError
from appliance.base.fair_gate import FairGate
from appliance.base.run_context import CancelToken


def _enter_in_thread(gate: FairGate, thing: str, entered: list[str], name: str) -> threading.Thread:
    def enter() -> None:
        with gate.hold({("datastore", thing)}, CancelToken()):
            entered.append(name)

    thread = threading.Thread(target=enter)
    thread.start()
    return thread


def _waiters(gate: FairGate) -> int:
    return len(gate._waiting)


def test_who_waits_for_another_thing_is_not_held_up() -> None:
    """A busy datastore keeps nobody from an idle one."""
    gate = FairGate({"datastore": 1})
    entered: list[str] = []
    with gate.hold({("datastore", "busy")}, CancelToken()):
        blocked = _enter_in_thread(gate, "busy", entered, "blocked")
        free = _enter_in_thread(gate, "idle", entered, "free")
        free.join(30)
        assert entered == ["free"]
    blocked.join(30)
    assert entered == ["free", "blocked"]


def test_a_request_for_several_things_is_not_starved() -> None:
    """Later requests for one of its things wait behind it, even if they could go."""
    gate = FairGate({"host": 1, "datastore": 1})
    entered: list[str] = []

    def both() -> None:
        with gate.hold({("host", "h"), ("datastore", "d")}, CancelToken()):
            entered.append("both")

    with gate.hold({("host", "h")}, CancelToken()):
        first = threading.Thread(target=both)
        first.start()
        while _waiters(gate) < 1:
            pass
        second = _enter_in_thread(gate, "d", entered, "later")
        while _waiters(gate) < 2:
            pass
        assert entered == []
    first.join(30)
    second.join(30)
    assert entered == ["both", "later"]


def test_a_cancelled_request_leaves_the_line() -> None:
    """It raises, and those behind it are not held up by it."""
    gate = FairGate({"datastore": 1})
    cancel = CancelToken()
    cancel.cancel()
    with gate.hold({("datastore", "d")}, CancelToken()):
        with pytest.raises(CancelledError), gate.hold({("datastore", "d")}, cancel):
            pass
        assert _waiters(gate) == 0
    with gate.hold({("datastore", "d")}, CancelToken()):
        assert gate.taken(("datastore", "d")) == 1
    assert gate.taken(("datastore", "d")) == 0
