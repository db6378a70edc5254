"""Partition tables that guests wrote: sound ones are read, all others refused, none believed."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.blocks.partition_table import (
    PartitionTableError,
    VolumeKind,
    read_volumes,
)
from tests.support.memory_reader import MemoryReader

SECTOR = 512
DISK_BYTES = 1 << 20


def mbr(*entries: tuple[int, int, int]) -> bytearray:
    """A disk with a table of (kind, first sector, sectors)."""
    disk = bytearray(DISK_BYTES)
    write_table(disk, 0, *entries)
    return disk


def write_table(disk: bytearray, sector: int, *entries: tuple[int, int, int]) -> None:
    base = sector * SECTOR
    for number, (kind, first, count) in enumerate(entries):
        struct.pack_into("<4xB3xII", disk, base + 446 + 16 * number, kind, first, count)
    disk[base + 510 : base + 512] = b"\x55\xaa"


def gpt(*entries: tuple[int, int], count: int = 128, entry_bytes: int = 128) -> bytearray:
    """A disk with a GPT of (first LBA, last LBA)."""
    disk = mbr((0xEE, 1, 0xFFFFFFFF))
    table = bytearray(count * entry_bytes if count < 2000 else 0)
    for number, (first, last) in enumerate(entries):
        place = number * entry_bytes
        struct.pack_into("<16s16sQQ", table, place, b"kind", b"guid", first, last)
    fields = (b"EFI PART", 0x10000, 92, 0, 0, 1, 2047, 34, 2014, bytes(16), 2, count, entry_bytes)
    header = bytearray(struct.pack("<8sIIIIQQQQ16sQIII", *fields, zlib.crc32(table)))
    struct.pack_into("<I", header, 16, zlib.crc32(header))
    disk[SECTOR : SECTOR + len(header)] = header
    disk[2 * SECTOR : 2 * SECTOR + len(table)] = table
    return disk


def found(disk: bytes | bytearray) -> list[tuple[int, int, int]]:
    volumes = read_volumes(MemoryReader(disk))
    return [(volume.number, volume.offset, volume.length) for volume in volumes]


def test_primary_and_logical_partitions_are_found() -> None:
    """Logical ones count from 5 and lie where their own tables say."""
    disk = mbr((0x83, 64, 100), (0, 0, 0), (0x07, 200, 50), (0x0F, 400, 600))
    write_table(disk, 400, (0x83, 10, 20), (0x05, 100, 200))
    write_table(disk, 500, (0x83, 10, 30))
    assert found(disk) == [
        (1, 64 * SECTOR, 100 * SECTOR),
        (3, 200 * SECTOR, 50 * SECTOR),
        (5, 410 * SECTOR, 20 * SECTOR),
        (6, 510 * SECTOR, 30 * SECTOR),
    ]


def test_a_chain_that_bites_its_tail_ends() -> None:
    """A table that leads back to itself is followed once."""
    disk = mbr((0x05, 400, 600))
    write_table(disk, 400, (0x83, 10, 20), (0x05, 0, 100))
    assert found(disk) == [(5, 410 * SECTOR, 20 * SECTOR)]


def test_a_gpt_is_read_with_its_own_numbers() -> None:
    """Entries left out keep their number."""
    assert found(gpt((64, 127), (128, 255))) == [
        (1, 64 * SECTOR, 64 * SECTOR),
        (2, 128 * SECTOR, 128 * SECTOR),
    ]


@pytest.mark.parametrize(
    "disk",
    [
        mbr((0x83, 64, 0x7FFFFFFF)),
        mbr((0x83, 0, 10)),
        mbr((0x05, 0x7FFFFFFF, 10)),
        mbr((0x05, 400, 600)),
        mbr((0xEE, 1, 100)),
        gpt((64, 1 << 60)),
        gpt((200, 100)),
        gpt(count=0xFFFFFFFF),
        gpt(entry_bytes=8, count=8),
    ],
    ids=range(9),
)
def test_a_table_that_cannot_be_is_refused(disk: bytearray) -> None:
    """Beyond the disk, without an end, larger than any table is."""
    with pytest.raises(PartitionTableError):
        read_volumes(MemoryReader(disk))


@pytest.mark.parametrize("place", [SECTOR + 20, SECTOR + 40, 2 * SECTOR + 40])
def test_a_damaged_gpt_is_refused(place: int) -> None:
    """Its checksums are looked at."""
    disk = gpt((64, 127))
    disk[place] ^= 1
    with pytest.raises(PartitionTableError, match="damaged"):
        read_volumes(MemoryReader(disk))


@pytest.mark.parametrize(
    ("kind", "place", "magic"),
    [
        (VolumeKind.EXT, 1080, b"\x53\xef"),
        (VolumeKind.NTFS, 3, b"NTFS    "),
        (VolumeKind.FAT, 82, b"FAT32   "),
        (VolumeKind.FAT, 54, b"FAT16   "),
        (VolumeKind.XFS, 0, b"XFSB"),
        (VolumeKind.BTRFS, 65600, b"_BHRfS_M"),
        (VolumeKind.LVM, 512, b"LABELONE"),
        (VolumeKind.LUKS, 0, b"LUKS\xba\xbe"),
        (VolumeKind.BITLOCKER, 3, b"-FVE-FS-"),
        (VolumeKind.SWAP, 4086, b"SWAPSPACE2"),
    ],
)
def test_a_disk_without_a_table_is_one_volume(kind: VolumeKind, place: int, magic: bytes) -> None:
    """A boot sector's own magic does not make it a table."""
    disk = bytearray(DISK_BYTES)
    disk[510:512] = b"\x55\xaa"
    disk[place : place + len(magic)] = magic
    (volume,) = read_volumes(MemoryReader(disk))
    assert (volume.number, volume.kind, volume.length) == (0, kind, DISK_BYTES)


def test_an_empty_disk_has_no_volumes_and_an_unknown_one_has_one() -> None:
    """Neither is an error."""
    assert found(bytes(DISK_BYTES)) == []
    assert found(random.Random(1).randbytes(DISK_BYTES)) == [(0, 0, DISK_BYTES)]
    assert found(b"\1" * 100) == [(0, 0, 100)]


@given(st.binary(min_size=66, max_size=66), st.binary(min_size=512, max_size=512))
def test_no_table_leads_outside_the_disk(table: bytes, second: bytes) -> None:
    """Whatever a guest writes, every volume lies inside, or the table is refused."""
    disk = bytearray(DISK_BYTES)
    disk[446:512] = table[:64] + b"\x55\xaa"
    disk[512:1024] = second
    with contextlib.suppress(PartitionTableError):
        for _, offset, length in found(disk):
            assert offset >= 0 and length > 0 and offset + length <= DISK_BYTES
