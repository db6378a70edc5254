"""The places of all registered hosts, kept for a while; a host that is slow makes nobody wait long.

Thread model: any thread. Hosts are asked on a few threads of this module's own, each host once at a
time; `stop` waits for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from appliance.base.errors import ApplianceError
from appliance.catalog.catalog import Catalog
from appliance.catalog.hosts import HostRecord
from appliance.service.hosts import open_host, places_of
from appliance.sources.host_places import HostPlaces

KEPT_S = 60.0
_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPlaces:
    """`places` are empty when `failure` says why they are not known."""

    host: str
    places: HostPlaces
    failure: str | None


@dataclass(frozen=True, slots=True)
class _Asked:
    record: HostRecord
    at_s: float
    answer: Future[HostPlaces]


class PlacesCache:
    def __init__(
        self,
        catalog: Catalog,
        *,
        ask: Callable[[HostRecord], HostPlaces] | None = None,
        kept_s: float = KEPT_S,
    ) -> None:
        self._catalog = catalog
        self._ask = ask or self._logged_in
        self._kept_s = kept_s
        self._lock = threading.Lock()
        self._asked: dict[str, _Asked] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="places")

    def get(self, *, within_s: float) -> list[KnownPlaces]:
        """Of all hosts, at most about `kept_s` old; who has not answered in time is said to be
        late, and is known the next time."""
        records = self._catalog.hosts.list()
        with self._lock:
            answers = {record.name: self._answer(record) for record in records}
        wait(answers.values(), timeout=within_s)
        return [_known(name, answer, within_s) for name, answer in answers.items()]

    def stop(self) -> None:
        """Idempotent."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _answer(self, record: HostRecord) -> Future[HostPlaces]:
        """The one that is known or on its way, or a new one."""
        now_s = self._catalog.clock.monotonic_s()
        known = self._asked.get(record.name)
        if known is not None and known.record == record and self._good(known, now_s):
            return known.answer
        answer = self._threads.submit(self._ask, record)
        self._asked[record.name] = _Asked(record, now_s, answer)
        return answer

    def _good(self, known: _Asked, now_s: float) -> bool:
        return not known.answer.done() or now_s - known.at_s <= self._kept_s

    def _logged_in(self, record: HostRecord) -> HostPlaces:
        with open_host(self._catalog, record) as host:
            return places_of(host)


def _known(host: str, answer: Future[HostPlaces], within_s: float) -> KnownPlaces:
    """Raises what is no ApplianceError: a defect."""
    failure = None
    if not answer.done():
        failure = f"it has not answered within {within_s:g} s"
    else:
        try:
            return KnownPlaces(host=host, places=answer.result(), failure=None)
        except ApplianceError as error:
            failure = str(error)
    return KnownPlaces(host=host, places=HostPlaces(), failure=failure)
