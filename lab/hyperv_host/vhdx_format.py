"""The layout of a VHDX file: headers, region table, metadata, BAT geometry. Pure.

What is written follows the specification to the letter; what is read is checked before it is
used: signatures, checksums, bounds, required regions and items. Source: [MS-VHDX] 2.1 to 2.6.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

import google_crc32c

from lab.hyperv_host.errors import CorruptDiskError

KIB, MIB = 1 << 10, 1 << 20
HEADER_OFFSETS = (64 * KIB, 128 * KIB)
REGION_TABLE_OFFSETS = (192 * KIB, 256 * KIB)
LOG_OFFSET, METADATA_OFFSET, BAT_OFFSET = 1 * MIB, 2 * MIB, 3 * MIB
HEADER_BYTES, REGION_TABLE_BYTES, METADATA_TABLE_BYTES = 4 * KIB, 64 * KIB, 64 * KIB
BITMAP_BYTES = MIB
NOT_PRESENT, ZERO, FULLY_PRESENT, PARTIALLY_PRESENT = 0, 2, 6, 7
NO_GUID = uuid.UUID(int=0)
SIZE_MAX = 64 << 40
_BAT_BYTES_MAX = 64 * MIB
_CHUNK_SECTORS = 1 << 23

_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGION_HEAD = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")
_METADATA_HEAD = struct.Struct("<8sHH20s")
_ITEM = struct.Struct("<16sIIII")
_LOCATOR_HEAD = struct.Struct("<16sHH")
_LOCATOR_ENTRY = struct.Struct("<IIHH")
_BAT_REGION = uuid.UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
_METADATA_REGION = uuid.UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
_FILE_PARAMETERS = uuid.UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
_DISK_SIZE = uuid.UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
_DISK_ID = uuid.UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
_LOGICAL_SECTOR = uuid.UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
_PHYSICAL_SECTOR = uuid.UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
_PARENT_LOCATOR = uuid.UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
_LOCATOR_TYPE = uuid.UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")
_KNOWN_ITEMS = {
    *(_FILE_PARAMETERS, _DISK_SIZE, _DISK_ID, _LOGICAL_SECTOR, _PHYSICAL_SECTOR, _PARENT_LOCATOR)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    sequence: int
    file_write_guid: uuid.UUID
    data_write_guid: uuid.UUID
    log_guid: uuid.UUID = NO_GUID

    def encode(self) -> bytes:
        guids = (self.file_write_guid, self.data_write_guid, self.log_guid)
        fields = (b"head", 0, self.sequence, *(one.bytes_le for one in guids))
        raw = _HEADER.pack(*fields, 0, 1, MIB, LOG_OFFSET)
        return _checked(raw.ljust(HEADER_BYTES, b"\0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskGeometry:
    """The metadata of a disk; `parent` is what the parent locator says, empty without one."""

    size_bytes: int
    block_bytes: int
    disk_id: uuid.UUID
    logical_sector_bytes: int = 512
    physical_sector_bytes: int = 4096
    fixed: bool = False
    parent: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        sector = self.logical_sector_bytes
        if sector not in (512, 4096) or self.physical_sector_bytes not in (512, 4096):
            raise CorruptDiskError(f"sectors of {sector} bytes")
        if not 0 < self.size_bytes <= SIZE_MAX or self.size_bytes % sector:
            raise CorruptDiskError(f"a virtual disk of {self.size_bytes} bytes")
        block = self.block_bytes
        if not MIB <= block <= 256 * MIB or block & (block - 1):
            raise CorruptDiskError(f"blocks of {block} bytes")

    @property
    def differencing(self) -> bool:
        return bool(self.parent)

    @property
    def chunk_ratio(self) -> int:
        return _CHUNK_SECTORS * self.logical_sector_bytes // self.block_bytes

    @property
    def block_count(self) -> int:
        return -(-self.size_bytes // self.block_bytes)

    @property
    def bat_entries(self) -> int:
        if self.differencing:
            return -(-self.block_count // self.chunk_ratio) * (self.chunk_ratio + 1)
        return self.block_count + (self.block_count - 1) // self.chunk_ratio

    @property
    def bat_bytes(self) -> int:
        """Of the region: whole MiB."""
        return -(-self.bat_entries * 8 // MIB) * MIB

    def payload_entry(self, block: int) -> int:
        return block + block // self.chunk_ratio

    def bitmap_entry(self, block: int) -> int:
        """The BAT entry of the bitmap that covers the block."""
        return (block // self.chunk_ratio + 1) * (self.chunk_ratio + 1) - 1

    def encode(self) -> bytes:
        """The metadata region."""
        parameters = struct.pack("<II", self.block_bytes, self.fixed | self.differencing << 1)
        items = [
            (_FILE_PARAMETERS, parameters, 4),
            (_DISK_SIZE, struct.pack("<Q", self.size_bytes), 6),
            (_DISK_ID, self.disk_id.bytes_le, 6),
            (_LOGICAL_SECTOR, struct.pack("<I", self.logical_sector_bytes), 6),
            (_PHYSICAL_SECTOR, struct.pack("<I", self.physical_sector_bytes), 6),
        ]
        if self.parent:
            items.append((_PARENT_LOCATOR, _encoded_locator(self.parent), 4))
        table = [_METADATA_HEAD.pack(b"metadata", 0, len(items), b"")]
        data, offset = [], METADATA_TABLE_BYTES
        for item, value, flags in items:
            table.append(_ITEM.pack(item.bytes_le, offset, len(value), flags, 0))
            padded = value.ljust(-(-len(value) // 16) * 16, b"\0")
            data.append(padded)
            offset += len(padded)
        return b"".join(table).ljust(METADATA_TABLE_BYTES, b"\0") + b"".join(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    bat_offset: int
    bat_bytes: int
    metadata_offset: int
    metadata_bytes: int


def encode_regions(geometry: DiskGeometry) -> bytes:
    entries = (
        _REGION.pack(_BAT_REGION.bytes_le, BAT_OFFSET, geometry.bat_bytes, 1),
        _REGION.pack(_METADATA_REGION.bytes_le, METADATA_OFFSET, MIB, 1),
    )
    raw = _REGION_HEAD.pack(b"regi", 0, len(entries), 0) + b"".join(entries)
    return _checked(raw.ljust(REGION_TABLE_BYTES, b"\0"))


def encode_identifier() -> bytes:
    return b"vhdxfile" + "Practice host".encode("utf-16-le").ljust(512, b"\0")


def decode_header(first: bytes, second: bytes) -> tuple[Header, int]:
    """The current header and which of the two it is. Raises CorruptDiskError: neither is valid."""
    valid = []
    for place, raw in enumerate((first, second)):
        if len(raw) != HEADER_BYTES or raw[:4] != b"head" or not _is_checked(raw):
            continue
        _, _, sequence, file_guid, data_guid, log_guid, _, version, _, _ = _HEADER.unpack_from(raw)
        if version == 1:
            guids = (uuid.UUID(bytes_le=one) for one in (file_guid, data_guid, log_guid))
            file_write, data_write, log = guids
            header = Header(
                sequence=sequence,
                file_write_guid=file_write,
                data_write_guid=data_write,
                log_guid=log,
            )
            valid.append((sequence, place, header))
    if not valid:
        raise CorruptDiskError("neither header of the virtual hard disk is valid")
    _, place, header = max(valid, key=lambda one: one[0])
    return header, place


def decode_regions(raw: bytes, file_bytes: int) -> Regions:
    """Raises CorruptDiskError."""
    if len(raw) != REGION_TABLE_BYTES or raw[:4] != b"regi" or not _is_checked(raw):
        raise CorruptDiskError("the region table of the virtual hard disk is not valid")
    _, _, count, _ = _REGION_HEAD.unpack_from(raw)
    found: dict[uuid.UUID, tuple[int, int]] = {}
    for place in range(min(count, 2047)):
        guid, offset, length, required = _REGION.unpack_from(raw, _REGION_HEAD.size + place * 32)
        name = uuid.UUID(bytes_le=guid)
        if name in (_BAT_REGION, _METADATA_REGION):
            if offset < MIB or offset % MIB or offset + length > file_bytes:
                raise CorruptDiskError("a region lies outside the file")
            found[name] = (offset, length)
        elif required & 1:
            raise CorruptDiskError(f"the required region {name} is not known")
    if len(found) != 2 or found[_BAT_REGION][1] > _BAT_BYTES_MAX:
        raise CorruptDiskError("the BAT or metadata region is missing or too large")
    bat, metadata = found[_BAT_REGION], found[_METADATA_REGION]
    return Regions(
        bat_offset=bat[0], bat_bytes=bat[1], metadata_offset=metadata[0], metadata_bytes=metadata[1]
    )


def decode_metadata(raw: bytes) -> DiskGeometry:
    """Raises CorruptDiskError."""
    if raw[:8] != b"metadata" or len(raw) < METADATA_TABLE_BYTES:
        raise CorruptDiskError("the metadata of the virtual hard disk is not valid")
    _, _, count, _ = _METADATA_HEAD.unpack_from(raw)
    items: dict[uuid.UUID, bytes] = {}
    for place in range(min(count, 2047)):
        guid, offset, length, flags, _ = _ITEM.unpack_from(raw, 32 + place * 32)
        name = uuid.UUID(bytes_le=guid)
        if name not in _KNOWN_ITEMS:
            if flags & 4:
                raise CorruptDiskError(f"the required metadata {name} is not known")
            continue
        if offset < METADATA_TABLE_BYTES or offset + length > len(raw):
            raise CorruptDiskError("a metadata item lies outside its region")
        items[name] = raw[offset : offset + length]
    try:
        block_bytes, flags = struct.unpack("<II", items[_FILE_PARAMETERS])
        parent = _decoded_locator(items[_PARENT_LOCATOR]) if flags & 2 else ()
        return DiskGeometry(
            size_bytes=struct.unpack("<Q", items[_DISK_SIZE])[0],
            block_bytes=block_bytes,
            disk_id=uuid.UUID(bytes_le=items[_DISK_ID]),
            logical_sector_bytes=struct.unpack("<I", items[_LOGICAL_SECTOR])[0],
            physical_sector_bytes=struct.unpack("<I", items[_PHYSICAL_SECTOR])[0],
            fixed=bool(flags & 1),
            parent=parent,
        )
    except (KeyError, ValueError, struct.error) as error:
        raise CorruptDiskError("the metadata of the virtual hard disk is not complete") from error


def _encoded_locator(entries: tuple[tuple[str, str], ...]) -> bytes:
    texts = [text.encode("utf-16-le") for pair in entries for text in pair]
    offset = _LOCATOR_HEAD.size + _LOCATOR_ENTRY.size * len(entries)
    table = [_LOCATOR_HEAD.pack(_LOCATOR_TYPE.bytes_le, 0, len(entries))]
    for key, value in zip(texts[::2], texts[1::2], strict=True):
        table.append(_LOCATOR_ENTRY.pack(offset, offset + len(key), len(key), len(value)))
        offset += len(key) + len(value)
    return b"".join([*table, *texts])


def _decoded_locator(raw: bytes) -> tuple[tuple[str, str], ...]:
    kind, _, count = _LOCATOR_HEAD.unpack_from(raw)
    if uuid.UUID(bytes_le=kind) != _LOCATOR_TYPE or not 0 < count <= 64:
        raise CorruptDiskError("the parent locator is not one of a VHDX")
    entries = []
    for place in range(count):
        start = _LOCATOR_HEAD.size + place * _LOCATOR_ENTRY.size
        key_at, value_at, key_bytes, value_bytes = _LOCATOR_ENTRY.unpack_from(raw, start)
        key = raw[key_at : key_at + key_bytes].decode("utf-16-le")
        entries.append((key, raw[value_at : value_at + value_bytes].decode("utf-16-le")))
    return tuple(entries)


def _checked(raw: bytes) -> bytes:
    """With its CRC-32C at bytes 4 to 8."""
    return raw[:4] + struct.pack("<I", google_crc32c.value(raw)) + raw[8:]


def _is_checked(raw: bytes) -> bool:
    (stored,) = struct.unpack_from("<I", raw, 4)
    return bool(stored == google_crc32c.value(raw[:4] + bytes(4) + raw[8:]))
