"""The VMs of all registered hosts, kept for a while: an inventory costs a login and a second.

A host that does not answer makes nobody wait again and again: what it said before is shown, or why
it failed, while it is asked anew.

Thread model: as `asked_hosts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass

from appliance.base.errors import ApplianceError
from appliance.catalog.catalog import Catalog
from appliance.catalog.hosts import HostRecord
from appliance.service.asked_hosts import KEPT_S, Asked, AskedHosts
from appliance.service.hosts import list_vms, open_to_read
from appliance.sources.listed_vm import ListedVm

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


class InventoryCache:
    def __init__(
        self,
        catalog: Catalog,
        *,
        ask: Callable[[HostRecord], tuple[ListedVm, ...]] | None = None,
        kept_s: float = KEPT_S,
    ) -> None:
        self._catalog = catalog
        self._hosts = AskedHosts(catalog, ask or self._logged_in, kept_s=kept_s, name="inventory")

    def known(self) -> list[ListedVm]:
        """What was found last, however old; nobody is asked, and nobody waited for."""
        return [vm for each in self._hosts.known() for vm in each.newest[0] or ()]

    def get(self, *, fresh: bool = False) -> Inventory:
        """The VMs of all hosts, at most about `kept_s` old, older of a host that is slow; one that
        fails stops no other."""
        vms: list[ListedVm] = []
        failures: dict[str, ApplianceError] = {}
        for each in self._hosts.get(fresh=fresh):
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
        self._hosts.stop()

    def _logged_in(self, record: HostRecord) -> tuple[ListedVm, ...]:
        with open_to_read(self._catalog, record) as host:
            return tuple(list_vms(host))


def _patience_s(asked: Asked[tuple[ListedVm, ...]], fresh: bool) -> float:
    if fresh or (asked.found is None and asked.failure is None):
        return _FIRST_S
    return 0.0 if asked.failure is not None else _AGAIN_S
