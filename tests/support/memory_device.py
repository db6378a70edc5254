"""A disk in memory: the simplest honest BlockDevice, base and model of other tests."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from appliance.blocks.device import check_range
from appliance.blocks.extents import ExtentKind, MappedExtent


class MemoryDevice:
    """Never lends its buffer: what `try_read_at` returns is a copy."""

    def __init__(self, content: bytes) -> None:
        self._content = bytearray(content)
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return len(self._content)

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self.size_bytes)
        with self._lock:
            return bytes(self._content[offset : offset + length])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        return self.read_at(offset, length)

    def read_near_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview | None]:
        return [self.read_at(offset, length) for offset, length in ranges]

    def prefetch(self, offset: int, length: int) -> None:
        self.read_at(offset, min(length, self.size_bytes - offset))

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self.size_bytes)
        return [MappedExtent(offset, length, ExtentKind.DATA)] if length else []

    def close(self) -> None:
        pass

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        check_range(offset, len(data), self.size_bytes)
        with self._lock:
            self._content[offset : offset + len(data)] = data

    def zero_at(self, offset: int, length: int) -> None:
        self.write_at(offset, bytes(length))

    def flush(self) -> None:
        pass
