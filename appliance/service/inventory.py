"""The VMs of all registered hosts, kept for a while: an inventory costs a login and a second.

Thread model: any thread; one of them asks a host, the others wait for its answer.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from appliance.base.errors import ApplianceError
from appliance.catalog.catalog import Catalog
from appliance.service.hosts import list_vms, open_to_read
from appliance.sources.listed_vm import ListedVm

KEPT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """`failures` by host: what is not in `vms`, and why."""

    vms: tuple[ListedVm, ...]
    failures: dict[str, ApplianceError]


class InventoryCache:
    def __init__(self, catalog: Catalog, *, kept_s: float = KEPT_S) -> None:
        self._catalog = catalog
        self._kept_s = kept_s
        self._lock = threading.Lock()
        self._found: dict[str, tuple[float, tuple[ListedVm, ...]]] = {}

    def known(self) -> list[ListedVm]:
        """What was found last, however old; nobody is asked, and nobody waited for."""
        return [vm for _, vms in tuple(self._found.values()) for vm in vms]

    def get(self, *, fresh: bool = False) -> Inventory:
        """The VMs of all hosts, at most `kept_s` old; a host that fails stops no other."""
        vms: list[ListedVm] = []
        failures: dict[str, ApplianceError] = {}
        with self._lock:
            records = self._catalog.hosts.list()
            for name in set(self._found) - {record.name for record in records}:
                del self._found[name]
            for record in records:
                now_s = self._catalog.clock.monotonic_s()
                known = self._found.get(record.name)
                if fresh or known is None or now_s - known[0] > self._kept_s:
                    try:
                        with open_to_read(self._catalog, record) as host:
                            known = (now_s, tuple(list_vms(host)))
                    except ApplianceError as error:
                        failures[record.name] = error
                        continue
                    self._found[record.name] = known
                vms += known[1]
        return Inventory(vms=tuple(vms), failures=failures)
