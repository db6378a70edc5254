"""A raw file or a block device as a `BlockReader`: preadv straight into the caller's buffer.

Holes of a file come from SEEK_DATA and SEEK_HOLE (lseek(2)), asked lazily, so that a sparse file of
62 TiB costs as many system calls as it has extents. A block device is all DATA. The size is fixed
when the reader is opened.

Thread model: any number of threads; no call uses the file position as state (SEEK_DATA moves it,
preadv ignores it).
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Self

from appliance.blocks.device import check_range
from appliance.blocks.extents import ExtentKind, MappedExtent
from appliance.sources.errors import NotADiskError, SourceReadError, SourceShrankError

_MAPPED_EXTENTS = 1024  # per answer: two system calls of about 1 us each
_READ_MOST_BYTES = 1 << 30  # one preadv moves at most 2 GiB - 4 KiB
_NO_HOLES = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}


class RawImageReader:
    def __init__(self, path: Path) -> None:
        """Raises: NotADiskError, SourceReadError."""
        self._path = path
        self._fd = open_disk(path)
        try:
            self._is_device = stat.S_ISBLK(os.fstat(self._fd).st_mode)
            self._size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
            if not self._is_device:  # doubles the kernel's read-ahead window
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError as error:
            self.close()
            raise SourceReadError(f"{path}: {error.strerror}") from error

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self._size_bytes)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self._size_bytes)
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._fd, [buffer[done : done + _READ_MOST_BYTES]], offset + done)
            except OSError as error:
                raise SourceReadError(
                    f"{self._path}: byte {offset + done}: {error.strerror}"
                ) from error
            if not got:
                raise SourceShrankError(
                    f"{self._path}: ends at byte {offset + done}, was {self._size_bytes} bytes long"
                )
            done += got

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        check_range(offset, length, self._size_bytes)
        buffer = bytearray(length)
        try:
            got = os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT) if length else 0
        except OSError:  # not in the page cache, or a file system without RWF_NOWAIT
            return None
        return memoryview(buffer) if got == length else None

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self._size_bytes)
        end = offset + length
        if not length:
            return []
        if self._is_device:
            return [MappedExtent(offset, length, ExtentKind.DATA)]
        mapped: list[MappedExtent] = []
        while offset < end and len(mapped) < _MAPPED_EXTENTS:
            data = self._seek(offset, end, os.SEEK_DATA)
            if data > offset:
                mapped.append(MappedExtent(offset, data - offset, ExtentKind.ZERO))
            hole = self._seek(data, end, os.SEEK_HOLE) if data < end else data
            if hole > data:
                mapped.append(MappedExtent(data, hole - data, ExtentKind.DATA))
            offset = hole
        return mapped

    def _seek(self, offset: int, end: int, whence: int) -> int:
        """Return where the next data or hole begins, `end` when that is not before it."""
        try:
            return min(os.lseek(self._fd, offset, whence), end)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data after `offset`, or the file shrank
                return self._end_of_data(offset, end)
            if error.errno in _NO_HOLES:
                return offset if whence == os.SEEK_DATA else end
            raise SourceReadError(f"{self._path}: byte {offset}: {error.strerror}") from error

    def _end_of_data(self, offset: int, end: int) -> int:
        now_bytes = os.fstat(self._fd).st_size
        if now_bytes < self._size_bytes:
            raise SourceShrankError(
                f"{self._path}: is {now_bytes} bytes long, was {self._size_bytes}"
            )
        return end


def open_disk(path: Path) -> int:
    """Open a regular file or block device for reading. Raises NotADiskError, SourceReadError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would block here
    except OSError as error:
        kind = NotADiskError if error.errno == errno.ENOENT else SourceReadError
        raise kind(f"{path}: {error.strerror}") from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        os.close(fd)
        raise NotADiskError(f"{path}: neither a file nor a block device")
    return fd
