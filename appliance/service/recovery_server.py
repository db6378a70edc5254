"""The sessions that this appliance serves: opened, shown over NFS, found again after a restart.

    restart -> every session folder -> overlays opened -> the same handles served again

Invariants: a session is served from its creation until it is withdrawn, which is after the last
host has unmounted it. One that cannot be opened is reported and stops no other. The NFS server
listens only after all sessions are published: a host that comes back early would else see its
datastore without files.

Thread model: any thread; `serve` and `withdraw` of one session exclude each other.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.base.errors import ApplianceError
from appliance.base.log import EventLog
from appliance.blocks.device import BlockReader
from appliance.blocks.read_ahead import ReadAheadReader
from appliance.exports.datastore.session import (
    OpenSession,
    Phase,
    SessionRecord,
    SessionStore,
)
from appliance.exports.nfs import NfsServer, nfs_export
from appliance.repository.repository import Repository

log = EventLog(__name__)

_ENDED = (Phase.MOVED,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSession:
    """A session and whether hosts can reach it."""

    record: SessionRecord
    served: bool
    failure: str | None  # why not


class RecoveryServer:
    def __init__(
        self,
        store: SessionStore,
        repository: Repository,
        nfs: NfsServer,
        *,
        reserve_bytes: int = 0,
    ) -> None:
        """`reserve_bytes`: kept free on the disk of the sessions; writes beyond get NOSPC."""
        self._store = store
        self._repository = repository
        self._nfs = nfs
        self._reserve_bytes = reserve_bytes
        self._open: dict[str, OpenSession] = {}
        self._failures: dict[str, str] = {}
        self._lock = threading.RLock()

    def start(self) -> None:
        """Serve every session there is, then listen. Raises StorageError: nothing listens."""
        for record in self._store.list():
            try:
                self.serve(record.session_id)
            except ApplianceError as error:
                self._failures[record.session_id] = str(error)
                log.error("session not served", session=record.session_id, error=str(error))
        self._nfs.start()

    def stop(self) -> None:
        """End the server, then close the sessions; they go on at the next start. Idempotent."""
        self._nfs.stop()
        with self._lock:
            for session in self._open.values():
                session.close()
            self._open.clear()

    @property
    def port(self) -> int:
        return self._nfs.port

    def sessions(self) -> Sequence[ServedSession]:
        """All sessions, oldest first. Raises SessionDamagedError, StorageError."""
        with self._lock:
            return [
                ServedSession(
                    record=record,
                    served=record.session_id in self._open,
                    failure=self._failures.get(record.session_id),
                )
                for record in self._store.list()
            ]

    def serve(self, session_id: str) -> None:
        """Show the session to its clients. Idempotent.

        Raises: SessionNotFoundError, SessionDamagedError, and as the overlays and images do.
        """
        with self._lock:
            if session_id in self._open:
                return
            record = self._store.get(session_id)
            if record.phase in _ENDED:
                return
            session = self._store.open(record, self._open_image, reserve_bytes=self._reserve_bytes)
            try:
                self._nfs.publish(
                    nfs_export(record.export_path, record.tree_id, session.tree, record.clients)
                )
            except BaseException:
                session.close()
                raise
            self._open[session_id] = session
            self._failures.pop(session_id, None)
            log.info("session served", session=session_id, vm=record.vm, point=record.point_id)

    def withdraw(self, session_id: str) -> None:
        """Serve it no more and close it; no host may have it mounted. Idempotent."""
        with self._lock:
            session = self._open.pop(session_id, None)
            if session is None:
                return
            self._nfs.withdraw(session.record.export_path)
            session.close()
            log.info("session withdrawn", session=session_id)

    def _open_image(self, point_id: str, disk_number: int) -> BlockReader:
        return ReadAheadReader(self._repository.open_image(point_id, disk_number))


def sessions_folder(home: Path) -> Path:
    return home / "sessions"
