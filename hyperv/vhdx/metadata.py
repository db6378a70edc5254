"""What a VHDX file says of its disk ([MS-VHDX] 2.6). Nothing in it has a checksum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hyperv.vhdx.errors import CorruptDiskFileError, UnsupportedDiskFileError
from hyperv.vhdx.parent_reference import ParentReference, parse_parent_locator
from hyperv.vhdx.region_table import Region
from hyperv.vhdx.shape import check_shape
from hyperv.vhdx.source import ByteSource, read_exactly
from hyperv.vhdx.structures import (
    DISK_ID_ITEM,
    DISK_SIZE_ITEM,
    FILE_PARAMETERS,
    FILE_PARAMETERS_ITEM,
    HAS_PARENT,
    ITEM_IS_REQUIRED,
    ITEM_IS_USER,
    LOGICAL_SECTOR_ITEM,
    METADATA_ENTRY,
    METADATA_HEAD,
    METADATA_ITEM_MOST_BYTES,
    METADATA_MOST_ENTRIES,
    METADATA_SIGNATURE,
    METADATA_TABLE_BYTES,
    PARENT_LOCATOR_ITEM,
    PHYSICAL_SECTOR_ITEM,
)

_LENGTHS: Final = {
    FILE_PARAMETERS_ITEM: 8,
    DISK_SIZE_ITEM: 8,
    DISK_ID_ITEM: 16,
    LOGICAL_SECTOR_ITEM: 4,
    PHYSICAL_SECTOR_ITEM: 4,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    disk_bytes: int
    disk_id: UUID
    block_bytes: int
    logical_sector_bytes: int
    physical_sector_bytes: int
    parent: ParentReference | None


def read_metadata(source: ByteSource, region: Region) -> Metadata:
    """Raises: CorruptDiskFileError, UnsupportedDiskFileError (it needs an unknown item)."""
    if region.length < METADATA_TABLE_BYTES:
        raise CorruptDiskFileError("metadata", f"a region of {region.length} bytes")
    table = read_exactly(source, region.offset, METADATA_TABLE_BYTES, "metadata")
    items = _items(table, region)

    def content(item: UUID) -> bytes:
        if item not in items:
            raise CorruptDiskFileError("metadata", f"item {item} is missing")
        place = items[item]
        return read_exactly(source, place.offset, place.length, "metadata")

    for item, length in _LENGTHS.items():
        if item in items and items[item].length != length:
            raise CorruptDiskFileError("metadata", f"item {item} of {items[item].length} bytes")
    block_bytes, flags = FILE_PARAMETERS.unpack(content(FILE_PARAMETERS_ITEM))
    disk_bytes, logical_bytes, physical_bytes = (
        int.from_bytes(content(item), "little")
        for item in (DISK_SIZE_ITEM, LOGICAL_SECTOR_ITEM, PHYSICAL_SECTOR_ITEM)
    )
    check_shape(
        disk_bytes=disk_bytes,
        logical_sector_bytes=logical_bytes,
        physical_sector_bytes=physical_bytes,
        block_bytes=block_bytes,
    )
    has_parent = bool(flags & HAS_PARENT)
    return Metadata(
        disk_bytes=disk_bytes,
        disk_id=UUID(bytes_le=content(DISK_ID_ITEM)),
        block_bytes=block_bytes,
        logical_sector_bytes=logical_bytes,
        physical_sector_bytes=physical_bytes,
        parent=parse_parent_locator(content(PARENT_LOCATOR_ITEM)) if has_parent else None,
    )


def _items(table: bytes, region: Region) -> dict[UUID, Region]:
    """Return the places of the known items in the file."""
    signature, _, count, _ = METADATA_HEAD.unpack_from(table)
    if signature != METADATA_SIGNATURE or count > METADATA_MOST_ENTRIES:
        raise CorruptDiskFileError("metadata", f"signature {signature!r}, {count} items")
    items: dict[UUID, Region] = {}
    seen: set[tuple[bytes, int]] = set()
    for number in range(1, count + 1):
        guid, at, length, flags, _ = METADATA_ENTRY.unpack_from(table, number * METADATA_ENTRY.size)
        item = UUID(bytes_le=guid)
        is_user = flags & ITEM_IS_USER
        if (guid, is_user) in seen:
            raise CorruptDiskFileError("metadata", f"item {item} stands there twice")
        seen.add((guid, is_user))
        is_inside = at >= METADATA_TABLE_BYTES and at + length <= region.length
        if length and (not is_inside or length > METADATA_ITEM_MOST_BYTES):
            raise CorruptDiskFileError("metadata", f"item {item}: {length} bytes at {at}")
        if not is_user and (item in _LENGTHS or item == PARENT_LOCATOR_ITEM):
            items[item] = Region(region.offset + at, length)
        elif flags & ITEM_IS_REQUIRED:
            raise UnsupportedDiskFileError(f"metadata item {item}")
    return items
