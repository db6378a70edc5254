"""A disk of any size that reads as zeros: the base of an overlay that holds everything itself.

Thread model: as of BlockReader; there is no state.
"""

from __future__ import annotations

from appliance.base.units import MIB
from appliance.blocks.device import check_range
from appliance.blocks.extents import ExtentKind, MappedExtent

_ZEROS = bytes(MIB)


class ZeroReader:
    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self.size_bytes)
        return bytes(length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self.size_bytes)
        for start in range(0, len(buffer), MIB):
            part = buffer[start : start + MIB]
            part[:] = memoryview(_ZEROS)[: len(part)]

    def try_read_at(self, offset: int, length: int) -> bytes:
        return self.read_at(offset, length)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self.size_bytes)
        return [MappedExtent(offset, length, ExtentKind.ZERO)] if length else []

    def close(self) -> None:
        """Nothing is held."""
