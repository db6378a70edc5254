"""What a run carries with it: a cancel token and its progress.

Thread model: any thread may cancel, add progress or take a snapshot. Progress is data; how it is
shown is the business of the command line or the API.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum
from weakref import WeakSet

from appliance.base.clock import Clock, SystemClock
from appliance.base.errors import CancelledError


class CancelToken:
    """Asked for at every segment or chunk; cancelling never interrupts a write half way."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._children: WeakSet[CancelToken] = WeakSet()

    def cancel(self) -> None:
        """Idempotent; also safe in a signal handler."""
        self._event.set()
        for child in list(self._children):
            child.cancel()

    def child(self) -> CancelToken:
        """Return a token for a part: cancelled with this one, or alone."""
        child = CancelToken()
        self._children.add(child)
        if self.cancelled:
            child.cancel()
        return child

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Return as soon as cancelled, or after `timeout_s`; whether it was cancelled."""
        return self._event.wait(timeout_s)

    def check(self) -> None:
        """Raises CancelledError once `cancel` was called."""
        if self._event.is_set():
            raise CancelledError("cancelled")


class Stage(StrEnum):
    """Where a data path spends its time; the largest is the bottleneck shown to the operator."""

    READ = "read"
    COMPRESS = "compress"
    WRITE = "write"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressSnapshot:
    done_bytes: int
    total_bytes: int
    seconds: float
    bytes_per_s: float
    eta_s: float | None  # None: nothing done yet
    bottleneck: Stage | None


class Progress:
    """Counts bytes and the seconds spent per stage, summed over all worker threads.

    A part (one VM of many, one disk of a VM) counts for the whole too.
    """

    def __init__(self, clock: Clock | None = None, *, whole: Progress | None = None) -> None:
        self._clock = clock or SystemClock()
        self._whole = whole
        self._lock = threading.Lock()
        self._started_s = self._clock.monotonic_s()
        self._done_bytes = 0
        self._total_bytes = 0
        self._stage_s = dict.fromkeys(Stage, 0.0)

    def expect(self, total_bytes: int) -> None:
        """Add to the total; may be called once per disk."""
        with self._lock:
            self._total_bytes += total_bytes
        if self._whole is not None:
            self._whole.expect(total_bytes)

    def advance(self, done_bytes: int) -> None:
        with self._lock:
            self._done_bytes += done_bytes
        if self._whole is not None:
            self._whole.advance(done_bytes)

    def spend(self, stage: Stage, seconds: float) -> None:
        with self._lock:
            self._stage_s[stage] += seconds
        if self._whole is not None:
            self._whole.spend(stage, seconds)

    def part(self) -> Progress:
        """Return the progress of a part of this, begun now."""
        return Progress(self._clock, whole=self)

    def snapshot(self) -> ProgressSnapshot:
        with self._lock:
            seconds = max(self._clock.monotonic_s() - self._started_s, 1e-9)
            rate = self._done_bytes / seconds
            busiest = max(self._stage_s, key=lambda stage: self._stage_s[stage])
            return ProgressSnapshot(
                done_bytes=self._done_bytes,
                total_bytes=self._total_bytes,
                seconds=seconds,
                bytes_per_s=rate,
                eta_s=(self._total_bytes - self._done_bytes) / rate if rate else None,
                bottleneck=busiest if self._stage_s[busiest] else None,
            )


@dataclass(frozen=True, slots=True)
class RunContext:
    """Handed down a run; the default one cannot be cancelled from outside and shows nothing."""

    cancel: CancelToken
    progress: Progress

    @classmethod
    def quiet(cls) -> RunContext:
        return cls(CancelToken(), Progress())
