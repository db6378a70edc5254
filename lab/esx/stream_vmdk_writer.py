"""Disk content → streamOptimized VMDK, in one pass, as an export lease sends it.

Only grains that hold something are sent. Thread model: a generator of its consumer's thread.
Source: see `lab.esx.sparse_extent`.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator
from enum import StrEnum
from typing import Protocol

from lab.esx.areas import Area
from lab.esx.sparse_extent import (
    DIRECTORY_AT_END,
    GRAIN_BYTES,
    GRAIN_SECTORS,
    MARKER,
    SECTOR_BYTES,
    TABLE_ENTRIES,
    TABLE_SECTORS,
    Header,
    Marker,
    padding,
    typed_marker,
)

_OVERHEAD_SECTORS = 128  # what hosts use
_DESCRIPTOR_SECTORS = 20
_READ_GRAINS = 16
_LEVEL = 1  # a host spends little on compression
_ZERO_GRAIN = bytes(GRAIN_BYTES)


class DiskContent(Protocol):
    """A disk to read: a flat file, or the merged chain of a snapshot."""

    @property
    def size_bytes(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; holes are zeros."""
        ...

    def allocated(self) -> list[Area]:
        """(offset, length) of what may hold data, ascending; the rest reads as zeros."""
        ...


class StreamDefect(StrEnum):
    """Ways to break a stream on purpose; the second grain is hit, or the only one."""

    BAD_GRAIN = "bad-grain"
    WRONG_LBA = "wrong-lba"
    NO_FOOTER = "no-footer"


def stream_vmdk(
    disk: DiskContent, descriptor: str, defect: StreamDefect | None = None
) -> Iterator[bytes]:
    """Yield the file's bytes in order. The capacity must be whole sectors.

    Raises:
        ValueError: a capacity that is none, or a descriptor that has no room.
    """
    if disk.size_bytes <= 0 or disk.size_bytes % SECTOR_BYTES:
        raise ValueError(f"{disk.size_bytes} bytes are no disk")
    return _Writer(disk, descriptor.encode(), defect).pieces()


class _Writer:
    def __init__(self, disk: DiskContent, descriptor: bytes, defect: StreamDefect | None) -> None:
        if len(descriptor) > _DESCRIPTOR_SECTORS * SECTOR_BYTES:
            raise ValueError(f"a descriptor of {len(descriptor)} bytes")
        self._disk = disk
        self._descriptor = descriptor
        self._defect = defect
        self._sector = _OVERHEAD_SECTORS
        self._grains = 0

    def pieces(self) -> Iterator[bytes]:
        yield self._front()
        directory = array("I", bytes(4 * self._header(0).table_count))
        table, number = array("I", bytes(4 * TABLE_ENTRIES)), 0
        for grain, data in self._filled_grains():
            if grain // TABLE_ENTRIES != number:
                yield from self._table(table, directory, number)
                table, number = array("I", bytes(4 * TABLE_ENTRIES)), grain // TABLE_ENTRIES
            table[grain % TABLE_ENTRIES] = self._sector
            yield self._grain(grain, data)
        yield from self._table(table, directory, number)
        if self._defect is not StreamDefect.NO_FOOTER:
            yield self._end(directory)

    def _header(self, directory_sector: int) -> Header:
        return Header(
            capacity_sectors=self._disk.size_bytes // SECTOR_BYTES,
            descriptor_sector=1,
            descriptor_sectors=_DESCRIPTOR_SECTORS,
            directory_sector=directory_sector,
            overhead_sectors=_OVERHEAD_SECTORS,
        )

    def _front(self) -> bytes:
        front = self._header(DIRECTORY_AT_END).pack() + self._descriptor
        return front.ljust(_OVERHEAD_SECTORS * SECTOR_BYTES, b"\0")

    def _filled_grains(self) -> Iterator[tuple[int, bytes]]:
        """Grains with something in them, ascending; the last one of the disk filled up."""
        done = 0  # every grain below this was looked at
        for offset, length in self._disk.allocated():
            first, stop = offset // GRAIN_BYTES, -(-(offset + length) // GRAIN_BYTES)
            first = max(first, done)
            for start in range(first, stop, _READ_GRAINS):
                yield from self._read(start, min(_READ_GRAINS, stop - start))
            done = max(done, stop)

    def _read(self, first: int, count: int) -> Iterator[tuple[int, bytes]]:
        offset = first * GRAIN_BYTES
        data = self._disk.read_at(offset, min(count * GRAIN_BYTES, self._disk.size_bytes - offset))
        for place in range(0, len(data), GRAIN_BYTES):
            grain = data[place : place + GRAIN_BYTES].ljust(GRAIN_BYTES, b"\0")
            if grain != _ZERO_GRAIN:
                yield first + place // GRAIN_BYTES, grain

    def _grain(self, grain: int, data: bytes) -> bytes:
        self._grains += 1
        stored, lba = zlib.compress(data, _LEVEL), grain * GRAIN_SECTORS
        if self._grains == 2 and self._defect is StreamDefect.BAD_GRAIN:
            stored = bytes(len(stored))
        if self._grains == 2 and self._defect is StreamDefect.WRONG_LBA:
            lba = 0
        packed = MARKER.pack(lba, len(stored)) + stored
        packed += bytes(padding(len(packed)))
        self._sector += len(packed) // SECTOR_BYTES
        return packed

    def _table(self, table: array[int], directory: array[int], number: int) -> Iterator[bytes]:
        """Nothing for a table without an entry: its place in the directory stays 0."""
        if not any(table):
            return
        directory[number] = self._sector + 1
        self._sector += 1 + TABLE_SECTORS
        yield typed_marker(Marker.GRAIN_TABLE, TABLE_SECTORS) + table.tobytes()

    def _end(self, directory: array[int]) -> bytes:
        raw = directory.tobytes()
        raw += bytes(padding(len(raw)))
        footer = self._header(self._sector + 1)
        return b"".join(
            (
                typed_marker(Marker.GRAIN_DIRECTORY, len(raw) // SECTOR_BYTES),
                raw,
                typed_marker(Marker.FOOTER, 1),
                footer.pack(),
                typed_marker(Marker.END_OF_STREAM, 0),
            )
        )


def descriptor_text(*, size_bytes: int, content_id: int, uuid: str, hardware_version: int) -> str:
    """The embedded descriptor of an exported disk; `uuid` in the form of `backing.uuid`."""
    sectors = size_bytes // SECTOR_BYTES
    digits = uuid.replace("-", "").lower()
    pairs = [digits[i : i + 2] for i in range(0, len(digits), 2)]
    return (
        "# Disk DescriptorFile\nversion=1\n"
        f"CID={content_id:08x}\nparentCID=ffffffff\n"
        'createType="streamOptimized"\n\n# Extent description\n'
        f'RW {sectors} SPARSE "call-me-stream.vmdk"\n\n# The Disk Data Base\n#DDB\n\n'
        'ddb.adapterType = "lsilogic"\n'
        f'ddb.geometry.cylinders = "{min(sectors // (255 * 63), 65535)}"\n'
        'ddb.geometry.heads = "255"\nddb.geometry.sectors = "63"\n'
        f'ddb.uuid = "{" ".join(pairs[:8])}-{" ".join(pairs[8:])}"\n'
        f'ddb.virtualHWVersion = "{hardware_version}"\n'
    )
