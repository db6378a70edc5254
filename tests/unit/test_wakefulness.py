"""The loop that looks for the next request without sleeping: when it does, and that it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from appliance.exports import wakefulness
from appliance.exports.wakefulness import Wakefulness


class Clock:
    """Time that passes when the test says so; `looks` counts how often the processor is offered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.looks = 0
        self.on_look: Callable[[], None] = lambda: None
        monkeypatch.setattr(wakefulness, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(wakefulness.os, "sched_yield", self._look)

    def _look(self) -> None:
        self.looks += 1
        self.on_look()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def answers(clock: Clock, pauses_s: list[float]) -> None:
    """Replies with pauses before them, and one turn of the loop after each."""
    wakeful = Wakefulness()

    async def serve() -> None:
        for pause_s in pauses_s:
            clock.now_s += pause_s
            wakeful.answered()
            await asyncio.sleep(0)

    asyncio.run(serve())


def test_a_client_that_takes_its_time_costs_nothing(clock: Clock) -> None:
    """A guest at rest, or a client far away: the loop sleeps between requests."""
    answers(clock, [0.001] * 50)
    assert clock.looks == 0


def test_replies_in_quick_succession_keep_the_loop_awake(clock: Clock) -> None:
    """One look for each turn, and one chain of them however many replies leave."""
    answers(clock, [0.001] + [0.000_05] * 20)
    assert 15 <= clock.looks <= 30  # the end of `asyncio.run` takes some turns, too


def test_the_loop_sleeps_again_after_one_quiet_pause(clock: Clock) -> None:
    """And is kept awake again by the next two quick replies, not by the first."""

    async def serve() -> None:
        wakeful = Wakefulness()
        wakeful.answered()
        wakeful.answered()
        await asyncio.sleep(0)
        assert clock.looks == 1
        clock.now_s += 1
        for _ in range(5):
            await asyncio.sleep(0)
        assert clock.looks == 1
        wakeful.answered()
        await asyncio.sleep(0)
        assert clock.looks == 1
        wakeful.answered()
        await asyncio.sleep(0)
        assert clock.looks == 2

    asyncio.run(serve())


def test_looking_gives_up_by_itself_when_nobody_asks(clock: Clock) -> None:
    """Bounded by time, not by the number of looks."""

    def pass_time() -> None:
        clock.now_s += 0.000_01

    clock.on_look = pass_time

    async def serve() -> None:
        wakeful = Wakefulness()
        wakeful.answered()
        wakeful.answered()
        for _ in range(50):
            await asyncio.sleep(0)

    asyncio.run(serve())
    assert 5 <= clock.looks <= 15
