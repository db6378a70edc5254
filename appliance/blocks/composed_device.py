"""One disk made of ranges of others, without copying: reads and writes go where a piece says.

    [0, a) -> device 1 from byte x | [a, b) -> device 2 from byte y | …

The pieces never change while the device lives, so the same bytes of it always are the same bytes of
the same device, whatever a client believes to lie there.

Thread model: as of BlockDevice; nothing here changes after construction. A write over the border of
two pieces is two writes: not atomic, as on a disk.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from appliance.base.errors import UsageError
from appliance.blocks.device import BlockDevice, check_range
from appliance.blocks.extents import MappedExtent


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes [offset, offset + length) of the disk are those of `device` from `device_offset`."""

    offset: int
    length: int
    device: BlockDevice
    device_offset: int


class ComposedDevice:
    """A BlockDevice. Closing it closes every device that it is made of."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        """Raises UsageError: they leave gaps, overlap, or run over the end of their device."""
        at = 0
        for piece in pieces:
            stop = piece.device_offset + piece.length
            if piece.offset != at or piece.length <= 0:
                raise UsageError(f"pieces of a disk: byte {at} is followed by {piece.offset}")
            if piece.device_offset < 0 or stop > piece.device.size_bytes:
                raise UsageError(f"the piece at byte {at} runs over the end of its device")
            at += piece.length
        self.size_bytes = at
        self._pieces = tuple(pieces)
        self._offsets = [piece.offset for piece in pieces]
        self._devices = list({id(piece.device): piece.device for piece in pieces}.values())

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self.size_bytes)
        parts = [
            device.read_at(device_offset, part)
            for device, device_offset, part in self._parts(offset, length)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self.size_bytes)
        done = 0
        for device, device_offset, length in self._parts(offset, len(buffer)):
            device.read_into(device_offset, buffer[done : done + length])
            done += length

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        check_range(offset, length, self.size_bytes)
        parts: list[bytes | memoryview] = []
        for device, device_offset, part_length in self._parts(offset, length):
            part = device.try_read_at(device_offset, part_length)
            if part is None:
                return None
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self.size_bytes)
        result: list[MappedExtent] = []
        at = offset
        for device, device_offset, part in self._parts(offset, length):
            known_end = at
            for extent in device.map_extents(device_offset, part):
                known_end = at + extent.end - device_offset
                last = result[-1] if result else None
                start = at + extent.offset - device_offset
                if last is not None and last.kind is extent.kind:
                    start = result.pop().offset
                result.append(MappedExtent(start, known_end - start, extent.kind))
            at += part
            if known_end < at:
                break
        return result

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        check_range(offset, len(data), self.size_bytes)
        view, done = memoryview(data), 0
        for device, device_offset, length in self._parts(offset, len(data)):
            device.write_at(device_offset, view[done : done + length])
            done += length

    def zero_at(self, offset: int, length: int) -> None:
        check_range(offset, length, self.size_bytes)
        for device, device_offset, part in self._parts(offset, length):
            device.zero_at(device_offset, part)

    def flush(self) -> None:
        for device in self._devices:
            device.flush()

    def close(self) -> None:
        for device in self._devices:
            device.close()

    def _parts(self, offset: int, length: int) -> Iterator[tuple[BlockDevice, int, int]]:
        """(device, offset in it, bytes) for each piece that the range touches."""
        index = bisect_right(self._offsets, offset) - 1
        end = offset + length
        while offset < end:
            piece = self._pieces[index]
            stop = min(end, piece.offset + piece.length)
            yield piece.device, piece.device_offset + offset - piece.offset, stop - offset
            offset, index = stop, index + 1
