"""A folder of this machine as an NFS tree, for tests of the server: nothing kept but the files.

File numbers are inode numbers, known while the process lives. Exclusive verifiers and listing
cookies live in memory.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from nfs_server.errors import VfsError
from nfs_server.protocol import FileType, Status
from nfs_server.vfs import AttributeChanges, Attributes, Buffer, Entry, ServerTime, Space

_STATUS = {
    FileNotFoundError: Status.NOENT,
    FileExistsError: Status.EXIST,
    NotADirectoryError: Status.NOTDIR,
    IsADirectoryError: Status.ISDIR,
}


def _translated(error: OSError) -> VfsError:
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            return VfsError(status, str(error))
    number = error.errno or 0
    known = number in Status._value2member_map_
    if number == 39:  # ENOTEMPTY
        return VfsError(Status.NOTEMPTY, str(error))
    return VfsError(Status(number) if known else Status.IO, str(error))


class PlainFolder:
    read_only = False

    def __init__(self, folder: Path) -> None:
        self._lock = threading.RLock()
        self._paths: dict[int, Path] = {}
        self._verifiers: dict[int, bytes] = {}
        self._cookies: dict[tuple[int, bytes], int] = {}
        self._next_cookie = 1
        self.root = self._learn(folder)
        self.syncs = 0

    def _learn(self, path: Path) -> int:
        number = path.lstat().st_ino
        self._paths[number] = path
        return number

    def _path(self, number: int) -> Path:
        path = self._paths.get(number)
        if path is None or not os.path.lexists(path):
            raise VfsError(Status.STALE)
        return path

    def _folder(self, number: int) -> Path:
        path = self._path(number)
        if not path.is_dir() or path.is_symlink():
            raise VfsError(Status.NOTDIR)
        return path

    def attributes(self, number: int) -> Attributes:
        found = self._path(number).lstat()
        kinds = {stat.S_IFREG: FileType.REGULAR, stat.S_IFDIR: FileType.DIRECTORY}
        return Attributes(
            type=kinds.get(stat.S_IFMT(found.st_mode), FileType.SYMLINK),
            mode=stat.S_IMODE(found.st_mode),
            links=found.st_nlink,
            uid=found.st_uid,
            gid=found.st_gid,
            size_bytes=found.st_size,
            used_bytes=found.st_blocks * 512,
            number=number,
            accessed_ns=found.st_atime_ns,
            modified_ns=found.st_mtime_ns,
            changed_ns=found.st_ctime_ns,
        )

    def lookup(self, folder: int, name: bytes) -> int:
        try:
            return self._learn(self._folder(folder) / os.fsdecode(name))
        except OSError as error:
            raise _translated(error) from error

    def parent(self, folder: int) -> int:
        return folder if folder == self.root else self._learn(self._folder(folder).parent)

    def try_read(self, number: int, offset: int, length: int) -> Buffer | None:
        return None

    def read(self, number: int, offset: int, length: int) -> Buffer:
        with self._path(number).open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def write(self, number: int, offset: int, data: Buffer) -> None:
        try:
            with self._path(number).open("r+b") as file:
                os.pwrite(file.fileno(), data, offset)
        except OSError as error:
            raise _translated(error) from error

    def sync(self, number: int) -> None:
        self.syncs += 1

    def set_attributes(self, number: int, changes: AttributeChanges) -> None:
        path = self._path(number)
        try:
            if changes.size_bytes is not None:
                os.truncate(path, changes.size_bytes)
            if changes.mode is not None and not path.is_symlink():
                path.chmod(changes.mode)
            if changes.uid is not None or changes.gid is not None:
                uid, gid = changes.uid, changes.gid
                os.lchown(path, -1 if uid is None else uid, -1 if gid is None else gid)
            self._set_times(path, changes)
        except OSError as error:
            raise _translated(error) from error

    def _set_times(self, path: Path, changes: AttributeChanges) -> None:
        if changes.accessed is None and changes.modified is None:
            return
        found = path.lstat()
        now_ns = time.time_ns()

        def chosen(wanted: int | ServerTime | None, old_ns: int) -> int:
            return old_ns if wanted is None else now_ns if wanted is ServerTime.NOW else wanted

        times = (
            chosen(changes.accessed, found.st_atime_ns),
            chosen(changes.modified, found.st_mtime_ns),
        )
        os.utime(path, ns=times, follow_symlinks=False)

    def create(
        self, folder: int, name: bytes, changes: AttributeChanges, *, exclusive: bytes | None = None
    ) -> int:
        path = self._folder(folder) / os.fsdecode(name)
        with self._lock:
            try:
                path.open("xb").close()
            except FileExistsError as error:
                number = self._learn(path)
                if exclusive is None or self._verifiers.get(number) != exclusive:
                    raise _translated(error) from error
                return number
            except OSError as error:
                raise _translated(error) from error
            number = self._learn(path)
            if exclusive is not None:
                self._verifiers[number] = exclusive
            self.set_attributes(number, changes)
            return number

    def make_folder(self, folder: int, name: bytes, changes: AttributeChanges) -> int:
        path = self._folder(folder) / os.fsdecode(name)
        try:
            path.mkdir()
        except OSError as error:
            raise _translated(error) from error
        number = self._learn(path)
        self.set_attributes(number, changes)
        return number

    def make_symlink(
        self, folder: int, name: bytes, target: bytes, changes: AttributeChanges
    ) -> int:
        path = self._folder(folder) / os.fsdecode(name)
        try:
            path.symlink_to(os.fsdecode(target))
        except OSError as error:
            raise _translated(error) from error
        return self._learn(path)

    def read_symlink(self, number: int) -> bytes:
        return os.fsencode(self._path(number).readlink())

    def link(self, number: int, folder: int, name: bytes) -> None:
        try:
            os.link(self._path(number), self._folder(folder) / os.fsdecode(name))
        except OSError as error:
            raise _translated(error) from error

    def remove(self, folder: int, name: bytes) -> None:
        path = self._folder(folder) / os.fsdecode(name)
        try:
            path.unlink()
        except OSError as error:
            raise _translated(error) from error

    def remove_folder(self, folder: int, name: bytes) -> None:
        try:
            (self._folder(folder) / os.fsdecode(name)).rmdir()
        except OSError as error:
            raise _translated(error) from error

    def rename(self, folder: int, name: bytes, new_folder: int, new_name: bytes) -> None:
        new = self._folder(new_folder) / os.fsdecode(new_name)
        replaced = new.lstat().st_ino if os.path.lexists(new) else None
        try:
            (self._folder(folder) / os.fsdecode(name)).rename(new)
        except OSError as error:
            raise _translated(error) from error
        if replaced is not None and replaced != new.lstat().st_ino:
            self._paths.pop(replaced, None)
        self._relearn(new)

    def _relearn(self, path: Path) -> None:
        self._learn(path)
        if path.is_dir() and not path.is_symlink():
            for each in path.iterdir():
                self._relearn(each)

    def list(self, folder: int, after: int, limit: int) -> Sequence[Entry]:
        path = self._folder(folder)
        with self._lock:
            entries = []
            for each in sorted(path.iterdir()):
                key = (folder, os.fsencode(each.name))
                if key not in self._cookies:
                    self._cookies[key] = self._next_cookie
                    self._next_cookie += 1
                entries.append((self._cookies[key], key[1], self._learn(each)))
        chosen = sorted(entry for entry in entries if entry[0] > after)[:limit]
        return [Entry(name=name, number=number, cookie=cookie) for cookie, name, number in chosen]

    def space(self) -> Space:
        found = os.statvfs(self._paths[self.root])
        return Space(
            total_bytes=found.f_blocks * found.f_frsize,
            free_bytes=found.f_bavail * found.f_frsize,
            total_files=found.f_files,
            free_files=found.f_ffree,
        )
