"""A recovery session on this appliance: its folder says all of it, and outlives us.

    HOME/sessions/<session id>/
        session.json    what it is and how far it came; replaced as a whole
        working         locked by the command that changes the session
        disk-<n>/       overlay of each disk: what the guest has written
        tree/           names and scratch files that the host made beside the disks (NFS, NBD)
        volume/         the NTFS volume that shows the disks as VHDX files (iSCSI)
        file-<n>/       the VHDX file around a disk (SMB)
        chap            what hosts log in with (iSCSI)

The folder is the truth: sessions are found by listing folders, so a lost catalog loses no guest's
writes. `session.json` is written last at the start and removed first at the end; a folder without
it holds no session and is removed.

Thread model: `SessionStore` any thread; an `OpenSession` belongs to the one server that has it,
which the overlays' locks see to.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from appliance.base.atomic import fsync_directory, make_folders, replace_file
from appliance.base.errors import ApplianceError, StorageError, UsageError
from appliance.base.locked_file import LockMode, try_lock
from appliance.base.secret import Secret
from appliance.blocks.composed_device import ComposedDevice
from appliance.blocks.device import BlockReader
from appliance.blocks.free_room import FreeRoom
from appliance.blocks.overlay import Overlay
from appliance.exports.datastore.tree import SessionTree
from appliance.exports.iscsi.target import Chap, disk_serial, new_secret, target_name
from appliance.exports.smb.share import share_name
from appliance.exports.vhdx_volume.file import build_file
from appliance.exports.vhdx_volume.volume import OpenVolume, VolumeDisk, build_volume, open_volume
from nfs_server.vfs import AttributeChanges

_FILE = "session.json"
_LIMIT_BYTES = 1 << 20
_ID_BYTES = 4
_VOLUME, _CHAP = "volume", "chap"
_CHAP_LIMIT_BYTES = 64
_Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[\x21-\x7e]+$")]


class SessionDamagedError(ApplianceError):
    """The folder of a recovery session cannot be understood; the message names it. What the guest
    wrote may still be in its overlays: keep the folder until that is settled."""

    code = "session.damaged"


class SessionNotFoundError(ApplianceError):
    """There is no such recovery session; `holdfast instant list` shows which there are."""

    code = "session.not-found"


class SessionBusyError(ApplianceError):
    """Another command works on this recovery session; wait for its end."""

    code = "session.busy"
    retryable = True


class Phase(StrEnum):
    """How far a session came; it never goes back."""

    PUBLISHED = "published"  # the folder is whole and may be served
    MOUNTED = "mounted"  # a host has it as a datastore
    REGISTERED = "registered"  # a VM was made from it
    RUNNING = "running"  # the VM was powered on
    FINALISING = "finalising"  # its disks are moving to production storage
    MOVED = "moved"  # they have left: the folder may go once it is unmounted
    DISCARDING = "discarding"


class Presentation(StrEnum):
    """How a session is shown."""

    NFS = "nfs"  # a datastore of vSphere hosts
    NBD = "nbd"  # its disks on a local socket, for QEMU
    ISCSI = "iscsi"  # VHDX files on an NTFS volume on a LUN, for Hyper-V hosts
    PASS_THROUGH = "pass-through"  # each disk as a LUN, for Hyper-V hosts
    SHARE = "share"  # VHDX files on an SMB share, for Hyper-V hosts


_TREES = (Presentation.NFS, Presentation.NBD)
_LUNS = (Presentation.ISCSI, Presentation.PASS_THROUGH)


class SessionStep(BaseModel):
    """One step of a start, a finalise or a discard, done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(max_length=64)
    seconds: float = Field(ge=0)
    ended_at: AwareDatetime


class SessionDisk(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=0, lt=256)
    size_bytes: int = Field(ge=0)
    file: _Name  # the flat file that shows it, inside the VM's folder


