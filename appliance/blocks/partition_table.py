"""Partition tables (MBR, GPT) and what lies in a volume, read from any disk within bounds.

Everything here was written by a guest: counts and lengths are bounded before they are used, chains
end, and a partition that does not lie inside the disk is refused. Nothing is mounted; no name from
a guest is kept.
Sources: UEFI 2.10, chapter 5 (GPT, protective MBR); the MBR as IBM PC DOS left it, with chained
extended partitions; magic numbers of the file systems from their own documentation.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from appliance.base.errors import ApplianceError
from appliance.base.units import KIB, SECTOR_BYTES
from appliance.blocks.device import BlockReader

_MBR_ENTRY = struct.Struct("<B3sB3sII")  # status, CHS, kind, CHS, first sector, sectors
assert _MBR_ENTRY.size == 16
_MBR_TABLE_AT, _MBR_MAGIC_AT, _MBR_MAGIC = 446, 510, b"\x55\xaa"
_EXTENDED_KINDS = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE_KIND = 0xEE
_LOGICAL_MOST = 60
# signature, revision, header bytes, CRC, reserved, own LBA, other LBA, first and last usable LBA,
# disk GUID, LBA of entries, count of entries, bytes of an entry, CRC of entries
_GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
assert _GPT_HEADER.size == 92
_GPT_MAGIC = b"EFI PART"
_GPT_ENTRY = struct.Struct("<16s16sQQ")  # kind, unique GUID, first and last LBA; attributes, name
_GPT_ENTRIES_MOST, _GPT_ENTRY_BYTES_MOST = 1024, 1024
_GPT_SECTORS = (512, 4096)
_PROBE_BYTES = 68 * KIB


class PartitionTableError(ApplianceError):
    """The partition table of a disk cannot be read; the message says what is wrong in it."""

    code = "disk.partition-table"


class VolumeKind(StrEnum):
    EXT = "ext2/3/4"
    NTFS = "NTFS"
    FAT = "FAT"
    XFS = "XFS"
    BTRFS = "Btrfs"
    REFS = "ReFS"
    EXFAT = "exFAT"
    SWAP = "swap"
    LVM = "LVM"
    LUKS = "LUKS"
    BITLOCKER = "BitLocker"
    EMPTY = "empty"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """`number`: as the guest counts partitions, from 1; 0: the whole disk without a table."""

    number: int
    offset: int
    length: int
    kind: VolumeKind


def read_volumes(disk: BlockReader) -> list[Volume]:
    """What lies on a disk, by place; nothing for an empty one.

    Raises: PartitionTableError; what reading the disk raises.
    """
    whole = detect(disk, 0, disk.size_bytes)
    if whole is VolumeKind.EMPTY:
        return []
    if whole is not VolumeKind.UNKNOWN:
        return [Volume(number=0, offset=0, length=disk.size_bytes, kind=whole)]
    sector = disk.read_at(0, min(SECTOR_BYTES, disk.size_bytes))
    if sector[_MBR_MAGIC_AT:] != _MBR_MAGIC:
        return [Volume(number=0, offset=0, length=disk.size_bytes, kind=whole)]
    entries = list(_mbr_entries(sector))
    if any(kind == _PROTECTIVE_KIND for kind, _, _ in entries):
        places = _gpt_places(disk)
    else:
        places = _mbr_places(disk, entries)
    return [
        Volume(number=number, offset=offset, length=length, kind=detect(disk, offset, length))
        for number, offset, length in places
    ]


def detect(disk: BlockReader, offset: int, length: int) -> VolumeKind:
    """Look at the first 68 KiB of a volume."""
    head = disk.read_at(offset, min(_PROBE_BYTES, length))
    for kind, place, magic in _MAGIC:
        if head[place : place + len(magic)] == magic:
            return kind
    return VolumeKind.UNKNOWN if any(head) else VolumeKind.EMPTY


_MAGIC = (
    (VolumeKind.LUKS, 0, b"LUKS\xba\xbe"),
    (VolumeKind.XFS, 0, b"XFSB"),
    (VolumeKind.NTFS, 3, b"NTFS    "),
    (VolumeKind.BITLOCKER, 3, b"-FVE-FS-"),
    (VolumeKind.EXFAT, 3, b"EXFAT   "),
    (VolumeKind.REFS, 3, b"ReFS\0\0\0\0"),
    (VolumeKind.FAT, 82, b"FAT32   "),
    (VolumeKind.FAT, 54, b"FAT1"),
    (VolumeKind.LVM, 512, b"LABELONE"),
    (VolumeKind.EXT, 1080, b"\x53\xef"),
    (VolumeKind.SWAP, 4086, b"SWAPSPACE2"),
    (VolumeKind.BTRFS, 65600, b"_BHRfS_M"),
)


def _mbr_entries(sector: bytes) -> Iterator[tuple[int, int, int]]:
    """Kind, first sector and sectors of each of the four, empty ones too."""
    for number in range(4):
        fields = _MBR_ENTRY.unpack_from(sector, _MBR_TABLE_AT + number * _MBR_ENTRY.size)
        yield fields[2], fields[4], fields[5]


def _mbr_places(
    disk: BlockReader, entries: list[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    places = []
    for number, (kind, first, sectors) in enumerate(entries, 1):
        if kind == 0 or sectors == 0:
            continue
        if kind in _EXTENDED_KINDS:
            places += _logical_places(disk, first)
        else:
            places.append(_place(disk, number, first * SECTOR_BYTES, sectors * SECTOR_BYTES))
    return places


def _logical_places(disk: BlockReader, begin: int) -> list[tuple[int, int, int]]:
    """Follow the chain of an extended partition; each link is relative to its begin."""
    places: list[tuple[int, int, int]] = []
    link, seen = begin, set[int]()
    while len(places) < _LOGICAL_MOST and link not in seen:
        seen.add(link)
        _place(disk, 5 + len(places), link * SECTOR_BYTES, SECTOR_BYTES)
        sector = disk.read_at(link * SECTOR_BYTES, SECTOR_BYTES)
        if sector[_MBR_MAGIC_AT:] != _MBR_MAGIC:
            raise PartitionTableError("an extended partition without its table")
        (kind, first, sectors), (next_kind, next_first, _), *_ = _mbr_entries(sector)
        if kind and sectors:
            start = (link + first) * SECTOR_BYTES
            places.append(_place(disk, 5 + len(places), start, sectors * SECTOR_BYTES))
        if next_kind not in _EXTENDED_KINDS:
            break
        link = begin + next_first
    return places


def _gpt_places(disk: BlockReader) -> list[tuple[int, int, int]]:
    for sector_bytes in _GPT_SECTORS:
        if disk.size_bytes < 2 * sector_bytes:
            continue
        raw = disk.read_at(sector_bytes, sector_bytes)
        if raw.startswith(_GPT_MAGIC):
            return _gpt_entries(disk, raw, sector_bytes)
    raise PartitionTableError("the GPT that the first sector promises is not there")


def _gpt_entries(disk: BlockReader, raw: bytes, sector_bytes: int) -> list[tuple[int, int, int]]:
    fields = _GPT_HEADER.unpack_from(raw)
    header_bytes, check = fields[2], fields[3]
    entries_at, count, entry_bytes, entries_check = fields[10:]
    if not _GPT_HEADER.size <= header_bytes <= sector_bytes:
        raise PartitionTableError(f"a GPT header of {header_bytes} bytes")
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:header_bytes]) != check:
        raise PartitionTableError("the GPT header is damaged")
    if count > _GPT_ENTRIES_MOST or not 128 <= entry_bytes <= _GPT_ENTRY_BYTES_MOST:
        raise PartitionTableError(f"a GPT of {count} entries of {entry_bytes} bytes")
    place, length = entries_at * sector_bytes, count * entry_bytes
    if place + length > disk.size_bytes:
        raise PartitionTableError("the entries of the GPT lie outside the disk")
    entries = disk.read_at(place, length)
    if zlib.crc32(entries) != entries_check:
        raise PartitionTableError("the entries of the GPT are damaged")
    places = []
    for number in range(count):
        kind, _, first, last = _GPT_ENTRY.unpack_from(entries, number * entry_bytes)
        if any(kind):
            size = (last - first + 1) * sector_bytes
            places.append(_place(disk, number + 1, first * sector_bytes, size))
    return places


def _place(disk: BlockReader, number: int, offset: int, length: int) -> tuple[int, int, int]:
    if offset <= 0 or length <= 0 or offset + length > disk.size_bytes:
        raise PartitionTableError(f"partition {number} does not lie inside the disk")
    return number, offset, length
