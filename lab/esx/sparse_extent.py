"""Structures of a streamOptimized sparse extent: header, markers, tables. Little-endian.

Layout: header, descriptor, padding up to `overHead`, grains with a marker in front of each, a
grain table after every 512 grains that hold one, grain directory, footer (the header again, now
with the directory's place), end-of-stream. Places are in sectors of 512 bytes from the start.
Source: VMware Virtual Disk Format 5.0, "Stream-Optimized Compressed Sparse Extents".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct, error

SECTOR_BYTES = 512
GRAIN_SECTORS = 128
GRAIN_BYTES = GRAIN_SECTORS * SECTOR_BYTES
TABLE_ENTRIES = 512
TABLE_SECTORS = TABLE_ENTRIES * 4 // SECTOR_BYTES
DIRECTORY_AT_END = 0xFFFFFFFFFFFFFFFF
MAX_CAPACITY_SECTORS = 62 << 31  # 62 TiB, the largest disk of vSphere 8
MAX_OVERHEAD_SECTORS = 1 << 20  # descriptor and tables in front of the data of a 62 TiB disk
MAX_STORED_BYTES = 2 * GRAIN_BYTES  # of one grain; deflate never comes near

_MAGIC = 0x564D444B  # "KDMV"
_NEWLINE_TEST = b"\n \r\n"
_NEWLINES_VALID, _COMPRESSED, _MARKERS = 1 << 0, 1 << 16, 1 << 17
_DEFLATE = 1

_HEADER = Struct("<IIIQQQQIQQQB4sH433x")
MARKER = Struct("<QI")  # value and size; a grain's data follows at once
_TYPED_MARKER = Struct("<QII496x")  # of everything that is no grain; size is 0
assert _HEADER.size == SECTOR_BYTES
assert MARKER.size == 12
assert _TYPED_MARKER.size == SECTOR_BYTES


class Marker(IntEnum):
    END_OF_STREAM = 0
    GRAIN_TABLE = 1
    GRAIN_DIRECTORY = 2
    FOOTER = 3


class BadStreamError(Exception):
    """The bytes are no well-formed streamOptimized extent; the text says where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header, or the footer, which only differs in `directory_sector`."""

    capacity_sectors: int
    descriptor_sector: int
    descriptor_sectors: int
    directory_sector: int
    overhead_sectors: int

    @property
    def table_count(self) -> int:
        return -(-self.capacity_sectors // (GRAIN_SECTORS * TABLE_ENTRIES))

    def pack(self) -> bytes:
        return _HEADER.pack(
            _MAGIC,
            3,
            _NEWLINES_VALID | _COMPRESSED | _MARKERS,
            self.capacity_sectors,
            GRAIN_SECTORS,
            self.descriptor_sector,
            self.descriptor_sectors,
            TABLE_ENTRIES,
            0,
            self.directory_sector,
            self.overhead_sectors,
            0,
            _NEWLINE_TEST,
            _DEFLATE,
        )

    @classmethod
    def parse(cls, raw: bytes) -> Header:
        """Raises BadStreamError for anything but a compressed extent with markers."""
        try:
            fields = _HEADER.unpack(raw)
        except error as cause:
            raise BadStreamError("the header is cut short") from cause
        magic, version, flags, capacity, grain, at, length, entries, _, gd, overhead = fields[:11]
        if magic != _MAGIC or fields[12] != _NEWLINE_TEST:
            raise BadStreamError("this is no VMDK, or one that went through a text transfer")
        if version not in (1, 2, 3) or fields[13] != _DEFLATE:
            raise BadStreamError(f"version {version}, compression {fields[13]}")
        if flags & (_COMPRESSED | _MARKERS) != _COMPRESSED | _MARKERS:
            raise BadStreamError("this VMDK is not streamOptimized")
        if grain != GRAIN_SECTORS or entries != TABLE_ENTRIES:
            raise BadStreamError(f"grains of {grain} sectors, tables of {entries} entries")
        if not 0 < capacity <= MAX_CAPACITY_SECTORS:
            raise BadStreamError(f"capacity of {capacity} sectors")
        if not (at >= 1 and length >= 1 and at + length <= overhead <= MAX_OVERHEAD_SECTORS):
            raise BadStreamError("the descriptor does not lie in front of the data")
        return cls(
            capacity_sectors=capacity,
            descriptor_sector=at,
            descriptor_sectors=length,
            directory_sector=gd,
            overhead_sectors=overhead,
        )


def typed_marker(kind: Marker, sectors: int) -> bytes:
    """A marker in front of `sectors` sectors of metadata."""
    return _TYPED_MARKER.pack(sectors, 0, kind)


def parse_typed_marker(raw: bytes) -> tuple[Marker, int]:
    """Kind and number of sectors that follow. Raises BadStreamError."""
    sectors, size, kind = _TYPED_MARKER.unpack(raw)
    if size != 0 or kind not in set(Marker):
        raise BadStreamError(f"unknown marker {kind} of size {size}")
    return Marker(kind), sectors


def padding(length: int) -> int:
    """How many bytes are missing to a whole number of sectors."""
    return -length % SECTOR_BYTES