class SessionRecord(BaseModel):
    """`session.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=1, ge=1, le=1)
    session_id: Annotated[str, StringConstraints(pattern="^[0-9a-f]{8}$")]
    created_at: AwareDatetime
    point_id: str
    vm: str
    folder: _Name  # of the VM, inside the datastore
    disks: tuple[SessionDisk, ...]
    tree_id: int = Field(gt=0, lt=1 << 64)
    clients: tuple[str, ...]
    phase: Phase = Phase.PUBLISHED
    host: str | None = None  # registered hypervisor
    presentation: Presentation = Presentation.NFS
    target_state: str = Field(default="", max_length=65536)  # the target's own document
    vm_key: str | None = None  # the VM that was made from it, as the hypervisor calls it
    power_on: bool = False  # wanted
    owner_run: str = Field(
        default="", max_length=64
    )  # verification that discards it; else a person
    restart: bool = False  # a finalise has shut the VM down, and is to start it again
    steps: tuple[SessionStep, ...] = ()
    stuck: str | None = Field(default=None, max_length=4096)  # why the last step failed

    @property
    def export_path(self) -> str:
        return f"/holdfast/{self.session_id}"

    @property
    def target_name(self) -> str:
        """The iSCSI name that hosts log in to."""
        return target_name(self.session_id)

    @property
    def share_name(self) -> str:
        return share_name(self.session_id)

    def disk_serial(self, number: int) -> str:
        """Of the LUN that shows one disk alone."""
        return disk_serial(self.session_id, number)

    @property
    def datastore(self) -> str:
        """The same on all hosts, and no longer than ESXi takes (42)."""
        return f"holdfast-{self.session_id}"


OpenImage = Callable[[str, int], BlockReader]
"""Opens a disk of a recovery point by number; whoever called closes it."""


class OpenSession:
    """The overlays of one session and what shows them; `close` it when it is served no more.

    One for NFS or NBD has a `tree`, one for a volume over iSCSI a `volume`. What guests write is
    to keep to `room`: the tree sees to that itself, devices by a `RoomKeepingDevice`.
    """

    def __init__(
        self, folder: Path, record: SessionRecord, open_image: OpenImage, *, reserve_bytes: int
    ) -> None:
        """Go on with what is there. Raises as `Overlay.open` and the point's images do."""
        self.record = record
        self.room = FreeRoom(folder, reserve_bytes)
        self._stack = ExitStack()
        try:
            self.devices: dict[int, Overlay] = {}
            for disk in record.disks:
                image = open_image(record.point_id, disk.number)
                self._stack.callback(image.close)
                identity = _identity(record, disk)
                self.devices[disk.number] = overlay = Overlay.open(
                    _overlay_folder(folder, disk), image, identity
                )
                self._stack.callback(overlay.close)
            self.tree: SessionTree | None = None
            self.volume: OpenVolume | None = None
            self.files: dict[str, ComposedDevice] = {}  # of a share, by name
            if record.presentation is Presentation.ISCSI:
                self.volume = open_volume(folder / _VOLUME, self.devices)
                self._stack.callback(self.volume.close)
            elif record.presentation is Presentation.SHARE:
                for disk in record.disks:
                    opened = open_volume(_file_folder(folder, disk), self.devices)
                    self._stack.callback(opened.close)
                    self.files[disk.file] = opened.device
            elif record.presentation in _TREES:
                self.tree = SessionTree(folder / "tree", self.devices, reserve_bytes=reserve_bytes)
                self._stack.callback(self.tree.close)
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """Everything acknowledged is durable already. Idempotent."""
        self._stack.close()


