"""What of a disk will be read, cut into the ranges in which it is best fetched.

Invariants: pieces ascend and do not overlap; none is longer than `piece_bytes` or crosses a
multiple of it, so that the reader's segments never straddle two.
Thread model: values and pure functions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

_UNIT_BYTES = 4096  # readers round outwards to it


@dataclass(frozen=True, slots=True)
class Piece:
    """One range to fetch. `wanted_bytes` of its bytes are planned, the rest are small gaps."""

    offset: int
    length: int
    wanted_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.length


class ReadPlan:
    """Args:
    planned: (offset, length), sorted and disjoint; None: all of the disk.
    piece_bytes: of a range at most; a multiple of 4 KiB.
    gap_bytes: what lies unplanned between two ranges and is cheaper read than skipped.
    """

    def __init__(
        self,
        planned: Sequence[tuple[int, int]] | None,
        size_bytes: int,
        *,
        piece_bytes: int,
        gap_bytes: int,
    ) -> None:
        self._size_bytes = size_bytes
        self.piece_bytes = piece_bytes
        self._gap_bytes = gap_bytes
        whole = [(0, size_bytes)] if size_bytes else []
        self._starts: list[int] = []
        self._ends: list[int] = []
        for offset, length in whole if planned is None else planned:
            start = offset // _UNIT_BYTES * _UNIT_BYTES
            end = min(-(-(offset + length) // _UNIT_BYTES) * _UNIT_BYTES, size_bytes)
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = end
            else:
                self._starts.append(start)
                self._ends.append(end)

    def next_piece(self, offset: int) -> Piece | None:
        """The piece that begins with the first planned byte at or after `offset`."""
        number = bisect_right(self._ends, offset)
        if number == len(self._ends):
            return None
        start = max(offset, self._starts[number])
        limit = (start // self.piece_bytes + 1) * self.piece_bytes
        end = min(self._ends[number], limit)
        wanted = end - start
        number += 1
        while (
            number < len(self._starts)
            and self._starts[number] < limit
            and self._starts[number] - end <= self._gap_bytes
        ):
            end = min(self._ends[number], limit)
            wanted += end - self._starts[number]
            number += 1
        return Piece(start, end - start, wanted)
