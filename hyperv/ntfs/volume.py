"""An NTFS volume from outside: where the clusters of a file are, and saying that it is all written.

    volume = NtfsVolume(device)
    file = volume.find("disk-0.vhdx")      in the root folder
    file.extents                            (offset in the volume, offset in the file, bytes)
    volume.settle(file)                     every byte counts as written; sizes in the folder too

The volume must not be mounted anywhere. It was made by mkntfs and ntfsfallocate just before; all
the same every number in it is checked. `ntfsfallocate` leaves the *initialised size* at 0, with
which a reader sees zeros and Windows would write them: `settle` sets it to the size of the data.
Thread model: one thread.
Source: the NTFS documentation of the Linux-NTFS project: boot sector, index blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from hyperv.ntfs.errors import NtfsError
from hyperv.ntfs.file_record import (
    ATTRIBUTE_LIST,
    DATA,
    FILE_NAME,
    INDEX_ALLOCATION,
    NOT_PLAIN,
    Attribute,
    FileRecord,
    Run,
)

_ROOT = 5
_RECORDS_MOST = 1 << 16
_INDEX_BLOCKS_MOST = 1 << 12
_SIZES_AT = 0x28  # in $FILE_NAME: allocated, then real
_NAME_AT = 0x42
_RECORD_NUMBER = (1 << 48) - 1


class Device(Protocol):
    def read_at(self, offset: int, length: int) -> bytes: ...

    def write_at(self, offset: int, data: bytes | memoryview) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FileExtent:
    """Bytes of a file that lie in one piece in the volume."""

    volume_offset: int
    file_offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NtfsFile:
    number: int  # of its record
    size_bytes: int
    allocated_bytes: int
    extents: tuple[FileExtent, ...]


class NtfsVolume:
    def __init__(self, device: Device) -> None:
        """Raises NtfsError: this is no NTFS volume, or one that cannot be."""
        self._device = device
        boot = device.read_at(0, 512)
        if boot[3:11] != b"NTFS    " or boot[510:] != b"\x55\xaa":
            raise NtfsError("no NTFS boot sector")
        (sector_bytes,) = struct.unpack_from("<H", boot, 0x0B)
        per_cluster = boot[0x0D]
        sectors = per_cluster if per_cluster <= 128 else 1 << (256 - per_cluster)
        self.cluster_bytes: int = sector_bytes * sectors
        (table_cluster,) = struct.unpack_from("<Q", boot, 0x30)
        record_size, index_size = struct.unpack_from("<b3xb", boot, 0x40)
        self._record_bytes = self._structure_bytes(record_size)
        self._index_bytes = self._structure_bytes(index_size)
        if sector_bytes not in (512, 4096) or self.cluster_bytes > 2 << 20:
            raise NtfsError(f"clusters of {self.cluster_bytes} bytes")
        at = table_cluster * self.cluster_bytes
        table = FileRecord(device.read_at(at, self._record_bytes))
        data = _only(table, DATA)
        self._table_runs = table.runs(data)
        self._records = min(table.data_bytes(data) // self._record_bytes, _RECORDS_MOST)

    def find(self, name: str) -> NtfsFile:
        """A file of the root folder by its exact name.

        Raises:
            NtfsError: it is not there, or lies in a way that cannot be mapped: sparse, compressed,
                encrypted, or not allocated.
        """
        wanted = name.encode("utf-16-le")
        for number in range(_ROOT + 1, self._records):
            record = self._used_record(number)
            if record is not None and wanted in _root_names(record):
                return self._describe(number, record, name)
        raise NtfsError(f"no file {name!r} in the root folder")

    def settle(self, file: NtfsFile) -> None:
        """Let every byte of the file count as written, and its folder show its size."""
        record = self._record(file.number)
        record.set_all_initialised(_only(record, DATA))
        for attribute in record.attributes():
            if attribute.kind == FILE_NAME:
                _set_sizes(record, record.value(attribute)[0], file)
        self._device.write_at(self._record_offset(file.number), record.encoded())
        root = self._record(_ROOT)
        for attribute in root.attributes():
            if attribute.kind != INDEX_ALLOCATION:
                continue
            for offset in self._index_blocks(root.runs(attribute)):
                self._settle_in_block(offset, file)

    def _describe(self, number: int, record: FileRecord, name: str) -> NtfsFile:
        if any(attribute.kind == ATTRIBUTE_LIST for attribute in record.attributes()):
            raise NtfsError(f"{name!r} is described in several records")
        data = _only(record, DATA)
        if data.resident or data.flags & NOT_PLAIN:
            raise NtfsError(f"{name!r} is not a plain, allocated file")
        extents = tuple(
            FileExtent(
                volume_offset=run.first_in_volume * self.cluster_bytes,
                file_offset=run.first_in_file * self.cluster_bytes,
                length=run.clusters * self.cluster_bytes,
            )
            for run in record.runs(data)
        )
        return NtfsFile(
            number=number,
            size_bytes=record.data_bytes(data),
            allocated_bytes=sum(extent.length for extent in extents),
            extents=extents,
        )

    def _settle_in_block(self, offset: int, file: NtfsFile) -> None:
        raw = self._device.read_at(offset, self._index_bytes)
        if raw[:4] != b"INDX":
            return  # allocated, not used
        block = FileRecord(raw, b"INDX")
        for entry in _entries(block.content):
            (reference,) = struct.unpack_from("<Q", block.content, entry)
            if reference & _RECORD_NUMBER == file.number:
                _set_sizes(block, entry + 16, file)
                self._device.write_at(offset, block.encoded())

    def _index_blocks(self, runs: list[Run]) -> Iterator[int]:
        count = 0
        for run in runs:
            start = run.first_in_volume * self.cluster_bytes
            end = start + run.clusters * self.cluster_bytes
            for offset in range(start, end - self._index_bytes + 1, self._index_bytes):
                if count == _INDEX_BLOCKS_MOST:
                    return
                count += 1
                yield offset

    def _structure_bytes(self, size: int) -> int:
        """Of records and index blocks: clusters, or a power of two of bytes when negative."""
        found = int(size * self.cluster_bytes if size > 0 else 1 << -size)
        if not 512 <= found <= 64 << 10:
            raise NtfsError(f"structures of {found} bytes")
        return found

    def _record_offset(self, number: int) -> int:
        offset = number * self._record_bytes
        for run in self._table_runs:
            inside = offset - run.first_in_file * self.cluster_bytes
            if 0 <= inside < run.clusters * self.cluster_bytes:
                return run.first_in_volume * self.cluster_bytes + inside
        raise NtfsError(f"the file table has no record {number}")

    def _record(self, number: int) -> FileRecord:
        return FileRecord(self._device.read_at(self._record_offset(number), self._record_bytes))

    def _used_record(self, number: int) -> FileRecord | None:
        raw = self._device.read_at(self._record_offset(number), self._record_bytes)
        if raw[:4] != b"FILE":
            return None
        record = FileRecord(raw)
        return record if record.in_use else None


def _only(record: FileRecord, kind: int) -> Attribute:
    for attribute in record.attributes():
        if attribute.kind == kind and not attribute.name_length:
            return attribute
    raise NtfsError(f"a record without attribute {kind:#x}")


def _root_names(record: FileRecord) -> list[bytes]:
    """The file's names in the root folder, UTF-16."""
    names = []
    for attribute in record.attributes():
        if attribute.kind != FILE_NAME:
            continue
        start, length = record.value(attribute)
        if length < _NAME_AT:
            raise NtfsError("a file name that is cut off")
        (parent,) = struct.unpack_from("<Q", record.content, start)
        end = _NAME_AT + 2 * record.content[start + 0x40]
        if parent & _RECORD_NUMBER == _ROOT and end <= length:
            names.append(bytes(record.content[start + _NAME_AT : start + end]))
    return names


def _set_sizes(record: FileRecord, name_at: int, file: NtfsFile) -> None:
    at = name_at + _SIZES_AT
    struct.pack_into("<QQ", record.content, at, file.allocated_bytes, file.size_bytes)


def _entries(block: bytearray) -> Iterator[int]:
    """Where the entries of an index block begin, without the last, which has no name."""
    first, used = struct.unpack_from("<II", block, 0x18)
    offset, end = 0x18 + first, min(0x18 + used, len(block))
    while offset + 16 + _NAME_AT <= end:
        length, flags = struct.unpack_from("<H2xH", block, offset + 8)
        if flags & 2 or length < 16:
            return
        yield offset
        offset += length
