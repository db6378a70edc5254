"""Every hour the daemon looks for what killed runs have left on the hypervisors, and removes it.

The first look is at the start. It asks each host anew, so nothing stays logged in.
Thread model: one thread of its own; `stop` waits for the look that goes on.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.base.errors import ApplianceError
from appliance.base.log import EventLog
from appliance.base.periodic_task import PeriodicTask
from appliance.catalog.catalog import Catalog
from appliance.service.vm_sources import clean_up, open_sources

log = EventLog(__name__)

EVERY_S = 3600.0


class OrphanPatrol:
    def __init__(
        self,
        catalog: Catalog,
        *,
        every_s: float = EVERY_S,
        also: Callable[[], None] = lambda: None,
    ) -> None:
        """`also`: done at each look; what it raises is logged."""
        self._catalog = catalog
        self._also = also
        self._task = PeriodicTask("orphan-patrol", self._walk, every_s=every_s)

    def start(self) -> None:
        self._task.start()

    def stop(self) -> None:
        """Idempotent."""
        self._task.stop()

    def _walk(self) -> None:
        for look in (self._look, self._also):
            try:
                look()
            except ApplianceError as error:
                log.warning("clean-up failed", error=error)

    def _look(self) -> None:
        if not self._catalog.hosts.list():
            return
        with open_sources(self._catalog) as opened:
            for failure in opened.failures:
                log.warning("host not reached", host=failure.host, error=failure.error)
            for orphan in clean_up(self._catalog, opened.sources):
                left = f"still there: {orphan.failure}" if orphan.failure else "removed"
                log.info("orphan", vm=orphan.vm, what=orphan.what, run=orphan.run_id, now=left)
