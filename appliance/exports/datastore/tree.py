"""A recovery session's folder, as `nfs_server.vfs.Tree` wants it.

Under one root: the disks (`-flat.vmdk`, each over its overlay), and whatever else is published or
made by the host: descriptors, the .vmx, NVRAM, logs, locks, swap. Disks have a fixed size and are
never copied; removing one's name here takes nothing from the recovery point.

Times of a file that is written to are kept in memory: after a restart they come from the file
system (scratch) or are now (disks that can be written), so no client takes what it has cached for
the present content.

Thread model and durability: as the contract says; `attributes`, `lookup` and `parent` read dicts.
"""

from __future__ import annotations

import errno
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from appliance.base.atomic import make_folders
from appliance.base.errors import ApplianceError, OutOfRangeError, StorageFullError
from appliance.base.log import EventLog
from appliance.blocks.device import BlockDevice, BlockReader
from appliance.blocks.free_room import FreeRoom
from appliance.exports.datastore.names import NODES_MAX, ROOT, Kind, NameTable, Node
from appliance.exports.datastore.scratch import ScratchFiles
from nfs_server.errors import VfsError
from nfs_server.protocol import FileType, Status
from nfs_server.vfs import AttributeChanges, Attributes, Buffer, Entry, Space

_TYPES = {Kind.FOLDER: FileType.DIRECTORY, Kind.SYMLINK: FileType.SYMLINK}
_FOLDER_BYTES = 4096
_KNOWN_MAX = 1024  # attributes kept ready
_CLOCK_STEP_NS = 20_000_000  # by which a file system's times may be behind ours
_LOGGED_MAX = 100  # different errors of one folder

log = EventLog(__name__)


