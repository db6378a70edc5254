"""The VMs of all registered hosts, kept for a while: an inventory costs a login and a second.

A host that does not answer makes nobody wait again and again: what it said before is shown, or why
it failed, while it is asked anew. Pages ask for this at every event, and have few threads.

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
from appliance.service.hosts import list_vms, open_to_read
from appliance.sources.listed_vm import ListedVm

KEPT_S = 60.0
_AT_ONCE = 8
_FIRST_S = 120.0  # until a host is said to be late of which nothing is known
_AGAIN_S = 5.0  # until what it said before is shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """`failures` by host: what is not in `vms`, and why."""

    vms: tuple[ListedVm, ...]
    failures: dict[str, ApplianceError]


class HostLateError(ApplianceError):
    """The host has not answered yet; look again in a minute. If it stays so, see whether the
    appliance reaches it."""

    code = "host.late"
    retryable = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """`found`, `failure`: what the host had said when it was asked; neither: nothing yet."""

    record: HostRecord
    at_s: float
    answer: Future[tuple[ListedVm, ...]]
    found: tuple[ListedVm, ...] | None = None
    failure: ApplianceError | None = None

    @property
    def newest(self) -> tuple[tuple[ListedVm, ...] | None, ApplianceError | None]:
        """As it is now. Raises what is no ApplianceError: a defect."""
        if not self.answer.done():
            return self.found, self.failure
        try:
            return self.answer.result(), None
        except ApplianceError as error:
            return self.found, error


class InventoryCache:
    def __init__(
        self,
        catalog: Catalog,
        *,
        ask: Callable[[HostRecord], tuple[ListedVm, ...]] | None = None,
        kept_s: float = KEPT_S,
    ) -> None:
        self._catalog = catalog
        self._ask = ask or self._logged_in
        self._kept_s = kept_s
        self._lock = threading.Lock()
        self._asked: dict[str, _Asked] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="inventory")

    def known(self) -> list[ListedVm]:
        """What was found last, however old; nobody is asked, and nobody waited for."""
        with self._lock:
            asked = list(self._asked.values())
        return [vm for each in asked for vm in each.newest[0] or ()]

    def get(self, *, fresh: bool = False) -> Inventory:
        """The VMs of all hosts, at most about `kept_s` old, older of a host that is slow; one that
        fails stops no other."""
        records = self._catalog.hosts.list()
        with self._lock:
            self._asked = {record.name: self._answer(record, fresh) for record in records}
            asked = list(self._asked.values())
        vms: list[ListedVm] = []
        failures: dict[str, ApplianceError] = {}
        for each in asked:
            wait([each.answer], timeout=_patience_s(each, fresh))
            found, failure = each.newest
            if failure is not None:
                failures[each.record.name] = failure
            elif found is None:
                late = HostLateError(f"{each.record.name} has not answered within {_FIRST_S:g} s")
                failures[each.record.name] = late
            else:
                vms += found
        return Inventory(vms=tuple(vms), failures=failures)

    def stop(self) -> None:
        """Idempotent."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _answer(self, record: HostRecord, fresh: bool) -> _Asked:
        """The one that is known or on its way, or a new one."""
        now_s = self._catalog.clock.monotonic_s()
        known = self._asked.get(record.name)
        if known is None or known.record != record:
            return _Asked(record=record, at_s=now_s, answer=self._threads.submit(self._ask, record))
        if not known.answer.done() or (not fresh and now_s - known.at_s <= self._kept_s):
            return known
        found, failure = known.newest
        answer = self._threads.submit(self._ask, record)
        return _Asked(record=record, at_s=now_s, answer=answer, found=found, failure=failure)

    def _logged_in(self, record: HostRecord) -> tuple[ListedVm, ...]:
        with open_to_read(self._catalog, record) as host:
            return tuple(list_vms(host))


def _patience_s(asked: _Asked, fresh: bool) -> float:
    if fresh or (asked.found is None and asked.failure is None):
        return _FIRST_S
    return 0.0 if asked.failure is not None else _AGAIN_S
