"""Where a datastore's files are: a contract, and its implementation over a local folder.

Everything that touches a datastore's bytes goes through `Files`, so that an NFS datastore can be
an NFS client instead of a path. QEMU reaches the same file by `block_node`, the options of its own
protocol driver. Paths are those of `DatastorePath.path` and are trusted to have no dot parts.

Invariants: a local path with a symbolic link in it is refused. Thread model: any thread.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lab.esx.errors import FileFaultError, FileMissingError, FileThereError, NoSpaceError


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """`allocated_bytes` is what the file takes of the datastore; a folder has sizes of 0."""

    name: str
    is_folder: bool
    size_bytes: int
    allocated_bytes: int
    modified_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    capacity_bytes: int
    free_bytes: int


class Files(Protocol):
    """Every method may raise FileMissingError, NoSpaceError or FileFaultError."""

    def list(self, folder: str) -> list[FileEntry]:
        """Entries of a folder, ordered by name."""
        ...

    def stat(self, path: str) -> FileEntry | None:
        """None when nothing is there."""
        ...

    def read_at(self, path: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        ...

    def write_at(self, path: str, offset: int, data: bytes | memoryview) -> None:
        """The file must exist; it grows as needed."""
        ...

    def create(self, path: str, size_bytes: int = 0) -> None:
        """Make a file of zeros that takes no space. Raises FileThereError when it is there."""
        ...

    def resize(self, path: str, size_bytes: int) -> None: ...

    def replace(self, path: str, data: bytes) -> None:
        """After a crash the file holds the old bytes or the new ones, never a mix."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Raises FileThereError when `new` is there."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file or an empty folder."""
        ...

    def make_folder(self, path: str) -> None:
        """Raises FileThereError; the parent must exist."""
        ...

    def data_extents(self, path: str) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is allocated, ascending; one full extent where it is unknown."""
        ...

    def space(self) -> Space: ...

    def block_node(self, path: str) -> dict[str, Any]:
        """BlockdevOptions of QEMU's protocol layer for this file, without a node name."""
        ...


class LocalFiles:
    """Files of a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def local_path(self, path: str) -> Path:
        """Where the file is on this machine; refuses to go through a symbolic link."""
        place = self.root
        for part in path.split("/") if path else ():
            place = place / part
            if place.is_symlink():
                raise FileMissingError(f"a symbolic link is in the way: {path}")
        return place

    def list(self, folder: str) -> list[FileEntry]:
        with _translated(folder):
            names = sorted(place.name for place in self.local_path(folder).iterdir())
        entries = (self.stat(f"{folder}/{name}" if folder else name) for name in names)
        return [entry for entry in entries if entry is not None]

    def stat(self, path: str) -> FileEntry | None:
        place = self.root.joinpath(path)
        try:
            found = os.lstat(self.local_path(path))
        except (FileNotFoundError, NotADirectoryError, FileMissingError):
            return None
        is_folder = stat.S_ISDIR(found.st_mode)
        return FileEntry(
            name=place.name if path else "",
            is_folder=is_folder,
            size_bytes=0 if is_folder else found.st_size,
            allocated_bytes=0 if is_folder else found.st_blocks * 512,
            modified_at_s=found.st_mtime,
        )

    def read_at(self, path: str, offset: int, length: int) -> bytes:
        with _translated(path), self._open(path, os.O_RDONLY) as fd:
            parts = []
            while length and (data := os.pread(fd, length, offset)):
                parts.append(data)
                offset += len(data)
                length -= len(data)
            return b"".join(parts)

    def write_at(self, path: str, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        with _translated(path), self._open(path, os.O_WRONLY) as fd:
            while view:
                count = os.pwrite(fd, view, offset)
                view, offset = view[count:], offset + count

    def create(self, path: str, size_bytes: int = 0) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with _translated(path), self._open(path, flags) as fd:
            os.ftruncate(fd, size_bytes)

    def resize(self, path: str, size_bytes: int) -> None:
        with _translated(path), self._open(path, os.O_WRONLY) as fd:
            os.ftruncate(fd, size_bytes)

    def replace(self, path: str, data: bytes) -> None:
        place = self.local_path(path)
        temp = place.with_name(f".{place.name}.tmp")
        with _translated(path):
            with temp.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temp.replace(place)

    def rename(self, old: str, new: str) -> None:
        target = self.local_path(new)
        with _translated(old):
            if target.exists():
                raise FileThereError(f"{new} is there already")
            self.local_path(old).rename(target)

    def delete(self, path: str) -> None:
        place = self.local_path(path)
        with _translated(path):
            if place.is_dir():
                place.rmdir()
            else:
                place.unlink()

    def make_folder(self, path: str) -> None:
        with _translated(path):
            self.local_path(path).mkdir()

    def data_extents(self, path: str) -> Iterator[tuple[int, int]]:
        with _translated(path), self._open(path, os.O_RDONLY) as fd:
            offset, size = 0, os.fstat(fd).st_size
            while offset < size:
                try:
                    start = os.lseek(fd, offset, os.SEEK_DATA)
                except OSError as error:
                    if error.errno == errno.ENXIO:
                        return  # only a hole is left
                    raise
                offset = os.lseek(fd, start, os.SEEK_HOLE)
                yield start, offset - start

    def space(self) -> Space:
        usage = shutil.disk_usage(self.root)
        return Space(capacity_bytes=usage.total, free_bytes=usage.free)

    def block_node(self, path: str) -> dict[str, Any]:
        # Locks are this package's; QEMU's own would keep a second reader from a frozen file.
        return {"driver": "file", "filename": str(self.local_path(path)), "locking": "off"}

    @contextmanager
    def _open(self, path: str, flags: int) -> Iterator[int]:
        fd = os.open(self.local_path(path), flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise FileThereError(f"{path} is there already") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileMissingError(f"{path} was not found") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"no space for {path}") from error
        raise FileFaultError(f"{path}: {error.strerror}") from error
