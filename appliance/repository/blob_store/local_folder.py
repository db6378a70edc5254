# The crash tests count and cut system calls on module os:
# ruff: noqa: PTH102, PTH108, PTH112, PTH116, PTH121, PTH208
"""Blobs as files below one folder: the default repository.

A blob is the file of its name; one in the making is a file in `tmp/`, see `local_writer`. The
folder itself is never created here: where it is missing (a disk that is not mounted), writing and
listing fail instead of starting an empty repository beside it.

Needs of the file system: hard links, flock and fsync of folders (ext4, XFS, btrfs, ZFS, NFSv4).

Crash guarantees stand in the contract. A rename cut half way leaves the blob under both names, and
repeating it completes it.

Thread model: any thread, any process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from appliance.base.atomic import fsync_directory
from appliance.base.clock import Clock, SystemClock
from appliance.base.errors import ApplianceError, StorageError
from appliance.base.locked_file import LockMode, try_lock
from appliance.repository.blob_store.contract import BlobExistsError, BlobInfo, BlobNotFoundError
from appliance.repository.blob_store.local_errors import is_absent, is_bad_medium, storage_error
from appliance.repository.blob_store.local_writer import LocalBlobWriter
from appliance.repository.blob_store.names import UNFINISHED_FOLDER, check_name, is_component
from appliance.repository.blob_store.open_files import OpenFile, OpenFiles
from appliance.repository.errors import UnreadableError

OPEN_FILES = 256  # of the usual 1024 a process may have


class LocalFolderStore:
    """See `BlobStore`."""

    def __init__(
        self, root: Path, *, clock: Clock | None = None, open_files: int = OPEN_FILES
    ) -> None:
        self._root = root
        self._unfinished = root / UNFINISHED_FOLDER
        self._clock = clock or SystemClock()
        self._open_files = OpenFiles(open_files)
        self._lock = threading.Lock()
        self._durable_folders = {root}

    def create(self, name: str) -> LocalBlobWriter:
        target = self._path(name)
        try:
            self._make_folder(self._unfinished)
            return LocalBlobWriter(
                name, target=target, folder=self._unfinished, make_folder=self._make_folder
            )
        except OSError as error:
            raise storage_error(self._unfinished, error) from error

    def put(self, name: str, data: bytes) -> None:
        writer = self.create(name)
        try:
            writer.write([data])
            writer.commit()
        finally:
            writer.abort()

    def get(self, name: str, *, limit_bytes: int) -> bytes:
        path = self._path(name)
        try:
            file = OpenFile(path)
            if file.size_bytes > limit_bytes:
                raise StorageError(f"{path}: {file.size_bytes} bytes where {limit_bytes} may be")
            return self._read(path, file, 0, file.size_bytes)
        except OSError as error:
            raise self._read_error(name, error) from error

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        file = self._open_files.find(name)  # names of open files are known to be good
        try:
            if file is None:
                file = self._open_files.open(name, self._path(name))
            return self._read(self._root / name, file, offset, length)
        except OSError as error:
            raise self._read_error(name, error) from error

    def try_get_range(self, name: str, offset: int, length: int) -> memoryview | None:
        file = self._open_files.find(name)  # opening one may wait for a disk
        try:
            return None if file is None else file.try_read_at(offset, length)
        except OSError:
            return None  # not offered by this file system; get_range tells about true errors

    def size_bytes(self, name: str) -> int:
        path = self._path(name)
        try:
            status = os.stat(path, follow_symlinks=False)
        except OSError as error:
            raise self._read_error(name, error) from error
        if not S_ISREG(status.st_mode):
            raise BlobNotFoundError(name)
        return status.st_size

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        folder = self._path(prefix)
        if not os.path.isdir(self._root):
            raise StorageError(f"{self._root}: the repository's folder is missing")
        return self._walk(folder, prefix)

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            self._unlink(path)
        except OSError as error:
            if not is_absent(error):
                raise storage_error(path, error) from error
        finally:
            self._open_files.drop(name)

    def rename(self, name: str, new_name: str) -> None:
        path, new_path = self._path(name), self._path(new_name)
        self.size_bytes(name)  # no folder is made for a blob that is not there
        try:
            self._make_folder(new_path.parent)
            self._link(path, new_path)
            fsync_directory(new_path.parent)
            self._unlink(path)
        except FileExistsError as error:
            raise BlobExistsError(new_name) from error
        except OSError as error:
            raise self._read_error(name, error) from error
        finally:
            self._open_files.drop(name)

    def discard_unfinished(self, *, older_than_s: float) -> int:
        youngest = self._clock.now().timestamp() - older_than_s
        try:
            names = os.listdir(self._unfinished)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise storage_error(self._unfinished, error) from error
        return sum(self._discard(self._unfinished / name, youngest) for name in names)

    @staticmethod
    def _read(path: Path, file: OpenFile, offset: int, length: int) -> bytes:
        """Raises OSError, UnreadableError."""
        try:
            return file.read_at(offset, length)
        except OSError as error:
            if not is_bad_medium(error):
                raise
            where = f"{path}: bytes [{offset}, {offset + length})"
            raise UnreadableError(f"{where}: {os.strerror(error.errno or 0)}") from error

    def _path(self, name: str) -> Path:
        check_name(name)
        return self._root / name

    def _read_error(self, name: str, error: OSError) -> ApplianceError:
        if is_absent(error):
            return BlobNotFoundError(name)
        return storage_error(self._root / name, error)

    def _make_folder(self, folder: Path) -> None:
        """Create `folder` below the root so that it survives a power cut. Raises OSError."""
        if folder in self._durable_folders:
            return
        self._make_folder(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        # Also when it was there: another process may have made it and not be here yet.
        fsync_directory(folder.parent)
        with self._lock:
            self._durable_folders.add(folder)

    def _link(self, path: Path, new_path: Path) -> None:
        """Raises OSError; FileExistsError unless it is the same blob, left by a crash."""
        try:
            os.link(path, new_path, follow_symlinks=False)
        except FileExistsError:
            if not os.path.samefile(path, new_path):
                raise

    def _unlink(self, path: Path) -> None:
        """Remove durably what may have been removed before, but not durably. Raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(path)
        fsync_directory(path.parent)

    def _walk(self, folder: Path, prefix: str) -> Iterator[BlobInfo]:
        """Yield in the order of whole names: `a-1` < `a/1` < `a0`."""
        for entry, is_folder in self._entries(folder):
            name = f"{prefix}/{entry.name}"
            if is_folder:
                yield from self._walk(folder / entry.name, name)
                continue
            try:
                yield BlobInfo(name, entry.stat(follow_symlinks=False).st_size)
            except FileNotFoundError:
                continue  # deleted meanwhile
            except OSError as error:
                raise storage_error(folder / entry.name, error) from error

    def _entries(self, folder: Path) -> Sequence[tuple[os.DirEntry[str], bool]]:
        try:
            with os.scandir(folder) as scan:
                found = [(entry, entry.is_dir(follow_symlinks=False)) for entry in scan]
        except OSError as error:
            if is_absent(error):
                return []
            raise storage_error(folder, error) from error
        known = [
            (entry, is_folder)
            for entry, is_folder in found
            if is_component(entry.name) and (is_folder or entry.is_file(follow_symlinks=False))
        ]
        return sorted(known, key=lambda item: item[0].name + "/" * item[1])

    def _discard(self, path: Path, youngest: float) -> int:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise storage_error(path, error) from error
        try:
            status = os.fstat(fd)
            if not S_ISREG(status.st_mode) or status.st_mtime > youngest:
                return 0
            if not try_lock(fd, LockMode.SHARED):
                return 0  # its writer lives
            status = os.fstat(fd)
            os.unlink(path)
            return status.st_size if status.st_nlink == 1 else 0  # 2: it is a blob as well
        except FileNotFoundError:
            return 0  # another clean-up was faster
        except OSError as error:
            raise storage_error(path, error) from error
        finally:
            os.close(fd)
