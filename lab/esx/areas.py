"""Sets of byte ranges: sorted, disjoint (start, length) pairs. Pure."""

from __future__ import annotations

from collections.abc import Iterable

Area = tuple[int, int]


def merged(areas: Iterable[Area]) -> list[Area]:
    """Sort, drop what is empty, and join what touches or overlaps."""
    joined: list[Area] = []
    for start, length in sorted(areas):
        if length <= 0:
            continue
        if joined and start <= sum(joined[-1]):
            last_start, last_length = joined[-1]
            joined[-1] = (last_start, max(last_length, start + length - last_start))
        else:
            joined.append((start, length))
    return joined


def rounded(areas: Iterable[Area], block_bytes: int, limit_bytes: int) -> list[Area]:
    """Round outwards to blocks; the last block ends at the limit."""
    result = []
    for start, length in areas:
        first = start // block_bytes * block_bytes
        end = min(-(-(start + length) // block_bytes) * block_bytes, limit_bytes)
        result.append((first, end - first))
    return merged(result)


def clipped(areas: Iterable[Area], start: int, end: int) -> list[Area]:
    """What of the areas lies inside [start, end)."""
    cut = ((max(start, first), min(end, first + length)) for first, length in areas)
    return [(first, last - first) for first, last in cut if first < last]
