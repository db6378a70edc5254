"""One file of a chain, of either format, as `reader` sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol
from uuid import UUID

from hyperv.vhdx.parent_reference import ParentReference
from hyperv.vhdx.source import ByteSource


class Place(Enum):
    FILE = "file"
    ZEROS = "zeros"
    PARENT = "parent"


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of the disk in bytes, and where its bytes are."""

    offset: int
    length: int
    place: Place
    file_offset: int = 0  # if `place` is FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """What a file says of its disk.

    `disk_id` is the same in all files of a VHDX chain (a VHD file has an id of its own);
    `content_id` is what a child names to be sure of its parent.
    """

    disk_bytes: int
    disk_id: UUID
    content_id: UUID
    logical_sector_bytes: int
    physical_sector_bytes: int
    block_bytes: int  # of a fixed VHD: the disk is one block
    parent: ParentReference | None


class DiskFile(Protocol):
    """Checked when it was opened; never changes; thread-safe."""

    @property
    def facts(self) -> DiskFacts: ...

    @property
    def source(self) -> ByteSource:
        """The file that FILE pieces are in."""
        ...

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """Yield where [offset, offset + length) of the disk is, in order; equal places may follow
        each other. The range lies inside the disk.

        Raises:
            DiskFileError: the tables cannot be read, or make no sense.
        """
        ...

    def forget(self) -> None:
        """Drop what is cached."""
        ...


def bitmap_pieces(
    bits: bytes, *, offset: int, length: int, sector_bytes: int, file_offset: int
) -> Iterator[Piece]:
    """Split a range by one byte per sector: 1 means in this file, 0 in the parent.

    `bits` begins with the sector that holds byte `offset` of the disk; `file_offset` is where that
    byte would be.
    """
    end, at, number = offset + length, offset, 0
    while at < end:
        held = bits[number]
        border = bits.find(1 - held, number)
        number = len(bits) if border < 0 else border
        stop = min(end, (offset // sector_bytes + number) * sector_bytes)
        if held:
            yield Piece(at, stop - at, Place.FILE, file_offset + at - offset)
        else:
            yield Piece(at, stop - at, Place.PARENT)
        at = stop
