"""A partition table (GPT) with one partition, as Windows expects it on a data disk.

Source: UEFI 2.10, chapter 5; partition type: Microsoft basic data.
Thread model: pure.
"""

from __future__ import annotations

import struct
import zlib
from uuid import UUID

from appliance.base.units import MIB, SECTOR_BYTES

PARTITION_OFFSET = MIB
BEHIND_BYTES = MIB  # room for the second table, and a whole MiB for the size of the disk
_BASIC_DATA = UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
_ENTRIES, _ENTRY_BYTES = 128, 128
_TABLE_SECTORS = _ENTRIES * _ENTRY_BYTES // SECTOR_BYTES
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
assert _HEADER.size == 92
_ENTRY = struct.Struct("<16s16sQQQ72s")
assert _ENTRY.size == _ENTRY_BYTES
_REVISION = 0x00010000


def partition_table(
    disk_bytes: int, partition_bytes: int, *, disk_id: UUID, partition_id: UUID, name: str
) -> list[tuple[int, bytes]]:
    """Return what is to be written where: (offset in the disk, bytes)."""
    sectors = disk_bytes // SECTOR_BYTES
    first = PARTITION_OFFSET // SECTOR_BYTES
    last = first + partition_bytes // SECTOR_BYTES - 1
    entry = _ENTRY.pack(
        _BASIC_DATA.bytes_le,
        partition_id.bytes_le,
        first,
        last,
        0,
        name.encode("utf-16-le"),
    )
    table = entry.ljust(_ENTRIES * _ENTRY_BYTES, b"\0")
    usable = 2 + _TABLE_SECTORS, sectors - _TABLE_SECTORS - 2

    def header(own: int, other: int, table_at: int) -> bytes:
        def packed(crc: int) -> bytes:
            return _HEADER.pack(
                b"EFI PART",
                _REVISION,
                _HEADER.size,
                crc,
                0,
                own,
                other,
                *usable,
                disk_id.bytes_le,
                table_at,
                _ENTRIES,
                _ENTRY_BYTES,
                zlib.crc32(table),
            )

        return packed(zlib.crc32(packed(0))).ljust(SECTOR_BYTES, b"\0")

    backup = sectors - 1
    front = _protective_mbr(sectors) + header(1, backup, 2) + table
    back = table + header(backup, 1, backup - _TABLE_SECTORS)
    return [(0, front), (disk_bytes - len(back), back)]


def _protective_mbr(sectors: int) -> bytes:
    entry = struct.pack(
        "<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF)
    )
    return entry.rjust(446 + len(entry), b"\0").ljust(510, b"\0") + b"\x55\xaa"