class SessionStore:
    """The sessions under HOME/sessions."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def new_id(self) -> str:
        return secrets.token_hex(_ID_BYTES)

    def create(
        self,
        record: SessionRecord,
        files: Mapping[str, bytes],
        open_image: OpenImage,
    ) -> None:
        """Make the folder: empty overlays, and the VM's folder with its disks and `files`, or the
        volume that shows them.

        After a crash there is a whole session or none.

        Raises: StorageError, StorageFullError, UsageError, and as the point's images do and
            `build_volume`.
        """
        folder = self._folder / record.session_id
        try:
            make_folders(self._folder)
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise StorageError(f"{folder}: {error.strerror}") from error
        try:
            with ExitStack() as stack:
                devices: dict[int, BlockReader] = {}
                for disk in record.disks:
                    image = open_image(record.point_id, disk.number)
                    stack.callback(image.close)
                    identity = _identity(record, disk)
                    devices[disk.number] = overlay = Overlay.create(
                        _overlay_folder(folder, disk), image, identity
                    )
                    stack.callback(overlay.close)
                if record.presentation in _TREES:
                    tree = SessionTree(folder / "tree", devices)
                    stack.callback(tree.close)
                    _publish(tree, record, files)
            if record.presentation is Presentation.ISCSI:
                build_volume(folder / _VOLUME, _volume_disks(record))
            if record.presentation is Presentation.SHARE:
                for disk, described in zip(record.disks, _volume_disks(record), strict=True):
                    build_file(_file_folder(folder, disk), described)
            if record.presentation in _LUNS:
                replace_file(folder / _CHAP, new_secret().reveal())
            self._write(record)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def list(self) -> Sequence[SessionRecord]:
        """All whole sessions, oldest first; those that are not are `damaged`."""
        found = [each for each in self._read() if isinstance(each, SessionRecord)]
        return sorted(found, key=lambda record: record.created_at)

    def damaged(self) -> Sequence[SessionDamagedError]:
        """What cannot be understood, each named; their folders are left alone."""
        return [each for each in self._read() if isinstance(each, SessionDamagedError)]

    def _read(self) -> Iterator[SessionRecord | SessionDamagedError]:
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.iterdir()):
            if not (path / _FILE).is_file():
                continue
            try:
                yield self.get(path.name)
            except SessionNotFoundError:
                continue  # removed meanwhile
            except SessionDamagedError as error:
                yield error

    def get(self, session_id: str) -> SessionRecord:
        """Raises SessionNotFoundError, SessionDamagedError."""
        if not session_id.isalnum():
            raise SessionNotFoundError(f"no session {session_id!r}")
        path = self._folder / session_id / _FILE
        try:
            with path.open("rb") as file:
                raw = file.read(_LIMIT_BYTES + 1)
        except FileNotFoundError as error:
            raise SessionNotFoundError(f"no session {session_id}") from error
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error
        try:
            record = SessionRecord.model_validate_json(raw)
        except ValidationError as error:
            raise SessionDamagedError(f"{path}: {error}") from error
        if record.session_id != session_id:
            raise SessionDamagedError(f"{path} is about session {record.session_id}")
        return record

    def update(self, record: SessionRecord, **changes: Any) -> SessionRecord:
        """Replace `session.json`; durable on return. Raises StorageError."""
        changed = record.model_copy(update=changes)
        self._write(changed)
        return changed

    def open(
        self, record: SessionRecord, open_image: OpenImage, *, reserve_bytes: int = 0
    ) -> OpenSession:
        """Raises as `OpenSession`."""
        folder = self._folder / record.session_id
        return OpenSession(folder, record, open_image, reserve_bytes=reserve_bytes)

    @contextmanager
    def working_on(self, session_id: str) -> Iterator[None]:
        """Be the only one to change the session for the block.

        Raises: SessionBusyError, SessionNotFoundError, StorageError.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self._folder / session_id / "working", flags, 0o600)
        except FileNotFoundError as error:
            raise SessionNotFoundError(f"no recovery session {session_id}") from error
        except OSError as error:
            raise StorageError(f"{self._folder / session_id}: {error.strerror}") from error
        try:
            if not try_lock(fd, LockMode.EXCLUSIVE):
                raise SessionBusyError(f"another process works on session {session_id}")
            yield
        finally:
            os.close(fd)

    def chap(self, session_id: str) -> Chap:
        """What hosts log in to a session for iSCSI with.

        Raises: SessionNotFoundError, SessionDamagedError.
        """
        path = self._folder / session_id / _CHAP
        try:
            secret = Secret(path.read_bytes()[:_CHAP_LIMIT_BYTES])
            return Chap(user=f"holdfast-{session_id}", secret=secret)
        except FileNotFoundError as error:
            raise SessionNotFoundError(f"no session {session_id} for iSCSI") from error
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error
        except UsageError as error:
            raise SessionDamagedError(f"{path}: {error}") from error

    def nbd_socket(self, session_id: str) -> Path:
        """Where a session that is shown over NBD is served."""
        return self._folder / session_id / "nbd"

    def remove(self, session_id: str) -> None:
        """Drop everything the guest wrote. Nobody may have it open. Idempotent."""
        folder = self._folder / session_id
        try:
            (folder / _FILE).unlink(missing_ok=True)
            if folder.is_dir():
                fsync_directory(folder)
        except OSError as error:
            raise StorageError(f"{folder}: {error.strerror}") from error
        shutil.rmtree(folder, ignore_errors=True)

    def remove_unfinished(self, older_than: datetime) -> None:
        """Remove folders without `session.json` that no start can still be working on."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if (path / _FILE).exists() or path.stat().st_mtime > older_than.timestamp():
                continue
            shutil.rmtree(path, ignore_errors=True)

    def _write(self, record: SessionRecord) -> None:
        path = self._folder / record.session_id / _FILE
        try:
            replace_file(path, record.model_dump_json(indent=1).encode())
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error


def _identity(record: SessionRecord, disk: SessionDisk) -> dict[str, Any]:
    return {"point": record.point_id, "disk": disk.number}


def _overlay_folder(folder: Path, disk: SessionDisk) -> Path:
    return folder / f"disk-{disk.number}"


def _file_folder(folder: Path, disk: SessionDisk) -> Path:
    return folder / f"file-{disk.number}"


def _volume_disks(record: SessionRecord) -> list[VolumeDisk]:
    return [
        VolumeDisk(
            number=disk.number,
            size_bytes=disk.size_bytes,
            content_id=f"{record.point_id}/{disk.number}",
        )
        for disk in record.disks
    ]


def _publish(tree: SessionTree, record: SessionRecord, files: Mapping[str, bytes]) -> None:
    """Make the VM's folder. Names were made by us; a clash is a mistake of ours."""
    vm_folder = tree.make_folder(tree.root, record.folder.encode(), AttributeChanges(mode=0o755))
    for disk in record.disks:
        tree.add_disk(vm_folder, disk.file.encode(), disk.number)
    for name, content in files.items():
        if "/" in name or name in ("", ".", ".."):
            raise UsageError(f"{name!r} is no file name")
        number = tree.create(vm_folder, name.encode(), AttributeChanges(mode=0o600))
        tree.write(number, 0, content)
        tree.sync(number)
