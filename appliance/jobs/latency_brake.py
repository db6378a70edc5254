"""The brake of backups: production storage that answers slowly is read by fewer at once.

Data path: `braked` wraps a disk's reader; each read takes a place at the brake of its datastore and
is timed. Time counts per MiB begun, so that large and small reads compare. When the mean over a
window of reads is above the threshold, one place less is given out, down to one; when it is below
half of the threshold, one more, up to the first limit. So a backup slows down before its VMs do,
and speeds up again by itself.

A datastore on which the brake was used says so with a reason, in every disk that was read there.

Thread model: a brake is shared by all threads that read from its datastore.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from appliance.base.clock import Clock, SystemClock
from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.base.units import MIB
from appliance.blocks.device import BlockReader
from appliance.blocks.layers import ReaderLayer

_WINDOW_READS = 16
_LOOK_AT_CANCEL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class BrakePolicy:
    """Seconds per MiB above which a datastore counts as slow; 0 turns the brake off."""

    threshold_s: float = 0.25
    most_reads: int = 32  # at once, from one datastore

    def __post_init__(self) -> None:
        if self.threshold_s < 0 or self.most_reads < 1:
            raise UsageError("a latency threshold is 0 or more, and one read at once the least")


class LatencyBrake:
    """The brake of one datastore."""

    def __init__(self, datastore: str, policy: BrakePolicy, *, clock: Clock | None = None) -> None:
        self._datastore = datastore
        self._policy = policy
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._limit = policy.most_reads
        self._reading = 0
        self._window_s: list[float] = []
        self._slowest_s = 0.0
        self._least = policy.most_reads

    @property
    def limit(self) -> int:
        """Reads that may go on at once, now."""
        with self._changed:
            return self._limit

    @contextmanager
    def read(self, length: int, cancel: CancelToken) -> Iterator[None]:
        """Wait for a place, and time what the block reads. Raises CancelledError."""
        with self._changed:
            while self._reading >= self._limit:
                cancel.check()
                self._changed.wait(_LOOK_AT_CANCEL_S)
            self._reading += 1
        started_s = self._clock.monotonic_s()
        try:
            yield
        finally:
            seconds = self._clock.monotonic_s() - started_s
            with self._changed:
                self._reading -= 1
                self._judge(seconds / max(1, -(-length // MIB)))
                self._changed.notify_all()

    def reason(self) -> Reason | None:
        """Say so if reading was ever slowed down."""
        with self._changed:
            if self._least == self._policy.most_reads:
                return None
            return Reason(
                "brake.latency",
                f"vSphere datastore {self._datastore} took up to {self._slowest_s * 1000:.0f} ms "
                f"per MiB, so at most {self._least} reads went on at once for a while",
                "back up at a quieter time, or look at the storage",
                warning=False,
            )

    def _judge(self, per_mib_s: float) -> None:
        threshold_s = self._policy.threshold_s
        if not threshold_s:
            return
        self._window_s.append(per_mib_s)
        if len(self._window_s) < min(_WINDOW_READS, self._limit):
            return
        mean_s = sum(self._window_s) / len(self._window_s)
        self._window_s.clear()
        if mean_s > threshold_s:
            # from what is really going on, else the first steps down would change nothing
            self._limit = max(1, min(self._limit, self._reading + 1) - 1)
            self._least = min(self._least, self._limit)
            self._slowest_s = max(self._slowest_s, mean_s)
        elif mean_s < threshold_s / 2:
            self._limit = min(self._limit + 1, self._policy.most_reads)


class LatencyBrakes:
    """One brake per datastore, for all runs of a process."""

    def __init__(
        self,
        policy: BrakePolicy,
        make: Callable[[str, BrakePolicy], LatencyBrake] = LatencyBrake,
    ) -> None:
        self._policy = policy
        self._make = make
        self._lock = threading.Lock()
        self._brakes: dict[str, LatencyBrake] = {}

    def of(self, datastore: str) -> LatencyBrake:
        with self._lock:
            brake = self._brakes.get(datastore)
            if brake is None:
                brake = self._brakes[datastore] = self._make(datastore, self._policy)
            return brake


class BrakedReader(ReaderLayer):
    """Every read passes the brake; closing it does not close what it wraps."""

    def __init__(self, base: BlockReader, brake: LatencyBrake, cancel: CancelToken) -> None:
        super().__init__(base)
        self._brake = brake
        self._cancel = cancel

    def read_at(self, offset: int, length: int) -> bytes:
        with self._brake.read(length, self._cancel):
            return self._base.read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._brake.read(len(buffer), self._cancel):
            self._base.read_into(offset, buffer)

    def close(self) -> None:
        pass  # whoever froze the disk closes its reader
