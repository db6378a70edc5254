"""The sessions that this appliance serves: opened, shown over NFS or NBD, found after a restart.

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
from datetime import timedelta
from pathlib import Path

from appliance.base.clock import SystemClock
from appliance.base.errors import ApplianceError
from appliance.base.log import EventLog
from appliance.blocks.device import BlockReader
from appliance.blocks.read_ahead import ReadAheadReader
from appliance.blocks.write_through import WriteThroughDevice
from appliance.exports.datastore.session import (
    OpenSession,
    Presentation,
    SessionRecord,
    SessionStore,
)
from appliance.exports.nbd import NbdExport, NbdServer
from appliance.exports.nfs import NfsServer, nfs_export
from appliance.repository.repository import Repository

log = EventLog(__name__)

_UNFINISHED_AFTER = timedelta(hours=1)  # no start takes longer to publish


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSession:
    """A session and whether hosts can reach it."""

    record: SessionRecord
    served: bool
    failure: str | None  # why not


def sessions_points(server: RecoveryServer) -> frozenset[str]:
    """The points that sessions run from. Raises StorageError."""
    return frozenset(session.record.point_id for session in server.sessions())


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
        self._nbd: dict[str, NbdServer] = {}
        self._failures: dict[str, str] = {}
        self._lock = threading.RLock()

    def start(self) -> None:
        """Serve every session there is, then listen. Raises StorageError: nothing listens.

        What a start that was killed left of a session folder is removed.
        """
        self._store.remove_unfinished(SystemClock().now() - _UNFINISHED_AFTER)
        for damaged in self._store.damaged():
            log.error("session damaged", error=str(damaged))
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
                self._hide(session)
            self._open.clear()

    @property
    def port(self) -> int:
        return self._nfs.port

    def sessions(self) -> Sequence[ServedSession]:
        """All whole sessions, oldest first. Raises StorageError."""
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
            session = self._store.open(record, self._open_image, reserve_bytes=self._reserve_bytes)
            try:
                self._show(record, session)
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
            self._hide(session)
            log.info("session withdrawn", session=session_id)

    def _show(self, record: SessionRecord, session: OpenSession) -> None:
        if record.presentation is Presentation.NFS:
            self._nfs.publish(
                nfs_export(record.export_path, record.tree_id, session.tree, record.clients)
            )
            return
        exports = [
            NbdExport(name=f"disk-{number}", disk=WriteThroughDevice(device), read_only=False)
            for number, device in session.devices.items()
        ]
        path = self._store.nbd_socket(record.session_id)
        path.unlink(missing_ok=True)  # of a daemon that was killed; the overlays' locks are ours
        server = NbdServer(exports, address=path)
        server.start()
        self._nbd[record.session_id] = server

    def _hide(self, session: OpenSession) -> None:
        server = self._nbd.pop(session.record.session_id, None)
        if server is not None:
            server.stop()
        else:
            self._nfs.withdraw(session.record.export_path)
        session.close()

    def _open_image(self, point_id: str, disk_number: int) -> BlockReader:
        return ReadAheadReader(self._repository.open_image(point_id, disk_number))


def sessions_folder(home: Path) -> Path:
    return home / "sessions"
