"""Where block table and metadata are ([MS-VHDX] 2.2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from hyperv.vhdx.errors import CorruptDiskFileError, UnsupportedDiskFileError
from hyperv.vhdx.source import ByteSource, read_exactly
from hyperv.vhdx.structures import (
    BAT_REGION,
    METADATA_REGION,
    MIB,
    REGION_IS_REQUIRED,
    REGION_TABLE_BYTES,
    REGION_TABLE_ENTRY,
    REGION_TABLE_HEAD,
    REGION_TABLE_MOST_ENTRIES,
    REGION_TABLE_OFFSETS,
    REGION_TABLE_SIGNATURE,
    checksum,
)


@dataclass(frozen=True, slots=True)
class Region:
    """A range of the file in whole MiB."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    bat: Region
    metadata: Region
    others: tuple[Region, ...] = ()  # not required and unknown to us

    def all(self) -> tuple[Region, ...]:
        return (self.bat, self.metadata, *self.others)


def read_region_table(source: ByteSource) -> Regions:
    """Return the regions that the first valid copy of the table names.

    Raises:
        CorruptDiskFileError: no copy is valid, or a region is missing, twice or ill-placed.
        UnsupportedDiskFileError: a required region is unknown.
    """
    for at in REGION_TABLE_OFFSETS:
        raw = read_exactly(source, at, REGION_TABLE_BYTES, "region table")
        signature, found, count, _ = REGION_TABLE_HEAD.unpack_from(raw)
        if signature == REGION_TABLE_SIGNATURE and found == checksum(raw):
            return _parsed(raw, count)
    raise CorruptDiskFileError("region table", "neither copy has its checksum")


def _parsed(raw: bytes, count: int) -> Regions:
    if count > REGION_TABLE_MOST_ENTRIES:
        raise CorruptDiskFileError("region table", f"{count} entries")
    known: dict[UUID, Region] = {}
    others = []
    for number in range(count):
        guid, offset, length, flags = REGION_TABLE_ENTRY.unpack_from(
            raw, REGION_TABLE_HEAD.size + number * REGION_TABLE_ENTRY.size
        )
        name = UUID(bytes_le=guid)
        if offset % MIB or length % MIB or not offset or not length:
            raise CorruptDiskFileError("region table", f"{name}: {length} bytes at {offset}")
        if name in known:
            raise CorruptDiskFileError("region table", f"{name} stands there twice")
        if name in (BAT_REGION, METADATA_REGION):
            known[name] = Region(offset, length)
        elif flags & REGION_IS_REQUIRED:
            raise UnsupportedDiskFileError(f"region {name}")
        else:
            others.append(Region(offset, length))
    for name in (BAT_REGION, METADATA_REGION):
        if name not in known:
            raise CorruptDiskFileError("region table", f"{name} is missing")
    return Regions(bat=known[BAT_REGION], metadata=known[METADATA_REGION], others=tuple(others))
