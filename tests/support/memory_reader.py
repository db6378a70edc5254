"""A disk in memory that maps its own zero runs, for tests of everything that reads disks."""

from __future__ import annotations

from appliance.blocks.device import check_range
from appliance.blocks.extents import ExtentKind, MappedExtent

_UNIT = 4096


class MemoryReader:
    """Counts what is read, so that a test can say what must not be."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.read_bytes = 0

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, len(self.data))
        self.read_bytes += length
        return bytes(self.data[offset : offset + length])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))

    def try_read_at(self, offset: int, length: int) -> bytes | None:
        return self.read_at(offset, length)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, len(self.data))
        mapped: list[MappedExtent] = []
        end = offset + length
        while offset < end:
            stop = min((offset // _UNIT + 1) * _UNIT, end)
            zero = not any(self.data[offset:stop])
            kind = ExtentKind.ZERO if zero else ExtentKind.DATA
            if mapped and mapped[-1].kind is kind:
                last = mapped.pop()
                mapped.append(MappedExtent(last.offset, stop - last.offset, kind))
            else:
                mapped.append(MappedExtent(offset, stop - offset, kind))
            offset = stop
        return mapped

    def close(self) -> None:
        pass
