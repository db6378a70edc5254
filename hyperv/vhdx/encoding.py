"""The structures of a new VHDX file as bytes; `structures` has their tables.

Pure functions, no state. A header is valid only with its checksum, so `header` comes sealed.
"""

from __future__ import annotations

from uuid import UUID

import numpy as np

from hyperv.vhdx.shape import BatLayout, VhdxShape
from hyperv.vhdx.structures import (
    BAT_ENTRY_BYTES,
    BAT_REGION,
    DISK_ID_ITEM,
    DISK_SIZE_ITEM,
    FILE_PARAMETERS,
    FILE_PARAMETERS_ITEM,
    FILE_SIGNATURE,
    HEADER,
    HEADER_BYTES,
    HEADER_SIGNATURE,
    ITEM_IS_REQUIRED,
    ITEM_IS_VIRTUAL_DISK,
    LOGICAL_SECTOR_ITEM,
    METADATA_ENTRY,
    METADATA_HEAD,
    METADATA_REGION,
    METADATA_SIGNATURE,
    METADATA_TABLE_BYTES,
    PHYSICAL_SECTOR_ITEM,
    REGION_IS_REQUIRED,
    REGION_TABLE_BYTES,
    REGION_TABLE_ENTRY,
    REGION_TABLE_HEAD,
    REGION_TABLE_SIGNATURE,
    PayloadState,
    sealed,
)

_CREATOR = "Holdfast"
_NO_LOG = UUID(int=0)
_VERSION = 1


def file_identifier() -> bytes:
    """The first 512 bytes; a file without them is no VHDX (2.2.1)."""
    return (FILE_SIGNATURE + _CREATOR.encode("utf-16-le")).ljust(512, b"\0")


def header(shape: VhdxShape, *, sequence: int, log_offset: int, log_bytes: int) -> bytes:
    """A header with an empty log (2.2.2)."""
    return sealed(
        HEADER.pack(
            HEADER_SIGNATURE, 0, sequence, shape.file_write_id.bytes_le,
            shape.data_write_id.bytes_le, _NO_LOG.bytes_le, 0, _VERSION, log_bytes, log_offset,
        ).ljust(HEADER_BYTES, b"\0")
    )  # fmt: skip


def region_table(
    *, bat_offset: int, bat_bytes: int, metadata_offset: int, metadata_bytes: int
) -> bytes:
    """2.2.3"""
    table = REGION_TABLE_HEAD.pack(REGION_TABLE_SIGNATURE, 0, 2, 0)
    for guid, offset, length in (
        (BAT_REGION, bat_offset, bat_bytes),
        (METADATA_REGION, metadata_offset, metadata_bytes),
    ):
        table += REGION_TABLE_ENTRY.pack(guid.bytes_le, offset, length, REGION_IS_REQUIRED)
    return sealed(table.ljust(REGION_TABLE_BYTES, b"\0"))


def metadata(shape: VhdxShape, *, file_flags: int) -> bytes:
    """The used part of a metadata region (2.6): its table and the items behind it."""
    of_disk = ITEM_IS_REQUIRED | ITEM_IS_VIRTUAL_DISK
    items = [
        (
            FILE_PARAMETERS_ITEM,
            FILE_PARAMETERS.pack(shape.block_bytes, file_flags),
            ITEM_IS_REQUIRED,
        ),
        (DISK_SIZE_ITEM, shape.disk_bytes.to_bytes(8, "little"), of_disk),
        (DISK_ID_ITEM, shape.disk_id.bytes_le, of_disk),
        (LOGICAL_SECTOR_ITEM, shape.logical_sector_bytes.to_bytes(4, "little"), of_disk),
        (PHYSICAL_SECTOR_ITEM, shape.physical_sector_bytes.to_bytes(4, "little"), of_disk),
    ]
    return metadata_region(items)


def metadata_region(items: list[tuple[UUID, bytes, int]]) -> bytes:
    """(item, content, flags) as a table and the contents behind it, 8-byte aligned."""
    table = METADATA_HEAD.pack(METADATA_SIGNATURE, 0, len(items), bytes(20))
    contents = b""
    for guid, content, flags in items:
        at = METADATA_TABLE_BYTES + len(contents)
        table += METADATA_ENTRY.pack(guid.bytes_le, at, len(content), flags, bytes(4))
        contents += content + bytes(-len(content) % 8)
    return table.ljust(METADATA_TABLE_BYTES, b"\0") + contents


def whole_bat(layout: BatLayout, payload_offset: int, offset: int, length: int) -> bytes:
    """Bytes [offset, offset + length) of the table whose blocks follow each other in the file
    from `payload_offset`; behind the last entry come zeros."""
    first = offset // BAT_ENTRY_BYTES
    stop = -(-(offset + length) // BAT_ENTRY_BYTES)
    index = np.arange(first, stop, dtype=np.int64)
    chunk, inside = np.divmod(index, layout.chunk_ratio + 1)
    block = index - chunk
    entries = (payload_offset + block * layout.block_bytes) | int(PayloadState.FULLY_PRESENT)
    entries[(inside == layout.chunk_ratio) | (block >= layout.blocks)] = 0
    raw = entries.astype("<u8").tobytes()
    return raw[offset - first * BAT_ENTRY_BYTES :][:length]
