"""The leases of one vCenter, and the thread that ends those whose time is over.

Thread model: any thread. `close` aborts what is open and joins the thread.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

from lab.data_plane.lease import DEFAULT_TIMEOUT_S, Lease, LeaseEndedError, LeaseMode, OnEnd

_MAX_ENDED = 100  # leases that ended and can still be looked at


class LeaseTable:
    def __init__(
        self, *, timeout_s: float = DEFAULT_TIMEOUT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        self._changed = threading.Condition()
        self._leases: dict[str, Lease] = {}
        self._closed = False
        self._watcher = threading.Thread(target=self._watch, name="lab-leases")
        self._watcher.start()

    def begin(self, mode: LeaseMode, on_end: OnEnd) -> Lease:
        lease = Lease(
            str(uuid.uuid4()), mode, timeout_s=self.timeout_s, clock=self._clock, on_end=on_end
        )
        with self._changed:
            if self._closed:
                raise LeaseEndedError("RequestCanceled", "the lab ends")
            ended = [key for key, other in self._leases.items() if other.ended]
            for key in ended[: max(0, len(ended) - _MAX_ENDED)]:
                del self._leases[key]
            self._leases[lease.lease_id] = lease
        return lease

    def get(self, lease_id: str) -> Lease | None:
        with self._changed:
            return self._leases.get(lease_id)

    def open_leases(self) -> list[Lease]:
        """Those that have not ended."""
        with self._changed:
            return [lease for lease in self._leases.values() if not lease.ended]

    def wake(self) -> None:
        """A deadline came about; the watcher looks again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._watcher.join()
        for lease in self.open_leases():
            lease.fail(LeaseEndedError("RequestCanceled", "the lab ends"))

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                deadlines = [lease.expires_at_s for lease in self._leases.values()]
                known = [at_s for at_s in deadlines if at_s is not None]
                wait_s = min(known) - self._clock() if known else None
                if wait_s is None or wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
                late = [
                    lease
                    for lease in self._leases.values()
                    if lease.expires_at_s is not None and lease.expires_at_s <= self._clock()
                ]
            for lease in late:
                lease.expire()
