"""VHD files made byte by byte; qemu-img makes no differencing ones.

Source: "Virtual Hard Disk Image Format Specification" 1.0.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence

SECTOR = 512
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
TABLE_AT = 1536


def with_checksum(raw: bytes, at: int) -> bytes:
    total = sum(raw) - sum(raw[at : at + 4])
    return raw[:at] + struct.pack(">I", ~total & 0xFFFF_FFFF) + raw[at + 4 :]


def footer(disk_bytes: int, kind: int, own_id: uuid.UUID) -> bytes:
    header_at = 0xFFFF_FFFF_FFFF_FFFF if kind == FIXED else SECTOR
    raw = struct.pack(">8sIIQI4sI4sQQ", b"conectix", 2, 0x10000, header_at, 0, b"test", 1,
                      b"Wi2k", disk_bytes, disk_bytes)  # fmt: skip
    raw += struct.pack(">HBBII16sB", 4, 4, 17, kind, 0, own_id.bytes, 0)
    return with_checksum(raw.ljust(SECTOR, b"\0"), 64)


def fixed_vhd(content: bytes) -> bytes:
    return content + footer(len(content), FIXED, uuid.UUID(int=9))


def dynamic_vhd(
    disk_bytes: int,
    blocks: dict[int, tuple[bytes, Sequence[int]]],
    *,
    block_bytes: int = 1 << 20,
    own_id: uuid.UUID = uuid.UUID(int=9),  # noqa: B008  (immutable)
    parent: tuple[uuid.UUID, str] | None = None,
) -> bytes:
    """`blocks`: number -> (content, one bit per sector); `parent`: its id and Windows path."""
    kind = DIFFERENCING if parent else DYNAMIC
    count = -(-disk_bytes // block_bytes)
    table_bytes = -(-count * 4 // SECTOR) * SECTOR
    path = (parent[1] if parent else "").encode("utf-16-le")
    path_at = TABLE_AT + table_bytes
    table = [0xFFFF_FFFF] * count
    data = path.ljust(-(-len(path) // SECTOR) * SECTOR, b"\0")
    for block, (content, bits) in blocks.items():
        table[block] = (path_at + len(data)) // SECTOR
        bitmap = bytearray(-(-block_bytes // SECTOR // 8 // SECTOR) * SECTOR)
        for number, bit in enumerate(bits):
            bitmap[number // 8] |= bit << 7 - number % 8
        data += bitmap + content.ljust(block_bytes, b"\0")
    header = struct.pack(
        ">8sQQIIII16sII", b"cxsparse", 0xFFFF_FFFF_FFFF_FFFF, TABLE_AT, 0x10000, count, block_bytes,
        0, parent[0].bytes if parent else bytes(16), 0, 0,
    )  # fmt: skip
    name = (parent[1] if parent else "").rsplit("\\", 1)[-1].encode("utf-16-be")
    header += name.ljust(512, b"\0")
    if parent:
        header += struct.pack(">4sIIIQ", b"W2ru", SECTOR, len(path), 0, path_at)
    header = with_checksum(header.ljust(1024, b"\0"), 36)
    end = footer(disk_bytes, kind, own_id)
    raw_table = struct.pack(f">{count}I", *table).ljust(table_bytes, b"\xff")
    return end + header + raw_table + data + end
