"""When a guest counts as up: heartbeat, tools that never report, questions, time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.fake_session import FakeSession
from vmware.errors import DeadlineError, InvalidPowerStateError, QuestionPendingError
from vmware.heartbeat import GuestState, Life, wait_for_heartbeat
from vmware.patience import Patience
from vmware.session import Session

ON = {"runtime.powerState": "poweredOn", "guest.toolsRunningStatus": "guestToolsRunning"}


class Course:
    """A VM whose properties change with each second that the caller waits."""

    def __init__(self, *states: dict[str, Any]) -> None:
        self.session = FakeSession(1, "")
        self.now_s = 0.0
        self._states = states
        self._show()

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self._show()

    def _show(self) -> None:
        state = self._states[min(int(self.now_s), len(self._states) - 1)]
        self.session.properties["vm-1"] = state

    def run(self, **options: Any) -> GuestState:
        options = {"deadline_s": 60.0, "without_tools_s": 20.0, **options}
        return wait_for_heartbeat(
            cast(Session, self.session),
            "vm-1",
            patience=Patience(wait=self.wait),
            clock=lambda: self.now_s,
            **options,
        )


def test_a_green_heartbeat_is_life() -> None:
    """With what the guest says of itself."""
    course = Course(
        {**ON, "guestHeartbeatStatus": "gray"},
        {**ON, "guestHeartbeatStatus": "yellow"},
        {
            **ON,
            "guestHeartbeatStatus": "green",
            "guest.hostName": "web",
            "guest.ipAddress": "192.0.2.1",
        },
    )
    state = course.run()
    assert state == GuestState(life=Life.BEATING, host_name="web", address="192.0.2.1")
    assert 2 <= course.now_s < 3


def test_a_heartbeat_that_falters_is_counted_anew() -> None:
    """Three in a row are three in a row."""
    green, red = {**ON, "guestHeartbeatStatus": "green"}, {**ON, "guestHeartbeatStatus": "red"}
    course = Course(green, green, red, green, green, green)
    course.run(samples=3, every_s=1.0)
    assert course.now_s >= 5


def test_a_guest_without_tools_is_no_failure() -> None:
    """It runs; that is all that can be said."""
    silent = {
        "runtime.powerState": "poweredOn",
        "guest.toolsRunningStatus": "guestToolsNotRunning",
        "guestHeartbeatStatus": "gray",
    }
    course = Course(silent)
    assert course.run().life is Life.NO_TOOLS
    assert 20 < course.now_s < 22


def test_tools_that_run_without_a_heartbeat_are_a_failure() -> None:
    """After the deadline."""
    with pytest.raises(DeadlineError, match="red"):
        Course({**ON, "guestHeartbeatStatus": "red"}).run()


def test_a_question_or_the_power_ends_the_wait_at_once() -> None:
    """Waiting would not help."""
    question = SimpleNamespace(text="moved or copied?")
    with pytest.raises(QuestionPendingError, match="moved or copied"):
        Course({**ON, "runtime.question": question}).run()
    with pytest.raises(InvalidPowerStateError):
        Course({"runtime.powerState": "poweredOff"}).run()
