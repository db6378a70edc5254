"""Who has which file of the datastores open: what power on, hot-add and `/folder` ask.

| holder | files | mode |
|---|---|---|
| running VM | descriptor and data of each disk's leaf | exclusive |
| running VM | every parent in the chains; the .vmx, which may be copied but not changed | shared |
| hot-added disk, reading | the whole chain | shared |
| hot-added disk, writing | the leaf; parents shared | exclusive |
| NFC transfer, reading | the whole chain | shared, and refused with an HTTP reader |
| NFC transfer, writing | the disk, or the file | exclusive |
| HTTP reader | the file, but no .vmx | shared, and refused with an NFC transfer |

A reader over HTTP may have what nobody holds exclusively; a writer or a delete over HTTP only what
nobody holds at all. Source: design notes on vSphere, sections 4a, 4b and 5.

Invariants: `acquire` takes all of its files or none; a holder's own locks never conflict with
each other, and asking again changes the mode. Thread model: any thread; nothing blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from lab.esx.datastore_path import DatastorePath
from lab.esx.errors import FileLockedError


class LockMode(StrEnum):
    EXCLUSIVE = "exclusive"
    SHARED = "shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLock:
    path: DatastorePath
    holder: str
    mode: LockMode


class FileLocks:
    """Holders are names, like `vm-12` or `nfc lease 7`; they appear in the fault's text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[DatastorePath, dict[str, LockMode]] = {}

    def acquire(self, holder: str, files: Iterable[tuple[DatastorePath, LockMode]]) -> None:
        """Take all or none. Raises FileLockedError naming the first conflict."""
        wanted = list(files)
        with self._lock:
            for path, mode in wanted:
                self._refuse_conflict(holder, path, mode)
            for path, mode in wanted:
                self._held.setdefault(path, {})[holder] = mode

    def release(self, holder: str, paths: Iterable[DatastorePath] | None = None) -> None:
        """Give back these files, or all of the holder's; what it does not hold is ignored."""
        with self._lock:
            for path in list(self._held) if paths is None else paths:
                holders = self._held.get(path, {})
                holders.pop(holder, None)
                if not holders:
                    self._held.pop(path, None)

    @contextmanager
    def held(self, holder: str, files: Iterable[tuple[DatastorePath, LockMode]]) -> Iterator[None]:
        """Hold files that this holder does not hold already, for the block."""
        wanted = list(files)
        self.acquire(holder, wanted)
        try:
            yield
        finally:
            self.release(holder, [path for path, _ in wanted])

    def locks(self, path: DatastorePath) -> list[FileLock]:
        with self._lock:
            holders = dict(self._held.get(path, {}))
        return [
            FileLock(path=path, holder=holder, mode=mode)
            for holder, mode in sorted(holders.items())
        ]

    def all_locks(self) -> list[FileLock]:
        with self._lock:
            paths = sorted(self._held)
        return [lock for path in paths for lock in self.locks(path)]

    def all_locks_of(self, datastore: str) -> list[FileLock]:
        return [lock for lock in self.all_locks() if lock.path.datastore == datastore]

    def refuse_unless_readable(self, path: DatastorePath) -> None:
        """Raises FileLockedError when somebody holds the file exclusively."""
        for lock in self.locks(path):
            if lock.mode is LockMode.EXCLUSIVE:
                raise _locked(path, lock.holder)

    def refuse_unless_free(self, path: DatastorePath) -> None:
        """Raises FileLockedError when anybody holds the file, or one in this folder."""
        prefix = f"{path.path}/"
        for lock in self.all_locks():
            inside = lock.path.datastore == path.datastore and lock.path.path.startswith(prefix)
            if lock.path == path or inside:
                raise _locked(lock.path, lock.holder)

    def _refuse_conflict(self, holder: str, path: DatastorePath, mode: LockMode) -> None:
        for other, held in self._held.get(path, {}).items():
            if other != holder and LockMode.EXCLUSIVE in (mode, held):
                raise _locked(path, other)


def _locked(path: DatastorePath, holder: str) -> FileLockedError:
    return FileLockedError(f"{path} is locked by {holder}", file=str(path))
