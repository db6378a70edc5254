"""`export fuse`: the disks of a recovery point as files `disk-N.raw` in a folder, read-only.

Data path: kernel -> libfuse2 -> fusepy -> `_Files` -> read_ahead -> a `BlockReader` per disk. The
content never changes, so the kernel may keep what it has read for good (kernel_cache).

Thread model: libfuse runs in the thread that calls `serve`, one request at a time (`nothreads`:
threads would only fight for the GIL); read_ahead adds one decoding thread per disk.

Only the owner of the mount may look into it unless `allow_other` is set. No exception leaves an
operation: see `fuse_operations`.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.units import KIB
from appliance.blocks.device import BlockReader, CachingReader
from appliance.blocks.read_ahead import ReadAheadReader
from appliance.exports.fuse_operations import FuseOperations

_READ_MOST_BYTES = 128 * KIB  # libfuse2 asks for no more at once
_BLOCK_BYTES = 4 * KIB
_ATTRIBUTES_FOR_S = 3600
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
log = logging.getLogger(__name__)


class MountError(ApplianceError):
    """The folder cannot be mounted on; the message says what is in the way."""

    code = "export.mount"


class StaleMountError(MountError):
    """A server that was killed left its mount behind. Run the `fusermount -u` command shown."""

    code = "export.stale-mount"


class DiskInfo(Protocol):
    @property
    def number(self) -> int: ...

    @property
    def size_bytes(self) -> int: ...


class PointInfo(Protocol):
    """What is asked of a manifest."""

    @property
    def point_id(self) -> str: ...

    @property
    def created_at(self) -> datetime: ...

    @property
    def disks(self) -> Sequence[DiskInfo]: ...


class ImageSource(Protocol):
    """What is asked of a repository."""

    def open_image(self, point: str, disk_number: int, /) -> CachingReader: ...


class FuseExport:
    def __init__(
        self,
        images: ImageSource,
        point: PointInfo,
        folder: Path,
        *,
        allow_other: bool = False,
    ) -> None:
        self._images = images
        self._point = point
        self._folder = folder
        self._allow_other = allow_other

    def serve(self) -> None:
        """Mount and answer until SIGINT, SIGTERM, SIGHUP or `fusermount -u`; then unmount.

        In the main thread, so that the signals reach libfuse.

        Raises:
            StaleMountError, MountError, UsageError: nothing was mounted.
        """
        check_folder(self._folder)
        fuse = load_fuse()
        with ExitStack() as stack:
            disks: dict[str, BlockReader] = {}
            for disk in self._point.disks:
                image = self._images.open_image(self._point.point_id, disk.number)
                disks[f"disk-{disk.number}.raw"] = reader = ReadAheadReader(image)
                stack.callback(reader.close)
            files = _Files(disks, self._point.created_at, shared=self._allow_other)
            stack.enter_context(_default_signals())
            try:
                fuse.FUSE(files, str(self._folder), **self._options())
            except RuntimeError as error:  # libfuse's exit code; it has said why on stderr
                raise MountError(f"{self._folder}: cannot be mounted on") from error

    def _options(self) -> dict[str, Any]:
        return {
            "foreground": True,
            "nothreads": True,
            "ro": True,
            "default_permissions": True,
            "allow_other": self._allow_other,
            "kernel_cache": True,
            "max_read": _READ_MOST_BYTES,
            "attr_timeout": _ATTRIBUTES_FOR_S,
            "entry_timeout": _ATTRIBUTES_FOR_S,
            "fsname": f"holdfast-{self._point.point_id}",
            "subtype": "holdfast",
        }


def check_folder(folder: Path) -> None:
    """Raises StaleMountError, MountError, UsageError unless `folder` is an empty folder."""
    try:
        is_empty = not any(folder.iterdir())  # asks a dead server, where stat may be cached
        if os.path.ismount(folder):
            raise MountError(f"{folder}: something is mounted there already")
        if not is_empty:
            raise UsageError(f"{folder}: not an empty folder")
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise StaleMountError(
                f"{folder}: left by a server that was killed; run: fusermount -u {folder}"
            ) from error
        raise UsageError(f"{folder}: {error.strerror}") from error


def load_fuse() -> Any:
    """Import fusepy. Raises MountError: libfuse is not installed."""
    try:
        import fuse
    except OSError as error:  # fusepy found no libfuse
        raise MountError(f"{error} (Debian packages libfuse2 and fuse3)") from error
    return fuse


@contextmanager
def _default_signals() -> Iterator[None]:
    """libfuse installs its handlers, which end its loop, only over the default ones."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {
        number: signal.signal(number, signal.SIG_DFL) for number in _STOPS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Files(FuseOperations):
    """The operations, as fusepy calls them: by name, with the path first."""

    use_ns = True

    def __init__(
        self,
        disks: dict[str, BlockReader],
        created_at: datetime,
        *,
        shared: bool,
    ) -> None:
        self._disks = disks
        self._created_ns = int(created_at.timestamp()) * 10**9 + created_at.microsecond * 1000
        self._folder_mode, self._file_mode = (0o555, 0o444) if shared else (0o500, 0o400)

    def getattr(self, path: str, handle: int | None = None) -> dict[str, int]:
        if path == "/":
            return self._attributes(stat.S_IFDIR | self._folder_mode, 0, links=2)
        size_bytes = self._disks[self._name(path)].size_bytes
        return self._attributes(stat.S_IFREG | self._file_mode, size_bytes, links=1)

    def readdir(self, path: str, handle: int) -> list[str]:
        if path != "/":
            raise OSError(errno.ENOTDIR, path)
        return [".", "..", *self._disks]

    def open(self, path: str, flags: int) -> int:
        self._name(path)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, path)
        return 0

    def read(self, path: str, length: int, offset: int, handle: int) -> bytes:
        """Fewer bytes only at the end of the disk."""
        disk = self._disks[self._name(path)]
        length = max(min(length, disk.size_bytes - offset), 0)
        at_once = disk.try_read_at(offset, length)
        return bytes(at_once) if at_once is not None else disk.read_at(offset, length)

    def statfs(self, path: str) -> dict[str, int]:
        total_bytes = sum(disk.size_bytes for disk in self._disks.values())
        return {
            "f_bsize": _BLOCK_BYTES,
            "f_frsize": _BLOCK_BYTES,
            "f_blocks": -(-total_bytes // _BLOCK_BYTES),
            "f_bfree": 0,
            "f_bavail": 0,
            "f_files": len(self._disks) + 1,
            "f_namemax": 255,
        }

    def _name(self, path: str) -> str:
        name = path.removeprefix("/")
        if name not in self._disks:
            raise OSError(errno.ENOENT, path)
        return name

    def _attributes(self, mode: int, size_bytes: int, *, links: int) -> dict[str, int]:
        return {
            "st_mode": mode,
            "st_nlink": links,
            "st_size": size_bytes,
            "st_blocks": -(-size_bytes // 512),  # holes are not counted: that costs every leaf
            "st_blksize": _READ_MOST_BYTES,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
            "st_atime": self._created_ns,
            "st_mtime": self._created_ns,
            "st_ctime": self._created_ns,
        }
