"""The loop that the scheduler, the notifications, the live feed and the patrols run in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from appliance.base.errors import ApplianceError
from appliance.base.periodic_task import PeriodicTask

NEVER_S = 3600.0
PATIENCE_S = 30.0


@contextmanager
def running(
    look: Callable[[], float | None], *, every_s: float = NEVER_S
) -> Iterator[PeriodicTask]:
    task = PeriodicTask("sample", look, every_s=every_s)
    task.start()
    try:
        yield task
    finally:
        task.stop()


def counted(
    until: int, failure: Exception | None = None
) -> tuple[Callable[[], None], threading.Event]:
    """A look, and what is set once it was called so often."""
    calls, enough = [0], threading.Event()

    def look() -> None:
        calls[0] += 1
        if calls[0] >= until:
            enough.set()
        if failure is not None:
            raise failure

    return look, enough


def test_the_first_look_is_at_once_and_others_follow() -> None:
    """A daemon that was down does what it missed as it starts, not an hour later."""
    look, enough = counted(1)
    with running(look):
        assert enough.wait(PATIENCE_S)
    look, enough = counted(3)
    with running(look, every_s=0.001):
        assert enough.wait(PATIENCE_S)


def test_a_look_that_fails_does_not_end_the_task() -> None:
    """One defect or one refusal must not end all nights."""
    for failure in (ApplianceError("refused"), RuntimeError("a defect")):
        look, enough = counted(3, failure)
        with running(look, every_s=0.001):
            assert enough.wait(PATIENCE_S)


def test_a_look_may_say_when_the_next_is_due() -> None:
    """What is due in a moment does not wait for the regular look."""
    calls, enough = [0], threading.Event()

    def look() -> float:
        calls[0] += 1
        if calls[0] == 3:
            enough.set()
        return 0.001 if calls[0] < 3 else NEVER_S

    with running(look):
        assert enough.wait(PATIENCE_S)
    assert calls == [3]


def test_waking_during_a_look_is_followed_by_another_look() -> None:
    """What was saved after the look had read the catalog is seen by the next one."""
    calls, looking, woken, again = [0], threading.Event(), threading.Event(), threading.Event()

    def look() -> None:
        calls[0] += 1
        if calls[0] == 1:
            looking.set()
            assert woken.wait(PATIENCE_S)
        else:
            again.set()

    with running(look) as task:
        assert looking.wait(PATIENCE_S)
        task.wake()
        woken.set()
        assert again.wait(PATIENCE_S)


def test_stopping_waits_for_the_look_that_goes_on_and_tells_it() -> None:
    """After `stop` nothing of the task touches what it was given; a long look can end early."""
    looking, ended = threading.Event(), threading.Event()
    task: PeriodicTask

    def look() -> None:
        looking.set()
        while not task.stopping:
            threading.Event().wait(0.001)
        ended.set()

    task = PeriodicTask("sample", look, every_s=NEVER_S)
    task.start()
    assert looking.wait(PATIENCE_S)
    task.stop()
    assert ended.is_set()
    task.stop()


def test_a_task_that_was_never_started_can_be_stopped() -> None:
    """A daemon that fails half way through its start stops what it has."""
    look, enough = counted(1)
    PeriodicTask("sample", look, every_s=NEVER_S).stop()
    assert not enough.is_set()
