"""A disk of a transport as a `BlockReader`, so that the block reader suite runs on it too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from appliance.base.errors import OutOfRangeError
from appliance.blocks.extents import ExtentKind, MappedExtent
from vmware.transports.contract import DiskReader, OutOfDiskError


class DiskAsBlockReader:
    def __init__(self, disk: DiskReader) -> None:
        self._disk = disk

    @property
    def size_bytes(self) -> int:
        return self._disk.size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        with self._translated(offset, length):
            return self._disk.read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._translated(offset, len(buffer)):
            self._disk.read_into(offset, buffer)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        with self._translated(offset, length):
            return self._disk.try_read_at(offset, length)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        with self._translated(offset, length):
            return [
                MappedExtent(extent.offset, extent.length, ExtentKind(extent.kind.value))
                for extent in self._disk.map_extents(offset, length)
            ]

    def close(self) -> None:
        self._disk.close()

    @contextmanager
    def _translated(self, offset: int, length: int) -> Iterator[None]:
        try:
            yield
        except OutOfDiskError as error:
            raise OutOfRangeError(offset, length, self.size_bytes) from error
