"""No two things in the file share a byte: checked once over the whole BAT when a file is opened.

A table entry that leads into another block, the log or the metadata gives plausible, wrong bytes,
and no checksum covers it. Everything in a VHDX file is whole MiB, so one byte per MiB of the file
says what is taken: 64 MiB of memory for a file of 64 TiB, whatever the table claims. At 62 TiB in
blocks of 32 MiB this takes about a second.

numpy, because a BAT has up to 64 Mi entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from hyperv.vhdx.bat import PRESENT_STATES, BlockAllocationTable
from hyperv.vhdx.errors import CorruptDiskFileError, UnsupportedDiskFileError
from hyperv.vhdx.region_table import Region
from hyperv.vhdx.structures import (
    BAT_OFFSET_SHIFT,
    BAT_RESERVED_MASK,
    BAT_STATE_MASK,
    BITMAP_BLOCK_BYTES,
    MIB,
    MOST_FILE_BYTES,
    BitmapState,
    PayloadState,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_UNITS_AT_ONCE: Final = 1 << 18
_PAYLOAD_STATES: Final = np.array([state.value for state in PayloadState], dtype=np.uint64)


def check_overlaps(table: BlockAllocationTable, fixed: Sequence[Region], file_bytes: int) -> None:
    """Check every entry of the table, and that blocks, bitmaps and `fixed` lie apart.

    Raises:
        CorruptDiskFileError: two of them share a MiB of the file, or an entry makes no sense.
        TruncatedDiskFileError: a block lies outside the file.
        UnsupportedDiskFileError: the file is longer than MOST_FILE_BYTES.
    """
    if file_bytes > MOST_FILE_BYTES:
        raise UnsupportedDiskFileError(f"a file of {file_bytes} bytes")
    taken = _Taken(-(-file_bytes // MIB))
    for region in fixed:
        starts = np.array([region.offset // MIB], dtype=np.int64)
        taken.take(starts, region.length // MIB)
    block_units = table.layout.block_bytes // MIB
    for first, entries in _entries(table, max(256, _UNITS_AT_ONCE // block_units)):
        ratio = table.layout.chunk_ratio
        indexes = np.arange(first, first + len(entries))
        is_bitmap = indexes % (ratio + 1) == ratio
        blocks = indexes - indexes // (ratio + 1)
        is_payload = ~is_bitmap & (blocks < table.layout.blocks)
        _check_payload(table, blocks[is_payload], entries[is_payload])
        states = entries & np.uint64(BAT_STATE_MASK)
        starts = (entries >> np.uint64(BAT_OFFSET_SHIFT)).astype(np.int64)
        present = np.isin(states, np.array(PRESENT_STATES, dtype=np.uint64))
        taken.take(starts[is_payload & present], block_units)
        if table.layout.is_differencing:
            held = is_bitmap & (states == np.uint64(BitmapState.PRESENT))
            taken.take(starts[held], BITMAP_BLOCK_BYTES // MIB)


def _entries(table: BlockAllocationTable, at_once: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    total = table.layout.entries
    for first in range(0, total, at_once):
        count = min(at_once, total - first)
        yield first, np.frombuffer(table.raw_entries(first, count), dtype="<u8")


def _check_payload(
    table: BlockAllocationTable, blocks: NDArray[np.int64], entries: NDArray[np.uint64]
) -> None:
    """Let the table itself say what is wrong with the entries that may be."""
    states = entries & np.uint64(BAT_STATE_MASK)
    starts = entries >> np.uint64(BAT_OFFSET_SHIFT)
    is_partial = states == np.uint64(PayloadState.PARTIALLY_PRESENT)
    present = is_partial | (states == np.uint64(PayloadState.FULLY_PRESENT))
    ends = starts + np.uint64(table.layout.block_bytes // MIB)
    suspect = ~np.isin(states, _PAYLOAD_STATES)
    suspect |= (entries & np.uint64(BAT_RESERVED_MASK)) != 0
    suspect |= present & ((starts == 0) | (ends > np.uint64(table.file_bytes // MIB)))
    if not table.layout.is_differencing:
        suspect |= is_partial
    for block in blocks[suspect]:
        table.payload(int(block))
    for chunk in np.unique(blocks[is_partial] // table.layout.chunk_ratio):
        table.bitmap_offset(int(chunk) * table.layout.chunk_ratio)


class _Taken:
    """One byte per MiB of the file; the header section is taken from the start."""

    def __init__(self, units: int) -> None:
        self._units = units
        self._taken = np.zeros(units + 1, dtype=np.bool_)
        self._taken[0] = True

    def take(self, starts: NDArray[np.int64], units_each: int) -> None:
        """Take `units_each` MiB from each of `starts`; what lies behind the file is left out.

        Raises:
            CorruptDiskFileError: one of them is taken.
        """
        starts = np.sort(starts[starts < self._units])
        for twice in starts[1:][starts[1:] - starts[:-1] < units_each]:
            raise _overlap(int(twice))
        units = starts[:, np.newaxis] + np.arange(units_each)
        np.minimum(units, self._units, out=units)  # the last element stands for all behind the file
        self._taken[self._units] = False
        for again in units[self._taken[units]]:
            raise _overlap(int(again))
        self._taken[units] = True


def _overlap(unit: int) -> CorruptDiskFileError:
    return CorruptDiskFileError("block table", f"two things lie at {unit * MIB}")