class SessionTree:
    """Use one per session folder; `close` it before the overlays of its disks."""

    root = ROOT

    def __init__(
        self,
        folder: Path,
        disks: Mapping[int, BlockReader],
        *,
        read_only: bool = False,
        reserve_bytes: int = 0,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """
        Args:
            folder: made if need be; holds `names.lmdb` and `files`.
            disks: by the number that `add_disk` was given; each a BlockDevice unless `read_only`.
            reserve_bytes: below this much free space, writes are refused with NOSPC.

        Raises: StorageError.
        """
        make_folders(folder)
        folder.chmod(0o700)
        self._folder = folder
        self.read_only = read_only
        self._disks = dict(disks)
        self._room = FreeRoom(folder, reserve_bytes)
        self._now_ns = now_ns
        self._names = NameTable(folder / "names.lmdb", now_ns)
        self._scratch = ScratchFiles(folder / "files")
        for orphan in self._scratch.numbers() - set(self._names.nodes):
            self._scratch.remove(orphan)  # its name went, and then we
        self._lock = threading.Lock()
        # When content last changed, of files where that was after what their nodes say.
        self._written_ns = {} if read_only else self._last_writes()
        self._known: dict[int, tuple[tuple[Node, int, int], Attributes]] = {}
        self._listing: tuple[object, list[int], list[Entry]] = (None, [], [])
        self._logged: set[str] = set()

    def close(self) -> None:
        self._scratch.close()
        self._names.close()

    def add_disk(self, folder: int, name: bytes, disk: int) -> int:
        """Publish a disk under a name; the same number as before when it is there already."""
        try:
            found = self._names.find(folder, name)
        except VfsError as error:
            if error.status is not Status.NOENT:
                raise
            owned = AttributeChanges(mode=0o600)
            return self._names.add(folder, name, Kind.DISK, owned, disk=disk).number
        if found.disk != disk:
            raise VfsError(Status.EXIST)
        return found.number

    # vfs: looking

    def attributes(self, number: int) -> Attributes:
        node = self._names.node(number)
        written_ns = self._written_ns.get(number, 0)
        size_bytes, used_bytes = self._sizes(node)
        known = self._known.get(number)
        state = (node, written_ns, size_bytes)
        if known is not None and known[0] == state:
            return known[1]
        attributes = self._attributes(node, written_ns, size_bytes, used_bytes)
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[number] = (state, attributes)
        return attributes

    def _attributes(
        self, node: Node, written_ns: int, size_bytes: int, used_bytes: int
    ) -> Attributes:
        return Attributes(
            type=_TYPES.get(node.kind, FileType.REGULAR),
            mode=node.mode,
            links=node.links,
            uid=node.uid,
            gid=node.gid,
            size_bytes=size_bytes,
            used_bytes=used_bytes,
            number=node.number,
            accessed_ns=node.accessed_ns,
            modified_ns=written_ns or node.modified_ns,
            changed_ns=max(node.changed_ns, written_ns),
        )

    def lookup(self, folder: int, name: bytes) -> int:
        return self._names.find(folder, name).number

    def parent(self, folder: int) -> int:
        return self._names.node(folder).parent

    def list(self, folder: int, after: int, limit: int) -> Sequence[Entry]:
        entries = self._names.folder(folder)
        listed, cookies, listing = self._listing  # a table is replaced when it changes
        if listed is not entries:
            listing = [
                Entry(name=name, number=place.number, cookie=place.cookie)
                for name, place in entries.items()
            ]
            cookies = [entry.cookie for entry in listing]
            self._listing = (entries, cookies, listing)
        first = bisect_right(cookies, after)
        return listing[first : first + limit]

    def read_symlink(self, number: int) -> bytes:
        return bytes.fromhex(self._names.node(number).link_hex)

    def space(self) -> Space:
        room = self._room.look()
        return Space(
            total_bytes=room.total_bytes,
            free_bytes=room.free_bytes,
            total_files=NODES_MAX,
            free_files=max(0, NODES_MAX - len(self._names.nodes)),
        )

    # vfs: content

    def try_read(self, number: int, offset: int, length: int) -> Buffer | None:
        node = self._names.node(number)
        if node.kind is not Kind.DISK:
            return self._scratch.try_read(number, offset, length)
        try:
            return self._disk(node).try_read_at(offset, length)
        except ApplianceError:
            return None  # `read` reports it

    def read(self, number: int, offset: int, length: int) -> Buffer:
        node = self._names.node(number)
        try:
            if node.kind is Kind.DISK:
                return self._disk(node).read_at(offset, length)
            return self._scratch.read(number, offset, length)
        except (ApplianceError, OSError) as error:
            raise self._translated(error) from error

    def write(self, number: int, offset: int, data: Buffer) -> None:
        node = self._names.node(number)
        try:
            self._room.check(len(data))
            if node.kind is Kind.DISK:
                self._device(node).write_at(offset, memoryview(data))
            elif node.kind is Kind.SCRATCH:
                self._scratch.write(number, offset, data)
            else:
                raise VfsError(Status.INVAL)
        except (ApplianceError, OSError) as error:
            raise self._translated(error) from error
        self._written(number)
        self._check_not_removed(node)

    def sync(self, number: int) -> None:
        node = self._names.node(number)
        try:
            if node.kind is Kind.DISK:
                self._device(node).flush()
            else:
                self._scratch.sync(number)
        except (ApplianceError, OSError) as error:
            raise self._translated(error) from error

    # vfs: changing

    def set_attributes(self, number: int, changes: AttributeChanges) -> None:
        node = self._names.node(number)
        if changes.size_bytes is not None:
            self._resize(node, changes.size_bytes)
        with self._lock:  # a change of the times may come between two writes
            written_ns = self._written_ns.get(number, 0)
        self._names.set_attributes(number, changes, later_than_ns=written_ns)
        if changes.modified is not None:
            with self._lock:
                if self._written_ns.get(number) == written_ns:
                    del self._written_ns[number]
            if node.kind is Kind.SCRATCH:
                self._keep_modified(number)

    def create(
        self, folder: int, name: bytes, changes: AttributeChanges, *, exclusive: bytes | None = None
    ) -> int:
        try:
            node = self._names.add(folder, name, Kind.SCRATCH, changes, exclusive=exclusive or b"")
        except VfsError as error:
            if error.status is not Status.EXIST or exclusive is None:
                raise
            node = self._names.find(folder, name)
            if node.verifier_hex != exclusive.hex():
                raise
        if changes.size_bytes:
            self._resize(node, changes.size_bytes)
        return node.number

    def make_folder(self, folder: int, name: bytes, changes: AttributeChanges) -> int:
        return self._names.add(folder, name, Kind.FOLDER, changes).number

    def make_symlink(
        self, folder: int, name: bytes, target: bytes, changes: AttributeChanges
    ) -> int:
        return self._names.add(folder, name, Kind.SYMLINK, changes, link=target).number

    def link(self, number: int, folder: int, name: bytes) -> None:
        self._names.link(number, folder, name)

    def remove(self, folder: int, name: bytes) -> None:
        self._drop(self._names.remove(folder, name, is_folder=False))

    def remove_folder(self, folder: int, name: bytes) -> None:
        self._names.remove(folder, name, is_folder=True)

    def rename(self, folder: int, name: bytes, new_folder: int, new_name: bytes) -> None:
        replaced = self._names.rename(folder, name, new_folder, new_name)
        if replaced is not None:
            self._drop(replaced)

    # inside

    def _drop(self, node: Node) -> None:
        """Its content, once its last name is gone."""
        if node.kind is Kind.SCRATCH and node.number not in self._names.nodes:
            self._scratch.remove(node.number)
            with self._lock:
                self._written_ns.pop(node.number, None)

    def _device(self, node: Node) -> BlockDevice:
        return cast(BlockDevice, self._disk(node))  # the server refuses writes when read-only

    def _disk(self, node: Node) -> BlockReader:
        device = None if node.disk is None else self._disks.get(node.disk)
        if device is None:
            raise VfsError(Status.IO, f"disk {node.disk} is not open")
        return device

    def _sizes(self, node: Node) -> tuple[int, int]:
        if node.kind is Kind.DISK:
            device = None if node.disk is None else self._disks.get(node.disk)
            size_bytes = 0 if device is None else device.size_bytes
            return size_bytes, size_bytes
        if node.kind is Kind.FOLDER:
            return _FOLDER_BYTES, _FOLDER_BYTES
        if node.kind is Kind.SYMLINK:
            return len(node.link_hex) // 2, 0
        return self._scratch.size_bytes(node.number), self._scratch.used_bytes(node.number)

    def _resize(self, node: Node, size_bytes: int) -> None:
        if node.kind is Kind.DISK:
            if size_bytes != self._disk(node).size_bytes:
                raise VfsError(Status.INVAL, "a disk of a recovery session keeps its size")
            return
        if node.kind is not Kind.SCRATCH:
            raise VfsError(Status.ISDIR if node.kind is Kind.FOLDER else Status.INVAL)
        try:
            self._scratch.resize(node.number, size_bytes)
        except OSError as error:
            raise self._translated(error) from error
        self._written(node.number)
        self._check_not_removed(node)

    def _check_not_removed(self, node: Node) -> None:
        """A removal that came between must not leave content behind."""
        if node.number not in self._names.nodes:
            self._drop(node)
            raise VfsError(Status.STALE)

    def _last_writes(self) -> dict[int, int]:
        """As far as they are known from before: of disks all that is sure is that they are over."""
        now_ns = self._now_ns()
        found = {}
        for number, node in self._names.nodes.items():
            written_ns = self._scratch.modified_ns.get(number, node.modified_ns)
            if node.kind is Kind.DISK:
                found[number] = max(now_ns, node.modified_ns + 1)
            elif 0 < node.modified_ns - written_ns < _CLOCK_STEP_NS:
                found[number] = node.modified_ns + 1
            elif written_ns != node.modified_ns:
                found[number] = written_ns
        return found

    def _keep_modified(self, number: int) -> None:
        try:
            self._scratch.set_modified(number, self._names.node(number).modified_ns)
        except OSError as error:
            raise self._translated(error) from error

    def _written(self, number: int) -> None:
        with self._lock:
            node = self._names.nodes.get(number)
            if node is not None:
                last_ns = max(self._written_ns.get(number, 0), node.changed_ns)
                self._written_ns[number] = max(self._now_ns(), last_ns + 1)

    def _translated(self, error: ApplianceError | OSError) -> VfsError:
        """What a client gets. What ails our storage is for the operator too, once."""
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, StorageFullError) or number in (errno.ENOSPC, errno.EDQUOT):
            return VfsError(Status.NOSPC, str(error))
        if isinstance(error, OutOfRangeError) or number == errno.EFBIG:
            return VfsError(Status.FBIG, str(error))
        text = str(error)
        if text not in self._logged and len(self._logged) < _LOGGED_MAX:
            self._logged.add(text)
            log.error("storage of a served folder failed", folder=self._folder, error=text)
        return VfsError(Status.IO, text)
