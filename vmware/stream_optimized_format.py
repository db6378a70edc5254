"""streamOptimized VMDK: the structures of the one-pass, compressed form of a disk.

A file is a header, a text descriptor, then grains (64 KiB of disk each, zlib, empty ones left out)
with the tables that find them, each behind a marker, and at the end a footer and an end-of-stream
marker. Everything is little-endian and begins on a sector of 512 bytes.

Invariants: nothing read from a file sizes an allocation before it was checked here.
Thread model: values and pure functions.
Source: VMware Virtual Disk Format 5.0 ("Stream-Optimized Compressed Sparse Extents").
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from vmware.vmdk_descriptor import SECTOR_BYTES, VmdkError

MAGIC = 0x564D444B  # "KDMV" on disk
VERSION = 3
FLAG_NEWLINE_TEST = 1 << 0
FLAG_COMPRESSED = 1 << 16
FLAG_MARKERS = 1 << 17
COMPRESSION_DEFLATE = 1
GD_AT_END = 0xFFFFFFFFFFFFFFFF
GRAIN_SECTORS = 128
TABLE_ENTRIES = 512
MAX_CAPACITY_SECTORS = (64 << 40) // SECTOR_BYTES
MAX_GRAIN_SECTORS = 2048  # 1 MiB; every known writer takes 128

# magic version flags capacity grain descriptor(offset, size) entries rgd gd overhead unclean
# newline-test compression
_HEADER = Struct("<IIIQQQQIQQQB4sH433x")
assert _HEADER.size == SECTOR_BYTES
_NEWLINES = b"\n \r\n"
GRAIN_MARKER = Struct("<QI")  # sector of the disk, bytes that follow at once
_MARKER = Struct("<QII496x")  # sectors that follow, 0, kind
assert _MARKER.size == SECTOR_BYTES


class MarkerKind(IntEnum):
    END_OF_STREAM = 0
    GRAIN_TABLE = 1
    GRAIN_DIRECTORY = 2
    FOOTER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """All counts in sectors. The footer is the same structure with the true `directory`."""

    capacity: int
    grain: int
    descriptor: int
    descriptor_size: int
    directory: int  # GD_AT_END: see the footer
    overhead: int  # where the grains begin

    @property
    def capacity_bytes(self) -> int:
        return self.capacity * SECTOR_BYTES

    @property
    def grain_bytes(self) -> int:
        return self.grain * SECTOR_BYTES


def pack_header(header: Header) -> bytes:
    return _HEADER.pack(
        MAGIC,
        VERSION,
        FLAG_NEWLINE_TEST | FLAG_COMPRESSED | FLAG_MARKERS,
        header.capacity,
        header.grain,
        header.descriptor,
        header.descriptor_size,
        TABLE_ENTRIES,
        0,
        header.directory,
        header.overhead,
        0,
        _NEWLINES,
        COMPRESSION_DEFLATE,
    )


def parse_header(raw: bytes) -> Header:
    """Raises VmdkError: not a streamOptimized header, or a size out of bounds."""
    fields = _HEADER.unpack(raw)
    magic, version, flags, capacity, grain, descriptor, size, entries = fields[:8]
    directory, overhead = fields[9], fields[10]
    newlines, compression = fields[12], fields[13]
    if magic != MAGIC:
        raise VmdkError("the disk stream is no VMDK")
    if version not in (1, 2, 3) or compression != COMPRESSION_DEFLATE:
        raise VmdkError(f"a VMDK stream of version {version} with compression {compression}")
    if not flags & FLAG_COMPRESSED or not flags & FLAG_MARKERS:
        raise VmdkError(f"the VMDK stream is not streamOptimized (flags {flags:#x})")
    if flags & FLAG_NEWLINE_TEST and newlines != _NEWLINES:
        raise VmdkError("the VMDK stream was damaged by a text conversion")
    if not 0 < capacity <= MAX_CAPACITY_SECTORS or entries != TABLE_ENTRIES:
        raise VmdkError(f"a VMDK stream of {capacity} sectors, {entries} entries per table")
    if not 8 <= grain <= MAX_GRAIN_SECTORS or grain & (grain - 1):
        raise VmdkError(f"a VMDK stream with grains of {grain} sectors")
    if not 1 <= overhead <= 1 << 20 or descriptor + size > overhead:
        raise VmdkError(f"a VMDK stream whose grains begin at sector {overhead}")
    return Header(
        capacity=capacity,
        grain=grain,
        descriptor=descriptor,
        descriptor_size=size,
        directory=directory,
        overhead=overhead,
    )


def pack_marker(kind: MarkerKind, sectors: int) -> bytes:
    return _MARKER.pack(sectors, 0, kind)


def unpack_marker(sector: bytes) -> tuple[int, int, int]:
    """Return (disk sector or sectors that follow, bytes of grain or 0, kind if 0)."""
    number, size, kind = _MARKER.unpack(sector)
    return number, size, kind


def compressed_limit(grain_bytes: int) -> int:
    """No sane deflate of a grain is longer."""
    return grain_bytes + grain_bytes // 8 + SECTOR_BYTES


def inflate(data: bytes | memoryview, most_bytes: int) -> bytes:
    """Decompress one grain, never more than `most_bytes`. Releases the GIL.

    Raises:
        VmdkError: damaged, longer than that, or something follows it.
    """
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, most_bytes + 1)
    except zlib.error as error:
        raise VmdkError(f"a grain cannot be decompressed: {error}") from error
    if len(raw) > most_bytes or not stream.eof or stream.unused_data:
        raise VmdkError("a grain of a VMDK stream has the wrong length")
    return raw
