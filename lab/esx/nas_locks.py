"""Lock files of NFS version 3 as ESXi makes them, for one running machine.

Beside each file that a host has open for writing lies `.lck-<16 hex digits of the file's id, little
end first>`, made exclusively, 84 bytes with the host's name from byte 20, and written anew again
and again. For the .vmx it is `NAME.vmx.lck`. A lock that is still written anew is somebody's, and
power-on is refused; one that is not is left over from a host that died, and broken.
Thread model: one caller at a time; a thread keeps the locks alive, which `release` joins.
Source: design notes on vSphere, section 5 "Locks", and on exports, B.12.
"""

from __future__ import annotations

import contextlib
import secrets
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from lab.esx.datastore import Datastores
from lab.esx.datastore_path import DatastorePath
from lab.esx.errors import FileLockedError, FileMissingError, FileThereError, HostError
from lab.esx.nas_datastore import NasDatastore, NasTimings
from lab.esx.nfs_files import NfsFiles

_LOCK = struct.Struct("<IQQ64s")  # magic, owner, counter, host name
assert _LOCK.size == 84
_MAGIC = 0x4C464D56
_HOST_BYTES_MAX = 63
_ATTEMPTS = 3
_OWNER = secrets.randbits(63)  # of this process: two labs may have hosts of one name


@dataclass(frozen=True, slots=True)
class LockState:
    owner: int
    counter: int
    host: str


class NasLocks:
    def __init__(self, datastores: Datastores, host: str, timings: NasTimings) -> None:
        self._datastores = datastores
        self._host = host
        self._timings = timings
        self._held: list[DatastorePath] = []
        self._counter = 0
        self._ended = threading.Event()
        self._keeper: threading.Thread | None = None

    @property
    def held(self) -> tuple[DatastorePath, ...]:
        return tuple(self._held)

    def acquire(self, files: Iterable[DatastorePath]) -> None:
        """Lock these files; those of other kinds of datastores need none.

        Blocks for as long as it takes to see whether a lock that is there is alive.

        Raises:
            FileLockedError: another host has one; nothing is locked.
        """
        try:
            for path in files:
                if isinstance(self._datastores.get(path.datastore), NasDatastore):
                    self._take(path)
        except BaseException:
            self.release()
            raise
        if self._held and self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="lab-locks", daemon=True)
            self._keeper.start()

    def release(self) -> None:
        """Remove the locks, as far as the datastore can be reached. Idempotent."""
        self._ended.set()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None
        self._ended.clear()
        for path in self._held:
            with contextlib.suppress(HostError):
                self._datastores.delete_if_there(path)
        self._held.clear()

    def _take(self, path: DatastorePath) -> None:
        files = self._nfs(path)
        lock = lock_path(files, path)
        for _ in range(_ATTEMPTS):
            try:
                files.create_with(lock.path, self._content())
            except FileThereError:
                self._break(files, path, lock)
            else:
                self._held.append(lock)
                return
        raise FileLockedError(f"{path} is locked by another host", file=str(path))

    def _break(self, files: NfsFiles, path: DatastorePath, lock: DatastorePath) -> None:
        """Remove a lock that nobody writes anew. Raises FileLockedError."""
        before = read_lock(files, lock.path)
        step_s = self._timings.lock_update_s
        for _ in range(self._timings.lock_updates_missed):
            if before is None:
                return
            self._ended.wait(step_s)
            now = read_lock(files, lock.path)
            if now is not None and now != before:
                raise FileLockedError(f"{path} is locked by host {now.host}", file=str(path))
            before = now
        with contextlib.suppress(FileMissingError):
            files.delete(lock.path)

    def _keep(self) -> None:
        while not self._ended.wait(self._timings.lock_update_s):
            self._counter += 1
            for path in self.held:
                with contextlib.suppress(HostError):  # tried again with the next
                    self._nfs(path).write_at(path.path, 0, self._content())

    def _content(self) -> bytes:
        host = self._host.encode()[:_HOST_BYTES_MAX]
        return _LOCK.pack(_MAGIC, _OWNER, self._counter, host)

    def _nfs(self, path: DatastorePath) -> NfsFiles:
        datastore = self._datastores.get(path.datastore)
        assert isinstance(datastore, NasDatastore)
        return datastore.files


def lock_path(files: NfsFiles, path: DatastorePath) -> DatastorePath:
    """Where a file's lock is. Raises FileMissingError."""
    if path.name.endswith(".vmx"):
        return path.sibling(f"{path.name}.lck")
    return path.sibling(f".lck-{files.fileid(path.path).to_bytes(8, 'little').hex()}")


def read_lock(files: NfsFiles, path: str) -> LockState | None:
    """None when it is gone."""
    try:
        raw = files.read_at(path, 0, _LOCK.size)
    except FileMissingError:
        return None
    _magic, owner, counter, host = _LOCK.unpack(raw.ljust(_LOCK.size, b"\0"))
    return LockState(owner, counter, host.rstrip(b"\0").decode("utf-8", "replace"))
