"""Numbers, identifiers and fixed structures of VHDX ([MS-VHDX] section 2), little-endian.

Everything in a file is aligned to 1 MiB behind the first MiB, the header section:

    0 file type identifier | 64 KiB, 128 KiB headers | 192 KiB, 256 KiB region tables
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final
from uuid import UUID

import google_crc32c

KIB: Final = 1 << 10
MIB: Final = 1 << 20
TIB: Final = 1 << 40

FILE_SIGNATURE: Final = b"vhdxfile"
HEADER_OFFSETS: Final = (64 * KIB, 128 * KIB)
REGION_TABLE_OFFSETS: Final = (192 * KIB, 256 * KIB)
HEADER_SECTION_BYTES: Final = MIB

# 2.2.2: signature checksum sequence file-write data-write log guids, log version, version,
# log length, log offset
HEADER: Final = Struct("<4sIQ16s16s16sHHIQ")
HEADER_SIGNATURE: Final = b"head"
HEADER_BYTES: Final = 4 * KIB

REGION_TABLE_HEAD: Final = Struct("<4sIII")  # 2.2.3.1: signature checksum count reserved
REGION_TABLE_ENTRY: Final = Struct("<16sQII")  # 2.2.3.2: guid offset length flags
REGION_TABLE_SIGNATURE: Final = b"regi"
REGION_TABLE_BYTES: Final = 64 * KIB
REGION_TABLE_MOST_ENTRIES: Final = 2047
REGION_IS_REQUIRED: Final = 1
BAT_REGION: Final = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION: Final = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")

METADATA_HEAD: Final = Struct("<8sHH20s")  # 2.6.1.1: signature reserved count reserved
METADATA_ENTRY: Final = Struct("<16sIII4s")  # 2.6.1.2: item offset length flags reserved
METADATA_SIGNATURE: Final = b"metadata"
METADATA_TABLE_BYTES: Final = 64 * KIB
METADATA_MOST_ENTRIES: Final = 2047
METADATA_ITEM_MOST_BYTES: Final = MIB
ITEM_IS_USER: Final = 1
ITEM_IS_VIRTUAL_DISK: Final = 2
ITEM_IS_REQUIRED: Final = 4
FILE_PARAMETERS_ITEM: Final = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
DISK_SIZE_ITEM: Final = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
DISK_ID_ITEM: Final = UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR_ITEM: Final = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR_ITEM: Final = UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR_ITEM: Final = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
FILE_PARAMETERS: Final = Struct("<II")  # 2.6.2.1: block size, flags
LEAVE_BLOCKS_ALLOCATED: Final = 1
HAS_PARENT: Final = 2

PARENT_LOCATOR_HEAD: Final = Struct("<16sHH")  # 2.6.2.6.1: type reserved count
PARENT_LOCATOR_ENTRY: Final = Struct("<IIHH")  # 2.6.2.6.2: key and value offsets, lengths
VHDX_PARENT_LOCATOR: Final = UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")

LOG_SECTOR_BYTES: Final = 4 * KIB
# 2.3.1.1: signature checksum entry-length tail sequence descriptors reserved log-guid
# flushed-file-offset last-file-offset
LOG_ENTRY: Final = Struct("<4sIIIQII16sQQ")
LOG_ENTRY_SIGNATURE: Final = b"loge"
LOG_DESCRIPTOR_BYTES: Final = 32
LOG_ZERO: Final = Struct("<4sIQQQ")  # 2.3.1.2: signature reserved length offset sequence
LOG_ZERO_SIGNATURE: Final = b"zero"
LOG_DATA: Final = Struct("<4s4s8sQQ")  # 2.3.1.3: signature trailing leading offset sequence
LOG_DATA_SIGNATURE: Final = b"desc"
LOG_DATA_SECTOR: Final = Struct("<4sI4084sI")  # 2.3.1.4: signature sequence high, data, low
LOG_DATA_SECTOR_SIGNATURE: Final = b"data"

assert HEADER.size == 80
assert REGION_TABLE_ENTRY.size == 32
assert METADATA_HEAD.size == METADATA_ENTRY.size == 32
assert LOG_ENTRY.size == 64
assert LOG_ZERO.size == LOG_DATA.size == LOG_DESCRIPTOR_BYTES
assert LOG_DATA_SECTOR.size == LOG_SECTOR_BYTES

MOST_DISK_BYTES: Final = 64 * TIB
MOST_FILE_BYTES: Final = 128 * TIB  # far more than the largest disk and its tables
LEAST_BLOCK_BYTES: Final = MIB
MOST_BLOCK_BYTES: Final = 256 * MIB
SECTOR_SIZES: Final = (512, 4096)
SECTORS_PER_CHUNK: Final = 1 << 23  # what one sector bitmap block describes
BITMAP_BLOCK_BYTES: Final = MIB
BAT_ENTRY_BYTES: Final = 8
BAT_STATE_MASK: Final = 0b111
BAT_RESERVED_MASK: Final = 0xFFFF8
BAT_OFFSET_SHIFT: Final = 20  # the offset is in MiB: entry = state | offset in bytes


class PayloadState(IntEnum):
    """2.5.1.1. Everything but NOT_PRESENT also hides the parent's block."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    FULLY_PRESENT = 6
    PARTIALLY_PRESENT = 7


class BitmapState(IntEnum):
    """2.5.1.2"""

    NOT_PRESENT = 0
    PRESENT = 6


def checksum(structure: bytes | bytearray) -> int:
    """CRC-32C over a structure whose checksum, at byte 4, counts as zeros."""
    return int(google_crc32c.value(structure[:4] + bytes(4) + structure[8:]))


def sealed(structure: bytes) -> bytes:
    """Return the structure with its checksum, at byte 4, filled in."""
    return structure[:4] + checksum(structure).to_bytes(4, "little") + structure[8:]
