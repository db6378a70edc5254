"""The brake that reads less at once from storage that answers slowly."""

from __future__ import annotations

from datetime import UTC, datetime

from appliance.base.run_context import CancelToken
from appliance.jobs.latency_brake import BrakePolicy, LatencyBrake


class _Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return self.s


def _read(brake: LatencyBrake, clock: _Clock, seconds: float, times: int, length: int = 1) -> None:
    for _ in range(times):
        with brake.read(length, CancelToken()):
            clock.s += seconds


def test_slow_reads_lower_the_limit_to_one_and_fast_ones_raise_it_again() -> None:
    """Down to one, never to none; up to the first limit, never beyond; and the reason stays."""
    clock = _Clock()
    brake = LatencyBrake("ds1", BrakePolicy(threshold_s=0.1, most_reads=4), clock=clock)
    _read(brake, clock, 0.01, 100)
    assert brake.limit == 4
    assert brake.reason() is None
    _read(brake, clock, 0.5, 100)
    assert brake.limit == 1
    _read(brake, clock, 0.01, 100)
    assert brake.limit == 4
    reason = brake.reason()
    assert reason is not None
    assert reason.code == "brake.latency"
    assert "at most 1 reads" in reason.text


def test_a_large_read_may_take_longer() -> None:
    """Time counts per MiB: 8 MiB in 0.4 s are not slow where 0.1 s per MiB are allowed."""
    clock = _Clock()
    brake = LatencyBrake("ds1", BrakePolicy(threshold_s=0.1, most_reads=4), clock=clock)
    _read(brake, clock, 0.4, 100, length=8 << 20)
    assert brake.limit == 4


def test_a_threshold_of_zero_turns_the_brake_off() -> None:
    """However slow the storage is."""
    clock = _Clock()
    brake = LatencyBrake("ds1", BrakePolicy(threshold_s=0, most_reads=4), clock=clock)
    _read(brake, clock, 100, 100)
    assert brake.limit == 4
