"""What a VHDX file says of its disk, and how many table entries that takes ([MS-VHDX] 2.5, 2.6).

`VhdxShape` is the description of a file to be made; `BatLayout` is where the entry of a block
stands in the block allocation table, for files read and made alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hyperv.vhdx.errors import UnsupportedDiskFileError
from hyperv.vhdx.structures import (
    BAT_ENTRY_BYTES,
    LEAST_BLOCK_BYTES,
    MIB,
    MOST_BLOCK_BYTES,
    MOST_DISK_BYTES,
    SECTOR_SIZES,
    SECTORS_PER_CHUNK,
)

USUAL_BLOCK_BYTES: Final = 32 * MIB  # what Windows makes; 62 TiB take 16 MiB of table


@dataclass(frozen=True, slots=True, kw_only=True)
class BatLayout:
    """After every `chunk_ratio` payload entries stands one of a sector bitmap."""

    blocks: int
    block_bytes: int
    chunk_ratio: int
    is_differencing: bool

    @property
    def entries(self) -> int:
        """Of the whole table; the last may be the bitmap of a chunk that is not full."""
        if self.is_differencing:
            return -(-self.blocks // self.chunk_ratio) * (self.chunk_ratio + 1)
        return self.blocks + (self.blocks - 1) // self.chunk_ratio

    @property
    def region_bytes(self) -> int:
        """Room for the table, in whole MiB."""
        return -(-self.entries * BAT_ENTRY_BYTES // MIB) * MIB

    def payload_index(self, block: int) -> int:
        return block + block // self.chunk_ratio

    def bitmap_index(self, block: int) -> int:
        return block // self.chunk_ratio * (self.chunk_ratio + 1) + self.chunk_ratio


def bat_layout(
    *, disk_bytes: int, block_bytes: int, logical_sector_bytes: int, is_differencing: bool
) -> BatLayout:
    return BatLayout(
        blocks=-(-disk_bytes // block_bytes),
        block_bytes=block_bytes,
        chunk_ratio=SECTORS_PER_CHUNK * logical_sector_bytes // block_bytes,
        is_differencing=is_differencing,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VhdxShape:
    """A disk and the identities of its file, all of the caller's choice.

    `disk_id` names the disk for life. `data_write_id` names this state of its content: a
    differencing child records it, so the same content should always be given the same one.
    """

    disk_bytes: int
    disk_id: UUID
    data_write_id: UUID
    file_write_id: UUID
    logical_sector_bytes: int = 512
    physical_sector_bytes: int = 4096
    block_bytes: int = USUAL_BLOCK_BYTES

    def __post_init__(self) -> None:
        """Raises UnsupportedDiskFileError: no VHDX can be of this shape."""
        check_shape(
            disk_bytes=self.disk_bytes,
            logical_sector_bytes=self.logical_sector_bytes,
            physical_sector_bytes=self.physical_sector_bytes,
            block_bytes=self.block_bytes,
        )

    @property
    def bat(self) -> BatLayout:
        return bat_layout(
            disk_bytes=self.disk_bytes,
            block_bytes=self.block_bytes,
            logical_sector_bytes=self.logical_sector_bytes,
            is_differencing=False,
        )


def check_shape(
    *, disk_bytes: int, logical_sector_bytes: int, physical_sector_bytes: int, block_bytes: int
) -> None:
    """Raises UnsupportedDiskFileError: the format has no such disk."""
    for name, size in (("logical", logical_sector_bytes), ("physical", physical_sector_bytes)):
        if size not in SECTOR_SIZES:
            raise UnsupportedDiskFileError(f"{name} sectors of {size} bytes")
    if not 0 < disk_bytes <= MOST_DISK_BYTES or disk_bytes % logical_sector_bytes:
        raise UnsupportedDiskFileError(
            f"a disk of {disk_bytes} bytes with sectors of {logical_sector_bytes};"
            f" VHDX holds whole sectors, up to {MOST_DISK_BYTES} bytes"
        )
    is_power_of_two = block_bytes & (block_bytes - 1) == 0
    if not LEAST_BLOCK_BYTES <= block_bytes <= MOST_BLOCK_BYTES or not is_power_of_two:
        raise UnsupportedDiskFileError(f"blocks of {block_bytes} bytes")
