"""A raw image file as a BlockReader, with the holes that the file system reports."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from appliance.blocks.device import check_range
from appliance.blocks.extents import ExtentKind, MappedExtent


class RawFileReader:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._size_bytes = os.fstat(self._fd).st_size

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self._size_bytes)
        return os.pread(self._fd, length, offset)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self._size_bytes)
        os.preadv(self._fd, [buffer], offset)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        check_range(offset, length, self._size_bytes)
        return None

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self._size_bytes)
        result = []
        end = offset + length
        while offset < end:
            data_start = min(end, self._seek_data(offset))
            if offset < data_start:
                result.append(MappedExtent(offset, data_start - offset, ExtentKind.ZERO))
            if data_start < end:
                stop = min(end, os.lseek(self._fd, data_start, os.SEEK_HOLE))
                result.append(MappedExtent(data_start, stop - data_start, ExtentKind.DATA))
                data_start = stop
            offset = data_start
        return result

    def _seek_data(self, offset: int) -> int:
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self._size_bytes
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
