"""Hypervisors for verification jobs: logged in to, with the daemon as the one who serves.

Also what killed runs have left: a session says which run made it, and one whose run is dead is
discarded before the next run and by the patrol of the daemon.

Thread model: any thread; what `open` yields belongs to the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.catalog.catalog import Catalog
from appliance.jobs.hypervisor_verification import Hypervisor, discard_debris
from appliance.jobs.recovery_room import SessionServer
from appliance.repository.repository import Repository
from appliance.service.recoveries import open_recovery_target, recovery_room
from appliance.targets.recovery import WitnessedTarget

log = EventLog(__name__)


class HypervisorOpener:
    def __init__(
        self, home: Path, catalog: Catalog, repository: Repository, server: SessionServer | None
    ) -> None:
        """`server`: who shows sessions to hosts; None: the daemon, asked over its socket."""
        self._home = home
        self._catalog = catalog
        self._server = server
        self._room = recovery_room(home, catalog, repository, server=server)

    @contextmanager
    def open(self, host: str | None, run_id: RunId, address: str) -> Iterator[Hypervisor]:
        """Raises: as `open_recovery_target`."""
        self.discard_debris()
        with self._target(host) as target:
            yield Hypervisor(room=self._room, target=target, run_id=run_id, address=address)

    def discard_debris(self) -> None:
        """Discard what verifications left that were killed. Raises StorageError."""
        with ExitStack() as opened:

            def open_target(host: str) -> WitnessedTarget:
                return opened.enter_context(self._target(host))

            alive = self._catalog.run_locks.alive
            for session_id, error in discard_debris(self._room, alive, open_target).items():
                if error is None:
                    log.info("session of a dead verification discarded", session=session_id)
                else:
                    log.warning("session stays", session=session_id, code=error.code, error=error)

    def _target(self, host: str | None) -> AbstractContextManager[WitnessedTarget]:
        return open_recovery_target(self._catalog, self._home, host, self._server)
