"""A disk of zeros of any size that takes no memory: the base for tests of large disks."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.blocks.device import check_range
from appliance.blocks.extents import ExtentKind, MappedExtent


class ZeroDisk:
    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self._size_bytes)
        return bytes(length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self._size_bytes)
        buffer[:] = bytes(len(buffer))

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        return self.read_at(offset, length)

    def read_near_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview | None]:
        return [self.read_at(offset, length) for offset, length in ranges]

    def prefetch(self, offset: int, length: int) -> None:
        self.read_at(offset, min(length, self.size_bytes - offset))

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self._size_bytes)
        return [MappedExtent(offset, length, ExtentKind.ZERO)] if length else []

    def close(self) -> None:
        pass
