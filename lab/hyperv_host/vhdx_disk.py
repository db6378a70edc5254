"""One VHDX file, read and written: fixed, dynamic, or differencing over a parent.

QEMU writes no differencing VHDX, so the practice host has its own layer between a guest's disk
and its file: what a backup reads over SMB is what the guest wrote, at every moment.

Invariants: payload is written before the bitmap, the bitmap before the BAT entry that shows it;
the first write after opening gives the file new write GUIDs, so a child made over an older state
no longer fits. A log that has to be replayed is refused (the chain has QEMU replay it first).
Thread model: one caller at a time; `chain` locks. Source: [MS-VHDX] 2.2, 2.5.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lab.hyperv_host.disk_bytes import open_bytes
from lab.hyperv_host.errors import CorruptDiskError, HypervError
from lab.hyperv_host.smb_client import SmbPlace
from lab.hyperv_host.vhdx_format import (
    BAT_OFFSET,
    BITMAP_BYTES,
    FULLY_PRESENT,
    HEADER_BYTES,
    HEADER_OFFSETS,
    METADATA_OFFSET,
    MIB,
    NO_GUID,
    NOT_PRESENT,
    PARTIALLY_PRESENT,
    REGION_TABLE_BYTES,
    REGION_TABLE_OFFSETS,
    ZERO,
    DiskGeometry,
    Header,
    decode_header,
    decode_metadata,
    decode_regions,
    encode_identifier,
    encode_regions,
)

_STATE_MASK, _OFFSET_MASK = 7, ~((1 << 20) - 1)


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of one block: all of it in this file (`offset`), zero, or the parent's."""

    start: int  # bytes of the virtual disk
    length: int
    offset: int | None = None
    parent: bool = False


class LogNotReplayedError(CorruptDiskError):
    """The file was not closed: its log has to be replayed before it is used."""


def create(path: Path, geometry: DiskGeometry) -> None:
    """Make a new file, with every block of a fixed disk allocated (and sparse)."""
    guid = uuid.uuid4()
    header = Header(sequence=1, file_write_guid=guid, data_write_guid=uuid.uuid4())
    regions = encode_regions(geometry)
    payload = BAT_OFFSET + geometry.bat_bytes
    with path.open("xb") as file:
        for place, data in (
            (0, encode_identifier()),
            (HEADER_OFFSETS[0], header.encode()),
            (HEADER_OFFSETS[1], replace(header, sequence=2).encode()),
            (REGION_TABLE_OFFSETS[0], regions),
            (REGION_TABLE_OFFSETS[1], regions),
            (METADATA_OFFSET, geometry.encode()),
        ):
            file.seek(place)
            file.write(data)
        if geometry.fixed:
            for block in range(geometry.block_count):
                file.seek(BAT_OFFSET + geometry.payload_entry(block) * 8)
                entry = (payload + block * geometry.block_bytes) | FULLY_PRESENT
                file.write(struct.pack("<Q", entry))
            payload += geometry.block_count * geometry.block_bytes
        file.truncate(payload)


