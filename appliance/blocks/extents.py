"""Extents: half-open byte ranges [offset, offset + length), and the algebra over sets of them.

A *set* is a list sorted by offset whose members neither overlap nor touch; `normalise` makes one
from anything. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    offset: int
    length: int

    def __post_init__(self) -> None:
        if self.offset < 0 or self.length <= 0:
            raise ValueError(f"extent offset {self.offset}, length {self.length}")

    @property
    def end(self) -> int:
        return self.offset + self.length


class ExtentKind(Enum):
    DATA = "data"  # may hold anything
    ZERO = "zero"  # reads as zeros


@dataclass(frozen=True, slots=True)
class MappedExtent:
    """A range whose bytes are all of one kind."""

    offset: int
    length: int
    kind: ExtentKind

    @property
    def end(self) -> int:
        return self.offset + self.length


def normalise(extents: Iterable[Extent]) -> list[Extent]:
    """Sort, and join what overlaps or touches."""
    result: list[Extent] = []
    for extent in sorted(extents):
        if result and extent.offset <= result[-1].end:
            last = result[-1]
            result[-1] = Extent(last.offset, max(last.end, extent.end) - last.offset)
        else:
            result.append(extent)
    return result


def align(extents: Iterable[Extent], unit_bytes: int, size_bytes: int) -> list[Extent]:
    """Grow every extent outwards to multiples of `unit_bytes`, clipped to [0, size_bytes)."""
    grown = []
    for extent in extents:
        start = extent.offset // unit_bytes * unit_bytes
        end = min(-(-extent.end // unit_bytes) * unit_bytes, size_bytes)
        if start < end:
            grown.append(Extent(start, end - start))
    return normalise(grown)


def intersect(left: list[Extent], right: list[Extent]) -> list[Extent]:
    """Return the bytes that are in both sets."""
    result: list[Extent] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start = max(left[i].offset, right[j].offset)
        end = min(left[i].end, right[j].end)
        if start < end:
            result.append(Extent(start, end - start))
        if left[i].end <= right[j].end:
            i += 1
        else:
            j += 1
    return result


def subtract(left: list[Extent], right: list[Extent]) -> list[Extent]:
    """Return the bytes of `left` that are not in `right`."""
    result: list[Extent] = []
    j = 0
    for extent in left:
        start = extent.offset
        while j < len(right) and right[j].end <= start:
            j += 1
        k = j
        while k < len(right) and right[k].offset < extent.end:
            if right[k].offset > start:
                result.append(Extent(start, right[k].offset - start))
            start = right[k].end
            k += 1
        if start < extent.end:
            result.append(Extent(start, extent.end - start))
    return result


def total_bytes(extents: Iterable[Extent]) -> int:
    return sum(extent.length for extent in extents)


def split_by(extents: Iterable[Extent], unit_bytes: int) -> Iterator[tuple[int, list[Extent]]]:
    """Cut a set at multiples of `unit_bytes`; yield (unit number, its extents) in order."""
    number = -1
    pieces: list[Extent] = []
    for extent in extents:
        start = extent.offset
        while start < extent.end:
            unit = start // unit_bytes
            end = min(extent.end, (unit + 1) * unit_bytes)
            if unit != number:
                if pieces:
                    yield number, pieces
                number, pieces = unit, []
            pieces.append(Extent(start, end - start))
            start = end
    if pieces:
        yield number, pieces
