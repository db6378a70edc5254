"""The limit on what is read in a second, under a clock that moves by waiting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from appliance.base.errors import CancelledError
from appliance.base.run_context import CancelToken
from appliance.blocks.rate_limit import RateLimit, RateLimitedReader
from tests.support.job_world import MovedClock
from tests.support.memory_reader import MemoryReader

MIB = 1 << 20


class WaitingToken(CancelToken):
    """Waiting lets the time pass."""

    def __init__(self, clock: MovedClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout_s: float) -> bool:
        self._clock.set(self._clock.now() + timedelta(seconds=timeout_s))
        return self.cancelled


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock(datetime(2026, 11, 20, tzinfo=UTC))


def test_many_reads_take_as_long_as_the_rate_says(clock: MovedClock) -> None:
    """100 MiB at 10 MiB/s take ten seconds, whatever their sizes, and every byte is right."""
    limit = RateLimit(lambda: 10 * MIB, clock=clock)
    token = WaitingToken(clock)
    data = bytes(range(256)) * (4 * MIB // 256)
    readers = [RateLimitedReader(MemoryReader(data), limit, token) for _ in range(2)]
    began_s = clock.monotonic_s()
    for number in range(50):
        reader = readers[number % 2]
        assert reader.read_at(0, 1 * MIB) == data[:MIB]
        buffer = bytearray(MIB)
        reader.read_into(MIB, memoryview(buffer))
        assert buffer == data[MIB : 2 * MIB]
        assert reader.try_read_at(0, 1) is None
    assert clock.monotonic_s() - began_s == pytest.approx(9.9, abs=0.3)
    assert limit.waited_s == pytest.approx(9.9, abs=0.3)


def test_a_limit_that_ends_lets_a_waiting_read_go(clock: MovedClock) -> None:
    """At six o'clock, not when the old rate would have."""
    opens_s = clock.monotonic_s() + 5

    def rate() -> float | None:
        return None if clock.monotonic_s() >= opens_s else 1024

    limit = RateLimit(rate, clock=clock)
    token = WaitingToken(clock)
    limit.take(100 * MIB, token)
    limit.take(1, token)
    assert clock.monotonic_s() == pytest.approx(opens_s, abs=0.5)


def test_a_cancelled_run_does_not_wait_for_its_bytes(clock: MovedClock) -> None:
    """It ends at once."""
    limit = RateLimit(lambda: 1024, clock=clock)
    token = CancelToken()
    limit.take(100 * MIB, token)
    token.cancel()
    with pytest.raises(CancelledError):
        limit.take(1, token)
