"""The block allocation table: where each block of the disk is in the file ([MS-VHDX] 2.5).

Entries are read when they are asked for; the table of the largest disk has 512 MiB.

Thread model: thread-safe.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from hyperv.vhdx.errors import CorruptDiskFileError, TruncatedDiskFileError
from hyperv.vhdx.page_cache import PageCache
from hyperv.vhdx.region_table import Region
from hyperv.vhdx.shape import BatLayout
from hyperv.vhdx.source import ByteSource, read_exactly
from hyperv.vhdx.structures import (
    BAT_ENTRY_BYTES,
    BAT_OFFSET_SHIFT,
    BAT_RESERVED_MASK,
    BAT_STATE_MASK,
    BITMAP_BLOCK_BYTES,
    BitmapState,
    PayloadState,
)

PRESENT_STATES: Final = (PayloadState.FULLY_PRESENT, PayloadState.PARTIALLY_PRESENT)


_RUN_BLOCKS: Final = 8192  # looked at together: a page of the cache


@dataclass(frozen=True, slots=True)
class PayloadEntry:
    state: PayloadState
    offset: int  # in the file; means something if the block is present


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Blocks of one state; fully present ones follow each other in the file, a partly present one
    stands alone."""

    first: int
    blocks: int
    state: PayloadState
    offset: int  # of the first, as in `PayloadEntry`


class BlockAllocationTable:
    def __init__(
        self,
        source: ByteSource,
        cache: PageCache,
        region: Region,
        layout: BatLayout,
        disk_bytes: int,
    ) -> None:
        """Raises CorruptDiskFileError: the region is too small for the disk."""
        if layout.entries * BAT_ENTRY_BYTES > region.length:
            raise CorruptDiskFileError(
                "block table", f"{region.length} bytes for {layout.entries} entries"
            )
        self.layout = layout
        self.file_bytes = source.size_bytes
        self._source = source
        self._cache = cache
        self._offset = region.offset
        self._disk_bytes = disk_bytes

    def raw_entries(self, first: int, count: int) -> bytes:
        """Return entries as they stand in the file, past the cache."""
        at = self._offset + first * BAT_ENTRY_BYTES
        return read_exactly(self._source, at, count * BAT_ENTRY_BYTES, "block table")

    def payload(self, block: int) -> PayloadEntry:
        """Return the entry of a block of the disk.

        Raises:
            CorruptDiskFileError: it makes no sense.
            TruncatedDiskFileError: the block lies outside the file.
        """
        entry = self._entry(self.layout.payload_index(block))
        what = f"block table, block {block}"
        try:
            state = PayloadState(entry & BAT_STATE_MASK)
        except ValueError:
            raise CorruptDiskFileError(what, f"state {entry & BAT_STATE_MASK}") from None
        if entry & BAT_RESERVED_MASK:
            raise CorruptDiskFileError(what, f"reserved bits in {entry:#x}")
        if state is PayloadState.PARTIALLY_PRESENT and not self.layout.is_differencing:
            raise CorruptDiskFileError(what, "partly present in a file without parent")
        offset = entry >> BAT_OFFSET_SHIFT << BAT_OFFSET_SHIFT
        if state in PRESENT_STATES:
            block_bytes = self.layout.block_bytes
            self._check_place(
                offset, min(block_bytes, self._disk_bytes - block * block_bytes), what
            )
        return PayloadEntry(state, offset)

    def runs(self, first: int, stop: int) -> Iterator[BlockRun]:
        """Yield the blocks [first, stop) in order. Equal runs may follow each other.

        Raises: as `payload`, for less: the whole table was checked when the file was opened.
        """
        if stop - first == 1:  # most reads: no arrays for one entry
            entry = self.payload(first)
            yield BlockRun(first, 1, entry.state, entry.offset)
            return
        for start in range(first, stop, _RUN_BLOCKS):
            blocks = np.arange(start, min(stop, start + _RUN_BLOCKS))
            places = blocks + blocks // self.layout.chunk_ratio
            at = self._offset + int(places[0]) * BAT_ENTRY_BYTES
            length = int(places[-1] + 1 - places[0]) * BAT_ENTRY_BYTES
            raw = self._cache.read(at, length, "block table")
            entries = np.frombuffer(raw, dtype="<i8")[places - places[0]]
            states = entries & BAT_STATE_MASK
            follows = states[1:] == states[:-1]
            follows &= states[1:] != PayloadState.PARTIALLY_PRESENT
            is_next = entries[1:] - entries[:-1] == self.layout.block_bytes
            follows &= (states[1:] != PayloadState.FULLY_PRESENT) | is_next
            borders = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(blocks)]
            for begin, end in itertools.pairwise(borders):
                held = self.payload(start + begin)
                yield BlockRun(start + begin, end - begin, held.state, held.offset)

    def bitmap_offset(self, block: int) -> int:
        """Return where the sector bitmap of the chunk of a partly present block is in the file.

        Raises: as `payload`.
        """
        entry = self._entry(self.layout.bitmap_index(block))
        what = f"block table, bitmap of block {block}"
        if entry & BAT_STATE_MASK != BitmapState.PRESENT or entry & BAT_RESERVED_MASK:
            raise CorruptDiskFileError(what, f"the entry is {entry:#x}")
        offset = entry >> BAT_OFFSET_SHIFT << BAT_OFFSET_SHIFT
        self._check_place(offset, BITMAP_BLOCK_BYTES, what)
        return offset

    def _entry(self, index: int) -> int:
        at = self._offset + index * BAT_ENTRY_BYTES
        return int.from_bytes(self._cache.read(at, BAT_ENTRY_BYTES, "block table"), "little")

    def _check_place(self, offset: int, length: int, what: str) -> None:
        if not offset:
            raise CorruptDiskFileError(what, "present at offset 0")
        if offset + length > self.file_bytes:
            raise TruncatedDiskFileError(what, f"{offset} is behind the end of the file")
