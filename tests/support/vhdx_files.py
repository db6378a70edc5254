"""VHDX files of every kind, made byte by byte: differencing, with a dirty log, 4Kn, damaged.

qemu-img makes none of these. Nothing here uses the library under test; [MS-VHDX] is the source of
both.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c

MIB = 1 << 20
LOG_AT, METADATA_AT, BAT_AT = MIB, 2 * MIB, 3 * MIB
LOG_BYTES = MIB
PAGE = 4096
BAT_GUID = "2DC27766-F623-4200-9D64-115E9BFD4A08"
METADATA_GUID = "8B7CA206-4790-4B9A-B8FE-575F050F886E"
LOCATOR_GUID = "B04AEFB7-D19E-4A81-B789-25B8E9445913"
PRESENT, PARTIAL = 6, 7
DISK_ID = uuid.UUID(int=7)


@dataclass(kw_only=True)
class MadeVhdx:
    """`blocks`: number -> state, or (state, content); a partial block has `bits`, one per sector,
    of which a 1 says that the sector is in this file. `entries` overrides raw table entries."""

    disk_bytes: int
    block_bytes: int = MIB
    sector_bytes: int = 512
    blocks: dict[int, int | tuple[int, bytes]] = field(default_factory=dict)
    bits: dict[int, Sequence[int]] = field(default_factory=dict)
    parent: MadeVhdx | None = None
    parent_path: str = ".\\parent.vhdx"
    content_id: uuid.UUID = field(default_factory=uuid.uuid4)
    disk_id: uuid.UUID = DISK_ID
    entries: dict[int, int] = field(default_factory=dict)

    @property
    def chunk_ratio(self) -> int:
        return (1 << 23) * self.sector_bytes // self.block_bytes

    def index(self, block: int) -> int:
        return block + block // self.chunk_ratio

    def build(self) -> bytes:
        count = -(-self.disk_bytes // self.block_bytes)
        chunks = -(-count // self.chunk_ratio)
        table = bytearray(-(-(chunks * (self.chunk_ratio + 1) * 8) // MIB) * MIB)
        payload_at = BAT_AT + len(table)
        payload = b""
        for block, what in self.blocks.items():
            state, content = what if isinstance(what, tuple) else (what, b"")
            entry = state
            if state in (PRESENT, PARTIAL):
                entry |= payload_at + len(payload)
                payload += content.ljust(self.block_bytes, b"\0")
            struct.pack_into("<Q", table, self.index(block) * 8, entry)
        for chunk in sorted({block // self.chunk_ratio for block in self.bits}):
            bitmap = bytearray(MIB)
            for block, bits in self.bits.items():
                if block // self.chunk_ratio == chunk:
                    base = block % self.chunk_ratio * (self.block_bytes // self.sector_bytes)
                    for number, bit in enumerate(bits, base):
                        bitmap[number // 8] |= bit << number % 8
            at = (chunk * (self.chunk_ratio + 1) + self.chunk_ratio) * 8
            struct.pack_into("<Q", table, at, payload_at + len(payload) | PRESENT)
            payload += bitmap
        for number, entry in self.entries.items():
            struct.pack_into("<Q", table, number * 8, entry)
        head = bytearray(MIB)
        head[:8] = b"vhdxfile"
        for number, at in enumerate((64 << 10, 128 << 10), 1):
            head[at : at + PAGE] = made_header(number, self.content_id)
        regions = struct.pack("<4sIII", b"regi", 0, 2, 0)
        regions += guid(BAT_GUID) + struct.pack("<QII", BAT_AT, len(table), 1)
        regions += guid(METADATA_GUID) + struct.pack("<QII", METADATA_AT, MIB, 1)
        regions = sealed(regions.ljust(64 << 10, b"\0"))
        for at in (192 << 10, 256 << 10):
            head[at : at + len(regions)] = regions
        metadata = self._metadata().ljust(MIB, b"\0")
        return bytes(head) + bytes(LOG_BYTES) + metadata + bytes(table) + payload

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path

    def _metadata(self) -> bytes:
        items = [
            ("CAA16737-FA36-4D43-B3B6-33F0AA44E76B",
             struct.pack("<II", self.block_bytes, 2 if self.parent else 0), 4),
            ("2FA54224-CD1B-4876-B211-5DBED83BF4B8", struct.pack("<Q", self.disk_bytes), 6),
            ("BECA12AB-B2E6-4523-93EF-C309E000C746", self.disk_id.bytes_le, 6),
            ("8141BF1D-A96F-4709-BA47-F233A8FAAB5F", struct.pack("<I", self.sector_bytes), 6),
            ("CDA348C7-445D-4471-9CC9-E9885251C556", struct.pack("<I", 4096), 6),
        ]  # fmt: skip
        if self.parent is not None:
            pairs = [
                ("parent_linkage", f"{{{self.parent.content_id}}}"),
                ("relative_path", self.parent_path),
                ("absolute_win32_path", "C:\\VM\\" + self.parent_path.removeprefix(".\\")),
            ]
            items.append(("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C", locator(pairs), 4))
        table = struct.pack("<8sHH20x", b"metadata", 0, len(items))
        contents = b""
        for item, content, flags in items:
            at = (64 << 10) + len(contents)
            table += guid(item) + struct.pack("<III4x", at, len(content), flags)
            contents += content
        return table.ljust(64 << 10, b"\0") + contents


def guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


def sealed(raw: bytes) -> bytes:
    crc = google_crc32c.value(raw[:4] + bytes(4) + raw[8:])
    return raw[:4] + struct.pack("<I", crc) + raw[8:]


def made_header(sequence: int, content_id: uuid.UUID, log_id: uuid.UUID | None = None) -> bytes:
    raw = struct.pack("<4sIQ", b"head", 0, sequence) + uuid.UUID(int=sequence).bytes_le
    raw += content_id.bytes_le + (log_id or uuid.UUID(int=0)).bytes_le
    raw += struct.pack("<HHIQ", 0, 1, LOG_BYTES, LOG_AT)
    return sealed(raw.ljust(PAGE, b"\0"))


def locator(pairs: Sequence[tuple[str, str]]) -> bytes:
    head = guid(LOCATOR_GUID) + struct.pack("<HH", 0, len(pairs))
    texts = b""
    start = len(head) + 12 * len(pairs)
    for key, value in pairs:
        raw_key, raw_value = key.encode("utf-16-le"), value.encode("utf-16-le")
        at = start + len(texts)
        head += struct.pack("<IIHH", at, at + len(raw_key), len(raw_key), len(raw_value))
        texts += raw_key + raw_value
    return head + texts


LOG_ID = uuid.UUID("11111111-2222-3333-4444-555555555555")
Update = tuple[int, bytes | int]
"""(file offset, a page of 4 KiB) or (file offset, length of zeros)"""


def log_entry(
    sequence: int, tail: int, updates: Sequence[Update], file_bytes: int, last_bytes: int = 0
) -> bytes:
    descriptors = data = b""
    for offset, what in updates:
        if isinstance(what, int):
            descriptors += struct.pack("<4sIQQQ", b"zero", 0, what, offset, sequence)
            continue
        descriptors += struct.pack("<4s4s8sQQ", b"desc", what[-4:], what[:8], offset, sequence)
        low, high = sequence & 0xFFFF_FFFF, sequence >> 32
        data += struct.pack("<4sI4084sI", b"data", high, what[8:-4], low)
    descriptors = descriptors.ljust(-(-(64 + len(descriptors)) // PAGE) * PAGE - 64, b"\0")
    raw = struct.pack(
        "<4sIIIQII", b"loge", 0, 64 + len(descriptors) + len(data), tail, sequence, len(updates), 0
    )
    raw += LOG_ID.bytes_le + struct.pack("<QQ", file_bytes, max(last_bytes, file_bytes))
    return sealed(raw + descriptors + data)


def with_log(
    file: bytes, entries: Sequence[Sequence[Update]], *, at: int = 0, first_sequence: int = 5
) -> bytes:
    """Return the file with a log of these entries, from byte `at` of it, round its end."""
    log = bytearray(LOG_BYTES)
    start = at
    for number, updates in enumerate(entries):
        entry = log_entry(first_sequence + number, start, updates, len(file))
        for offset in range(0, len(entry), PAGE):
            place = (at + offset) % LOG_BYTES
            log[place : place + PAGE] = entry[offset : offset + PAGE]
        at = (at + len(entry)) % LOG_BYTES
    content_id = uuid.UUID(bytes_le=file[(128 << 10) + 32 :][:16])
    made = bytearray(file)
    made[LOG_AT : LOG_AT + LOG_BYTES] = log
    for number, place in enumerate((64 << 10, 128 << 10), 3):
        made[place : place + PAGE] = made_header(number, content_id, LOG_ID)
    return bytes(made)