class VhdxDisk:
    def __init__(self, path: Path | SmbPlace, *, writable: bool) -> None:
        """Raises CorruptDiskError; LogNotReplayedError."""
        self.path = path
        self.writable = writable
        self.parent: VhdxDisk | None = None
        self._bytes = open_bytes(path, writable=writable)
        try:
            self._load()
        except BaseException:
            self._bytes.close()
            raise
        self._changed = False
        self._bitmaps: dict[int, bytearray] = {}

    def _load(self) -> None:
        file_bytes = self._bytes.size()
        if self._bytes.pread(8, 0) != b"vhdxfile":
            raise CorruptDiskError(f"{self.path.name} is not a virtual hard disk")
        headers = [self._bytes.pread(HEADER_BYTES, offset) for offset in HEADER_OFFSETS]
        self.header, self._header_place = decode_header(*headers)
        if self.header.log_guid != NO_GUID:
            raise LogNotReplayedError(f"{self.path.name} was not closed")
        table = self._bytes.pread(REGION_TABLE_BYTES, REGION_TABLE_OFFSETS[0])
        regions = decode_regions(table, file_bytes)
        metadata = self._bytes.pread(min(regions.metadata_bytes, MIB), regions.metadata_offset)
        self.geometry = decode_metadata(metadata)
        entries = self.geometry.bat_entries
        if entries * 8 > regions.bat_bytes:
            raise CorruptDiskError("the BAT is too short for the virtual disk")
        self._bat_offset, self._metadata_offset = regions.bat_offset, regions.metadata_offset
        self._bat = list(
            struct.unpack(f"<{entries}Q", self._bytes.pread(entries * 8, self._bat_offset))
        )
        self._end = -(-file_bytes // MIB) * MIB

    @property
    def size_bytes(self) -> int:
        return self.geometry.size_bytes

    @property
    def file_bytes(self) -> int:
        return self._bytes.size()

    @property
    def local_path(self) -> Path:
        """Raises HypervError: the file is on a share."""
        if isinstance(self.path, Path):
            return self.path
        raise HypervError(f"'{self.path.name}' is on a share of another machine.")

    def close(self) -> None:
        self._bytes.close()

    def flush(self) -> None:
        if self._changed:
            self._bytes.sync()

    # ------------------------------------------------------------------ reading

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, merged with the parents'."""
        parts = []
        for run in self.runs(offset, length):
            if run.offset is not None:
                data = self._bytes.pread(run.length, run.offset)
                parts.append(data.ljust(run.length, b"\0"))
            elif run.parent and self.parent is not None:
                inside = max(0, min(run.length, self.parent.size_bytes - run.start))
                data = self.parent.read_at(run.start, inside) if inside else b""
                parts.append(data.ljust(run.length, b"\0"))
            else:
                parts.append(bytes(run.length))
        return b"".join(parts)

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """What a range is made of, in order. Raises CorruptDiskError for a BAT that lies."""
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise CorruptDiskError(f"[{offset}, {offset + length}) lies outside the disk")
        while length:
            block, inside = divmod(offset, self.geometry.block_bytes)
            count = min(length, self.geometry.block_bytes - inside)
            yield from self._block_runs(block, inside, count)
            offset, length = offset + count, length - count

    def _block_runs(self, block: int, inside: int, count: int) -> Iterator[Run]:
        entry = self._bat[self.geometry.payload_entry(block)]
        state, place = entry & _STATE_MASK, entry & _OFFSET_MASK
        start = block * self.geometry.block_bytes + inside
        if state == FULLY_PRESENT:
            yield Run(start, count, self._checked(place) + inside)
        elif state == NOT_PRESENT and self.geometry.differencing:
            yield Run(start, count, parent=True)
        elif state == PARTIALLY_PRESENT and self.geometry.differencing:
            yield from self._partial_runs(block, inside, count, self._checked(place))
        else:
            yield Run(start, count)  # zero, unmapped or undefined

    def _partial_runs(self, block: int, inside: int, count: int, place: int) -> Iterator[Run]:
        sector_bytes = self.geometry.logical_sector_bytes
        bitmap, first_bit = self._bitmap(block), self._first_bit(block)
        start = block * self.geometry.block_bytes
        end = inside + count
        while inside < end:
            bit = first_bit + inside // sector_bytes
            here = bool(bitmap[bit >> 3] >> (bit & 7) & 1)
            stop = (inside // sector_bytes + 1) * sector_bytes
            while stop < end:
                bit += 1
                if bool(bitmap[bit >> 3] >> (bit & 7) & 1) != here:
                    break
                stop += sector_bytes
            stop = min(stop, end)
            yield Run(
                start + inside, stop - inside, place + inside if here else None, parent=not here
            )
            inside = stop

    def _checked(self, place: int) -> int:
        if not MIB <= place < self._end:
            raise CorruptDiskError(f"a block of {self.path.name} lies outside the file")
        return place

    def present_blocks(self) -> list[int]:
        """Blocks of which this file itself has data or zeros."""
        entry = self.geometry.payload_entry
        blocks = range(self.geometry.block_count)
        return [block for block in blocks if self._bat[entry(block)] & _STATE_MASK != NOT_PRESENT]

    # ------------------------------------------------------------------ writing

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Whole sectors, as a disk takes them."""
        sector = self.geometry.logical_sector_bytes
        if offset % sector or len(data) % sector or offset + len(data) > self.size_bytes:
            raise CorruptDiskError(f"a write of {len(data)} bytes at {offset}")
        self._mark_changed()
        view = memoryview(data)
        while len(view):
            block, inside = divmod(offset, self.geometry.block_bytes)
            count = min(len(view), self.geometry.block_bytes - inside)
            self._write_block(block, inside, view[:count])
            offset, view = offset + count, view[count:]

    def zero_at(self, offset: int, length: int) -> None:
        """Zeros; takes no room where zeros show already."""
        while length:
            block, inside = divmod(offset, self.geometry.block_bytes)
            count = min(length, self.geometry.block_bytes - inside)
            state = self._bat[self.geometry.payload_entry(block)] & _STATE_MASK
            if state == NOT_PRESENT and count == self.geometry.block_bytes:
                if self.geometry.differencing:
                    self._mark_changed()
                    self._set_entry(self.geometry.payload_entry(block), ZERO)
            elif self.geometry.differencing or state == FULLY_PRESENT:
                self.write_at(offset, bytes(count))
            offset, length = offset + count, length - count

    def _write_block(self, block: int, inside: int, data: memoryview) -> None:
        index = self.geometry.payload_entry(block)
        state, place = self._bat[index] & _STATE_MASK, self._bat[index] & _OFFSET_MASK
        whole = len(data) == min(
            self.geometry.block_bytes, self.size_bytes - block * self.geometry.block_bytes
        )
        if state in (FULLY_PRESENT, PARTIALLY_PRESENT):
            self._bytes.pwrite(data, self._checked(place) + inside)
            if state == PARTIALLY_PRESENT:
                self._mark_present(block, inside, len(data))
            return
        place = self._allocate(self.geometry.block_bytes)
        self._bytes.pwrite(data, place + inside)
        if whole or not self.geometry.differencing or state != NOT_PRESENT:
            self._set_entry(index, place | FULLY_PRESENT)
            return
        self._clear_present(block)
        self._mark_present(block, inside, len(data))
        self._set_entry(index, place | PARTIALLY_PRESENT)

    def _allocate(self, length: int) -> int:
        place = self._end
        self._end += length
        self._bytes.truncate(self._end)
        return place

    def _set_entry(self, index: int, value: int) -> None:
        self._bat[index] = value
        self._bytes.pwrite(struct.pack("<Q", value), self._bat_offset + index * 8)

    def _mark_changed(self) -> None:
        if self._changed:
            return
        self._changed = True
        self._set_header(
            replace(self.header, file_write_guid=uuid.uuid4(), data_write_guid=uuid.uuid4())
        )

    def _set_header(self, header: Header) -> None:
        """In both places, the one that is not current first."""
        for _ in HEADER_OFFSETS:
            header = replace(header, sequence=header.sequence + 1)
            self._header_place = 1 - self._header_place
            self._bytes.pwrite(header.encode(), HEADER_OFFSETS[self._header_place])
            self._bytes.sync()
        self.header = header

    def set_parent_locator(self, parent: tuple[tuple[str, str], ...]) -> None:
        """The parent has another name, or other contents; what the disk reads as stays."""
        self._set_header(replace(self.header, file_write_guid=uuid.uuid4()))
        self.geometry = replace(self.geometry, parent=parent)
        self._bytes.pwrite(self.geometry.encode(), self._metadata_offset)

    # ------------------------------------------------------------------ sector bitmaps

    def _first_bit(self, block: int) -> int:
        sectors = self.geometry.block_bytes // self.geometry.logical_sector_bytes
        return block % self.geometry.chunk_ratio * sectors

    def _bitmap(self, block: int) -> bytearray:
        chunk = block // self.geometry.chunk_ratio
        if chunk not in self._bitmaps:
            entry = self._bat[self.geometry.bitmap_entry(block)]
            data = b""
            if entry & _STATE_MASK == FULLY_PRESENT:
                data = self._bytes.pread(BITMAP_BYTES, entry & _OFFSET_MASK)
            self._bitmaps[chunk] = bytearray(data.ljust(BITMAP_BYTES, b"\0"))
        return self._bitmaps[chunk]

    def _clear_present(self, block: int) -> None:
        sectors = self.geometry.block_bytes // self.geometry.logical_sector_bytes
        first = self._first_bit(block)
        bitmap = self._bitmap(block)
        bitmap[first >> 3 : (first + sectors) >> 3] = bytes(sectors >> 3)
        self._save_bitmap(block, first, first + sectors)

    def _mark_present(self, block: int, inside: int, length: int) -> None:
        sector = self.geometry.logical_sector_bytes
        first = self._first_bit(block) + inside // sector
        end = first + length // sector
        bitmap = self._bitmap(block)
        low, high = -(-first >> 3), end >> 3  # whole bytes
        for bit in (*range(first, min(end, low << 3)), *range(max(first, high << 3), end)):
            bitmap[bit >> 3] |= 1 << (bit & 7)
        if high > low:
            bitmap[low:high] = b"\xff" * (high - low)
        self._save_bitmap(block, first, end)

    def _save_bitmap(self, block: int, first: int, end: int) -> None:
        index = self.geometry.bitmap_entry(block)
        if self._bat[index] & _STATE_MASK != FULLY_PRESENT:
            self._set_entry(index, self._allocate(BITMAP_BYTES) | FULLY_PRESENT)
        low, high = first >> 3, (end + 7) >> 3
        place = (self._bat[index] & _OFFSET_MASK) + low
        self._bytes.pwrite(bytes(self._bitmap(block)[low:high]), place)
