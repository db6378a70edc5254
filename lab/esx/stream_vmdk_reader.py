"""streamOptimized VMDK → disk, in one pass, as a host takes an upload: strictly.

Every marker, table, directory and the footer is checked against what was really sent. Two endings
are known: that of hosts and ovftool (tables behind the data, footer), and that of `qemu-img`
(tables in front, no footer), which hosts import too. Nothing is buffered but a grain and the
tables' entries. Source: see `lab.esx.sparse_extent`.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass

from lab.esx.sparse_extent import (
    DIRECTORY_AT_END,
    GRAIN_BYTES,
    GRAIN_SECTORS,
    MARKER,
    MAX_STORED_BYTES,
    SECTOR_BYTES,
    TABLE_ENTRIES,
    TABLE_SECTORS,
    BadStreamError,
    Header,
    Marker,
    padding,
    parse_typed_marker,
)

ReadExactly = Callable[[int], bytes]  # fewer bytes than asked only at the end of the stream
WriteAt = Callable[[int, bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedDisk:
    """What a stream held; `populated_bytes` counts whole grains."""

    capacity_bytes: int
    populated_bytes: int
    stream_bytes: int
    descriptor: str


def receive_vmdk(
    read: ReadExactly, begin: Callable[[int], None], write_at: WriteAt
) -> ReceivedDisk:
    """Read one stream to its end; `begin` hears the capacity before the first `write_at`.

    Raises:
        BadStreamError: the stream is malformed or ends early; what was written stays.
    """
    return _Reader(read, write_at).run(begin)


class _Reader:
    def __init__(self, read: ReadExactly, write_at: WriteAt) -> None:
        self._source = read
        self._write_at = write_at
        self._position = 0
        self._next_lba = 0
        self._grains = 0
        self._table = array("I", bytes(4 * TABLE_ENTRIES))
        self._table_number = 0
        self._ended = False
        self._footer_seen = False

    def run(self, begin: Callable[[int], None]) -> ReceivedDisk:
        self._header = header = Header.parse(self._read(SECTOR_BYTES))
        self._directory = array("I", bytes(4 * header.table_count))
        self._directory_sector = 0
        front = self._read((header.overhead_sectors - 1) * SECTOR_BYTES)
        start = (header.descriptor_sector - 1) * SECTOR_BYTES
        text = front[start : start + header.descriptor_sectors * SECTOR_BYTES].rstrip(b"\0")
        descriptor = text.decode("utf-8", "replace")
        if not descriptor.startswith("# Disk DescriptorFile"):
            raise BadStreamError("there is no descriptor")
        begin(header.capacity_sectors * SECTOR_BYTES)
        while not self._ended:
            self._next_part()
        self._check_rest()
        return ReceivedDisk(
            capacity_bytes=header.capacity_sectors * SECTOR_BYTES,
            populated_bytes=self._grains * GRAIN_BYTES,
            stream_bytes=self._position,
            descriptor=descriptor,
        )

    def _check_rest(self) -> None:
        """Nothing follows the end; but `qemu-img` fills the last grain's place up with zeros."""
        allowed = 0 if self._tables_follow else GRAIN_BYTES
        rest = self._source(allowed + 1)
        if len(rest) > allowed or any(rest):
            raise BadStreamError("bytes follow the end-of-stream marker")

    @property
    def _tables_follow(self) -> bool:
        return self._header.directory_sector == DIRECTORY_AT_END

    def _read(self, count: int) -> bytes:
        data = self._source(count)
        if len(data) != count:
            raise BadStreamError(f"the stream ends at byte {self._position + len(data)}")
        self._position += count
        return data

    def _next_part(self) -> None:
        first = self._source(SECTOR_BYTES)
        if not first and not self._tables_follow:
            self._ended = True
            return
        if len(first) != SECTOR_BYTES:
            raise BadStreamError(f"the stream ends at byte {self._position + len(first)}")
        sector = self._position // SECTOR_BYTES
        self._position += SECTOR_BYTES
        lba, size = MARKER.unpack_from(first)
        if size:
            self._take_grain(sector, lba, size, first[MARKER.size :])
            return
        kind, sectors = parse_typed_marker(first)
        if kind is Marker.END_OF_STREAM:
            self._end(sectors)
        elif not self._tables_follow:
            raise BadStreamError(f"marker {kind.name} though the tables came first")
        elif kind is Marker.GRAIN_TABLE:
            self._check_table(sectors)
        elif kind is Marker.GRAIN_DIRECTORY:
            self._check_directory(sectors)
        else:
            self._check_footer(sectors)

    def _take_grain(self, sector: int, lba: int, size: int, begun: bytes) -> None:
        if lba % GRAIN_SECTORS or lba >= self._header.capacity_sectors:
            raise BadStreamError(f"grain at LBA {lba} of {self._header.capacity_sectors}")
        if lba < self._next_lba or self._directory_sector:
            raise BadStreamError(f"grain at LBA {lba} comes too late")
        if size > MAX_STORED_BYTES:
            raise BadStreamError(f"grain at LBA {lba} has {size} bytes")
        rest = max(0, size - len(begun))
        stored = (
            (begun + self._read(rest + padding(MARKER.size + size)))[:size]
            if rest
            else begun[:size]
        )
        self._enter(sector, lba // GRAIN_SECTORS)
        offset = lba * SECTOR_BYTES
        room = min(GRAIN_BYTES, self._header.capacity_sectors * SECTOR_BYTES - offset)
        self._write_at(offset, _inflate(stored, lba, room)[:room])
        self._next_lba = lba + GRAIN_SECTORS
        self._grains += 1

    def _enter(self, sector: int, grain: int) -> None:
        if grain // TABLE_ENTRIES != self._table_number:
            if self._tables_follow and any(self._table):
                raise BadStreamError(f"no grain table before grain {grain}")
            self._table = array("I", bytes(4 * TABLE_ENTRIES))
            self._table_number = grain // TABLE_ENTRIES
        self._table[grain % TABLE_ENTRIES] = sector

    def _check_table(self, sectors: int) -> None:
        place = self._position // SECTOR_BYTES
        if sectors != TABLE_SECTORS or self._directory_sector:
            raise BadStreamError(f"grain table of {sectors} sectors")
        if self._read(sectors * SECTOR_BYTES) != self._table.tobytes():
            raise BadStreamError(f"grain table at sector {place} is not that of its grains")
        if any(self._table):
            self._directory[self._table_number] = place
        self._table = array("I", bytes(4 * TABLE_ENTRIES))

    def _check_directory(self, sectors: int) -> None:
        if any(self._table):
            raise BadStreamError("the last grain table is missing")
        self._directory_sector = self._position // SECTOR_BYTES
        expected = self._directory.tobytes()
        if sectors != -(-len(expected) // SECTOR_BYTES):
            raise BadStreamError(f"grain directory of {sectors} sectors")
        found = self._read(sectors * SECTOR_BYTES)[: len(expected)]
        for number, place in enumerate(struct.unpack(f"<{len(self._directory)}I", found)):
            # An empty table may be sent all the same, or left out.
            if self._directory[number] not in (0, place):
                raise BadStreamError(f"grain directory entry {number} is wrong")

    def _check_footer(self, sectors: int) -> None:
        footer = Header.parse(self._read(SECTOR_BYTES)) if sectors == 1 else None
        good = footer is not None and (
            footer.directory_sector == self._directory_sector != 0
            and footer.capacity_sectors == self._header.capacity_sectors
        )
        if not good:
            raise BadStreamError("the footer does not fit the stream")
        self._footer_seen = True

    def _end(self, sectors: int) -> None:
        if sectors:
            raise BadStreamError("end-of-stream marker with a length")
        if self._tables_follow and not self._footer_seen:
            raise BadStreamError("the stream ends without a footer")
        self._ended = True


def _inflate(stored: bytes, lba: int, room: int) -> bytes:
    """A grain's bytes: a whole grain, or what is left of the disk."""
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(stored, GRAIN_BYTES + 1)
    except zlib.error as cause:
        raise BadStreamError(f"grain at LBA {lba} is not zlib") from cause
    whole = inflater.eof and not inflater.unused_data
    if not whole or len(data) not in (room, GRAIN_BYTES):
        raise BadStreamError(f"grain at LBA {lba} holds {len(data)} bytes")
    return data
