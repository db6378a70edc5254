"""What registered hosts answer to one question, kept for a while.

Pages ask at every event and have few threads, so nobody waits here: who wants the answers waits for
them as long as he likes, and sees meanwhile what a host had said before.

Thread model: any thread. Hosts are asked on a few threads of this module's own, each host once at a
time; `stop` waits for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from appliance.base.errors import ApplianceError
from appliance.catalog.catalog import Catalog
from appliance.catalog.hosts import HostRecord

KEPT_S = 60.0
_AT_ONCE = 8
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Generic[T]):
    """`found`, `failure`: what the host had said when it was asked; neither: nothing yet."""

    record: HostRecord
    at_s: float
    answer: Future[T]
    found: T | None = None
    failure: ApplianceError | None = None

    @property
    def newest(self) -> tuple[T | None, ApplianceError | None]:
        """As it is now. Raises what is no ApplianceError: a defect."""
        if not self.answer.done():
            return self.found, self.failure
        try:
            return self.answer.result(), None
        except ApplianceError as error:
            return self.found, error


class AskedHosts(Generic[T]):
    def __init__(
        self, catalog: Catalog, ask: Callable[[HostRecord], T], *, kept_s: float, name: str
    ) -> None:
        """`name`: of the threads."""
        self._catalog = catalog
        self._ask = ask
        self._kept_s = kept_s
        self._lock = threading.Lock()
        self._asked: dict[str, Asked[T]] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix=name)

    def known(self) -> list[Asked[T]]:
        """However old; nobody is asked."""
        with self._lock:
            return list(self._asked.values())

    def get(self, *, fresh: bool = False) -> list[Asked[T]]:
        """Of all hosts, asked at most about `kept_s` ago, or on its way; `fresh`: or asked now."""
        records = self._catalog.hosts.list()
        with self._lock:
            self._asked = {record.name: self._current(record, fresh) for record in records}
            return list(self._asked.values())

    def stop(self) -> None:
        """Idempotent."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _current(self, record: HostRecord, fresh: bool) -> Asked[T]:
        """The one that is known or on its way, or a new one."""
        now_s = self._catalog.clock.monotonic_s()
        known = self._asked.get(record.name)
        if known is None or known.record != record:
            return Asked(record=record, at_s=now_s, answer=self._threads.submit(self._ask, record))
        if not known.answer.done() or (not fresh and now_s - known.at_s <= self._kept_s):
            return known
        found, failure = known.newest
        answer = self._threads.submit(self._ask, record)
        return Asked(record=record, at_s=now_s, answer=answer, found=found, failure=failure)
