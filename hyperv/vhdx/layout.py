"""The VHDX file that holds a disk which already exists somewhere else: its bytes without a copy.

    layout = FixedVhdxLayout(shape)
    layout.head(0, 4096)               bytes before `payload_offset`, made when asked for
    layout.pieces(offset, length)      where the bytes of a range of the file are

A fixed VHDX is small tables, then the disk in one piece, then zeros up to a whole block:

    0 header section | 1 MiB log, empty | 2 MiB metadata | 3 MiB block table | payload_offset: disk

These are the bytes of a file that nobody has opened yet. A host that opens it for writing changes
all of it: headers and log first, and later table and metadata through the log. So who shows the
file writable keeps every write in an overlay above these bytes and must not read the head from here
again. Thread model: immutable, methods are pure. At 62 TiB the table has 16 MiB; only what is asked
for is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from hyperv.vhdx.encoding import file_identifier, header, metadata, region_table, whole_bat
from hyperv.vhdx.errors import OutOfDiskError
from hyperv.vhdx.shape import VhdxShape
from hyperv.vhdx.structures import (
    HEADER_OFFSETS,
    LEAVE_BLOCKS_ALLOCATED,
    MIB,
    REGION_TABLE_OFFSETS,
)

LOG_OFFSET: Final = MIB
LOG_BYTES: Final = MIB
METADATA_OFFSET: Final = 2 * MIB
METADATA_BYTES: Final = MIB
BAT_OFFSET: Final = 3 * MIB


class Part(Enum):
    HEAD = "head"  # bytes of `FixedVhdxLayout.head`
    DISK = "disk"
    PADDING = "padding"  # zeros behind the end of the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePiece:
    """A range of the file in bytes. `offset` is in the file, `disk_offset` is set for DISK."""

    offset: int
    length: int
    part: Part
    disk_offset: int = 0


class FixedVhdxLayout:
    def __init__(self, shape: VhdxShape) -> None:
        self.shape = shape
        self._segments = head_segments(shape, file_flags=LEAVE_BLOCKS_ALLOCATED)

    @property
    def payload_offset(self) -> int:
        """Where byte 0 of the disk stands in the file; a multiple of 1 MiB."""
        return BAT_OFFSET + self.shape.bat.region_bytes

    @property
    def file_bytes(self) -> int:
        return self.payload_offset + self.shape.bat.blocks * self.shape.block_bytes

    def pieces(self, offset: int, length: int) -> Iterator[FilePiece]:
        """Yield what [offset, offset + length) of the file consists of: at most three pieces.

        Raises:
            OutOfDiskError: the range does not lie inside the file.
        """
        end = self._end(offset, length, self.file_bytes)
        disk_end = self.payload_offset + self.shape.disk_bytes
        for start, stop, part in (
            (0, self.payload_offset, Part.HEAD),
            (self.payload_offset, disk_end, Part.DISK),
            (disk_end, self.file_bytes, Part.PADDING),
        ):
            first, last = max(offset, start), min(end, stop)
            if first < last:
                disk_offset = first - start if part is Part.DISK else 0
                yield FilePiece(
                    offset=first, length=last - first, part=part, disk_offset=disk_offset
                )

    def head(self, offset: int, length: int) -> bytes:
        """Return bytes of the file before `payload_offset`.

        Raises:
            OutOfDiskError: the range does not end there.
        """
        end = self._end(offset, length, self.payload_offset)
        buffer = bytearray(length)
        for start, content in self._segments:
            first, last = max(offset, start), min(end, start + len(content))
            if first < last:
                buffer[first - offset : last - offset] = content[first - start : last - start]
        first = max(offset, BAT_OFFSET)
        if first < end:
            table = whole_bat(self.shape.bat, self.payload_offset, first - BAT_OFFSET, end - first)
            buffer[first - offset :] = table
        return bytes(buffer)

    def head_extents(self) -> list[tuple[int, int]]:
        """(offset, length) of what is not zeros before `payload_offset`, in order: all a copy of
        the head needs."""
        used = [(start, len(content)) for start, content in self._segments]
        return [*used, (BAT_OFFSET, self.payload_offset - BAT_OFFSET)]

    def _end(self, offset: int, length: int, limit: int) -> int:
        if offset < 0 or length < 0 or offset + length > limit:
            raise OutOfDiskError(offset, length, limit)
        return offset + length


def head_segments(shape: VhdxShape, *, file_flags: int) -> list[tuple[int, bytes]]:
    """(file offset, bytes) of everything before the block table that is not zeros, in order.

    The second header is the current one, as after a clean close (2.2.2.1).
    """
    table = region_table(
        bat_offset=BAT_OFFSET,
        bat_bytes=shape.bat.region_bytes,
        metadata_offset=METADATA_OFFSET,
        metadata_bytes=METADATA_BYTES,
    )
    headers = [
        (at, header(shape, sequence=number, log_offset=LOG_OFFSET, log_bytes=LOG_BYTES))
        for number, at in enumerate(HEADER_OFFSETS, 1)
    ]
    return [
        (0, file_identifier()),
        *headers,
        *((at, table) for at in REGION_TABLE_OFFSETS),
        (METADATA_OFFSET, metadata(shape, file_flags=file_flags)),
    ]
