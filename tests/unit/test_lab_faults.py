"""The lab's fault switches fire as often as armed, where they match, and are counted."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lab.fault_control import BadCommandError, control
from lab.faults import FaultName, FaultSwitches


def test_a_switch_fires_as_often_as_it_was_armed() -> None:
    """`times` uses; then the place works again."""
    switches = FaultSwitches()
    switches.arm(FaultName.HTTP_500, 2)
    assert [switches.take(FaultName.HTTP_500) is not None for _ in range(3)] == [True, True, False]
    assert switches.fired(FaultName.HTTP_500) == 2


def test_a_switch_without_a_count_fires_until_disarmed() -> None:
    """times=None is a state of the lab, not an event."""
    switches = FaultSwitches()
    switches.arm(FaultName.SLOW_HOST, None, amount=0.5)
    for _ in range(5):
        fault = switches.take(FaultName.SLOW_HOST, host="esx1")
        assert fault is not None
        assert fault.amount == 0.5
    assert switches.disarm(FaultName.SLOW_HOST) == 1
    assert switches.take(FaultName.SLOW_HOST, host="esx1") is None


def test_match_fields_are_patterns_and_must_be_known_to_the_place() -> None:
    """A fault for one disk does not hit another, nor a place that has no disk."""
    switches = FaultSwitches()
    switches.arm(FaultName.CBT_RESET, 1, vm="vm-*", disk=2000)
    assert switches.take(FaultName.CBT_RESET, vm="vm-7", disk=2001) is None
    assert switches.take(FaultName.CBT_RESET, vm="vm-7") is None
    assert switches.take(FaultName.CBT_MISSING_LIST, vm="vm-7", disk=2000) is None
    assert switches.take(FaultName.CBT_RESET, vm="vm-7", disk=2000) is not None
    assert switches.armed() == []


def test_threads_share_out_exactly_what_was_armed() -> None:
    """Two threads never take the same use of a switch."""
    switches = FaultSwitches()
    switches.arm(FaultName.HTTP_503, 100)
    taken: list[int] = []

    def take_many() -> None:
        taken.append(sum(switches.take(FaultName.HTTP_503) is not None for _ in range(80)))

    threads = [threading.Thread(target=take_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 100


def test_a_waiter_sees_the_fault_fire() -> None:
    """A test can wait for its fault instead of sleeping."""
    switches = FaultSwitches()
    switches.arm(FaultName.SESSION_DROP)
    assert not switches.wait_fired(FaultName.SESSION_DROP, timeout_s=0)
    threading.Thread(target=switches.take, args=(FaultName.SESSION_DROP,)).start()
    assert switches.wait_fired(FaultName.SESSION_DROP, timeout_s=30)


def test_nonsense_is_refused() -> None:
    """A switch that could never fire is an error of the test, said at once."""
    switches = FaultSwitches()
    with pytest.raises(ValueError, match="arms nothing"):
        switches.arm(FaultName.HTTP_500, 0)
    with pytest.raises(ValueError, match="negative"):
        switches.arm(FaultName.SLOW_HOST, amount=-1)


def test_every_switch_says_what_it_does() -> None:
    """The names are the documentation: each has its text, values are distinct."""
    assert all(name.text for name in FaultName)
    assert len({name.value for name in FaultName}) == len(FaultName.__members__)


def test_commands_arm_list_and_disarm() -> None:
    """What the control socket passes on has the effect of the calls."""
    switches = FaultSwitches()
    arm = {"op": "arm", "name": "slow-host", "times": None, "amount": 0.5, "match": {"host": "e*"}}
    assert control(switches, arm) == {}
    fault = switches.take(FaultName.SLOW_HOST, host="esx1")
    assert fault is not None
    assert fault.amount == 0.5
    listed = control(switches, {"op": "list"})
    assert listed["armed"] == [
        {"name": "slow-host", "left": None, "amount": 0.5, "match": {"host": "e*"}}
    ]
    assert listed["fired"] == {"slow-host": 1}
    assert control(switches, {"op": "disarm", "name": None}) == {"disarmed": 1}


@pytest.mark.parametrize(
    "command",
    [
        "arm",
        {"op": "fly"},
        {"op": "arm", "name": "none"},
        {"op": "arm", "name": "http-500", "times": 0},
        {"op": "arm", "name": "http-500", "times": "1"},
        {"op": "arm", "name": "http-500", "amount": "x"},
        {"op": "arm", "name": "http-500", "match": {"times": "3"}},
        {"op": "arm", "name": "http-500", "match": []},
        {"op": "disarm", "name": "none"},
    ],
)
def test_a_wrong_command_is_refused(command: object) -> None:
    """And arms nothing."""
    switches = FaultSwitches()
    with pytest.raises(BadCommandError):
        control(switches, command)
    assert switches.armed() == []


def test_every_switch_is_asked_for_somewhere() -> None:
    """A name that nobody takes would arm nothing and let a test pass for nothing."""
    root = Path(__file__).parents[2] / "lab"
    others = [path for path in root.rglob("*.py") if path.name != "faults.py"]
    source = "\n".join(path.read_text() for path in others)
    assert [name for name in FaultName.__members__ if f"FaultName.{name}" not in source] == []
