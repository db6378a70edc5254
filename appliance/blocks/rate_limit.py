"""A limit on what is read in a second, shared by all disks of a run, and the layer that heeds it.

Data path: `RateLimitedReader` wraps a disk's reader; each read first waits until what was read
before has been paid for at the present rate. The rate is asked for anew at every read and every
look, so that a limit which ends at six o'clock lets a waiting read go at six o'clock.

Thread model: any thread; `take` blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from appliance.base.clock import Clock, SystemClock
from appliance.base.run_context import CancelToken
from appliance.blocks.device import BlockReader
from appliance.blocks.layers import ReaderLayer

_LOOK_AGAIN_S = 0.2
_SHORTEST_S = 0.001


class RateLimit:
    def __init__(
        self, bytes_per_s: Callable[[], float | None], *, clock: Clock | None = None
    ) -> None:
        """`bytes_per_s`: the rate at this moment; None: no limit. Asked from any thread."""
        self._bytes_per_s = bytes_per_s
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._owed_bytes = 0.0
        self._paid_at_s = self._clock.monotonic_s()
        self._waited_s = 0.0

    @property
    def waited_s(self) -> float:
        """Seconds that reads have waited, summed over all threads."""
        with self._lock:
            return self._waited_s

    def take(self, length: int, cancel: CancelToken) -> None:
        """Wait until `length` bytes may be read. Raises CancelledError."""
        while True:
            cancel.check()
            wait_s = self._try(length)
            if wait_s <= 0:
                return
            began_s = self._clock.monotonic_s()
            cancel.wait(min(max(wait_s, _SHORTEST_S), _LOOK_AGAIN_S))
            with self._lock:
                self._waited_s += self._clock.monotonic_s() - began_s

    def _try(self, length: int) -> float:
        """Take, and return 0; or return the seconds until it may be worth another look."""
        rate = self._bytes_per_s()
        with self._lock:
            now_s = self._clock.monotonic_s()
            if rate is None:
                self._owed_bytes, self._paid_at_s = 0.0, now_s
                return 0.0
            self._owed_bytes -= (now_s - self._paid_at_s) * rate
            self._paid_at_s = now_s
            if self._owed_bytes > 0:
                return self._owed_bytes / rate
            self._owed_bytes = float(length)
            return 0.0


class RateLimitedReader(ReaderLayer):
    """Every read pays for its bytes; closing it does not close what it wraps."""

    def __init__(self, base: BlockReader, limit: RateLimit, cancel: CancelToken) -> None:
        super().__init__(base)
        self._limit = limit
        self._cancel = cancel

    def read_at(self, offset: int, length: int) -> bytes:
        self._limit.take(length, self._cancel)
        return self._base.read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._limit.take(len(buffer), self._cancel)
        self._base.read_into(offset, buffer)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        return None  # what is to be waited for is never at hand

    def close(self) -> None:
        pass  # whoever opened the disk closes its reader
