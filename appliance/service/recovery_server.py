"""The sessions that this appliance serves: opened, shown over NFS, iSCSI, SMB or NBD, found after a
restart.

    restart -> every session folder -> overlays opened -> the same handles served again

Invariants: a session is served from its creation until it is withdrawn, which is after the last
host has unmounted it. One that cannot be opened is reported and stops no other. The NFS server
listens only after all sessions are published: a host that comes back early would else see its
datastore without files. The iSCSI and SMB servers run only while there is a session for them:
nobody else needs tgt and Samba, nor their ports.

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
from appliance.blocks.free_room import RoomKeepingDevice
from appliance.blocks.read_ahead import ReadAheadReader
from appliance.blocks.write_through import WriteThroughDevice
from appliance.exports.datastore.session import (
    OpenSession,
    Presentation,
    SessionRecord,
    SessionStore,
)
from appliance.exports.iscsi.server import IscsiServer
from appliance.exports.iscsi.target import IscsiTarget, Lun
from appliance.exports.nbd import NbdExport, NbdServer
from appliance.exports.nfs import NfsServer, nfs_export
from appliance.exports.smb.server import SmbServer
from appliance.exports.smb.share import SmbShare
from appliance.repository.repository import Repository

log = EventLog(__name__)

_UNFINISHED_AFTER = timedelta(hours=1)  # no start takes longer to publish


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSession:
    """A session and whether hosts can reach it."""

    record: SessionRecord
    served: bool
    failure: str | None  # why not


class IscsiNotServedError(ApplianceError):
    """This process does not serve sessions over iSCSI; `holdfast serve` does."""

    code = "instant.iscsi-not-served"


class SmbNotServedError(ApplianceError):
    """This process does not serve sessions over SMB; `holdfast serve` does."""

    code = "instant.smb-not-served"


class RecoveryServer:
    def __init__(
        self,
        store: SessionStore,
        repository: Repository,
        nfs: NfsServer,
        *,
        iscsi: IscsiServer | None = None,
        smb: SmbServer | None = None,
        reserve_bytes: int = 0,
    ) -> None:
        """`reserve_bytes`: kept free on the disk of the sessions; writes beyond get NOSPC."""
        self._iscsi = iscsi
        self._smb = smb
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
            if self._iscsi is not None:
                self._iscsi.stop()
            if self._smb is not None:
                self._smb.stop()
            for session in self._open.values():
                self._hide(session)
            self._open.clear()

    @property
    def address(self) -> str:
        """See `SessionServer`."""
        return self._nfs.address

    @property
    def port(self) -> int:
        return self._nfs.port

    @property
    def iscsi_port(self) -> int:
        """0: sessions for iSCSI are not served here."""
        return self._iscsi.port if self._iscsi is not None else 0

    @property
    def smb_port(self) -> int:
        """0: sessions for SMB are not served here."""
        return self._smb.port if self._smb is not None else 0

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
        match record.presentation:
            case Presentation.NFS:
                assert session.tree is not None
                self._nfs.publish(
                    nfs_export(record.export_path, record.tree_id, session.tree, record.clients)
                )
            case Presentation.ISCSI:
                assert session.volume is not None
                device = RoomKeepingDevice(session.volume.device, session.room)
                self._show_luns(record, [Lun(number=1, identity=record.session_id, device=device)])
            case Presentation.PASS_THROUGH:
                self._show_luns(
                    record,
                    [
                        Lun(
                            number=place,
                            identity=record.disk_serial(disk),
                            device=RoomKeepingDevice(device, session.room),
                        )
                        for place, (disk, device) in enumerate(session.devices.items(), 1)
                    ],
                )
            case Presentation.SHARE:
                self._show_share(record, session)
            case Presentation.NBD:
                self._show_disks(record, session)

    def _show_luns(self, record: SessionRecord, luns: Sequence[Lun]) -> None:
        if self._iscsi is None:
            raise IscsiNotServedError(f"session {record.session_id} is for iSCSI")
        target = IscsiTarget(
            name=record.target_name,
            luns=tuple(luns),
            chap=self._store.chap(record.session_id),
            initiators=record.clients,
        )
        self._iscsi.publish(target)
        if not self._iscsi.running:
            try:
                self._iscsi.start()
            except BaseException:
                self._iscsi.withdraw(target.name)
                raise

    def _show_share(self, record: SessionRecord, session: OpenSession) -> None:
        if self._smb is None:
            raise SmbNotServedError(f"session {record.session_id} is for SMB")
        files = {
            name: RoomKeepingDevice(file, session.room) for name, file in session.files.items()
        }
        self._smb.publish(SmbShare(name=record.share_name, files=files, clients=record.clients))

    def _show_disks(self, record: SessionRecord, session: OpenSession) -> None:
        exports = [
            NbdExport(
                name=f"disk-{number}",
                disk=WriteThroughDevice(RoomKeepingDevice(device, session.room)),
                read_only=False,
            )
            for number, device in session.devices.items()
        ]
        path = self._store.nbd_socket(record.session_id)
        path.unlink(missing_ok=True)  # of a daemon that was killed; the overlays' locks are ours
        server = NbdServer(exports, address=path)
        server.start()
        self._nbd[record.session_id] = server

    def _hide(self, session: OpenSession) -> None:
        record = session.record
        match record.presentation:
            case Presentation.NFS:
                self._nfs.withdraw(record.export_path)
            case Presentation.ISCSI | Presentation.PASS_THROUGH:
                if self._iscsi is not None:
                    self._iscsi.withdraw(record.target_name)
                    if not self._iscsi.target_names:
                        self._iscsi.stop()
            case Presentation.SHARE:
                if self._smb is not None:
                    self._smb.withdraw(record.share_name)
            case Presentation.NBD:
                self._nbd.pop(record.session_id).stop()
        session.close()

    def _open_image(self, point_id: str, disk_number: int) -> BlockReader:
        return ReadAheadReader(self._repository.open_image(point_id, disk_number))


def samba_folder(home: Path) -> Path:
    return home / "smb"


def sessions_folder(home: Path) -> Path:
    return home / "sessions"
