"""The places of all registered hosts, kept for a while; a host that is slow makes nobody wait long.

Thread model: as `asked_hosts.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass

from appliance.base.errors import ApplianceError
from appliance.catalog.catalog import Catalog
from appliance.catalog.hosts import HostRecord
from appliance.service.asked_hosts import KEPT_S, AskedHosts
from appliance.service.hosts import open_host, places_of
from appliance.sources.host_places import HostPlaces


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPlaces:
    """`places` are empty when `failure` says why they are not known."""

    host: str
    places: HostPlaces
    failure: str | None


class PlacesCache:
    def __init__(
        self,
        catalog: Catalog,
        *,
        ask: Callable[[HostRecord], HostPlaces] | None = None,
        kept_s: float = KEPT_S,
    ) -> None:
        self._catalog = catalog
        self._hosts = AskedHosts(catalog, ask or self._logged_in, kept_s=kept_s, name="places")

    def get(self, *, within_s: float) -> list[KnownPlaces]:
        """Of all hosts, at most about `kept_s` old; who has not answered in time is said to be
        late, and is known the next time."""
        asked = self._hosts.get()
        wait([each.answer for each in asked], timeout=within_s)
        return [_known(each.record.name, each.answer, within_s) for each in asked]

    def stop(self) -> None:
        """Idempotent."""
        self._hosts.stop()

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
