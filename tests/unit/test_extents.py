"""The algebra of extent sets, against plain Python sets of byte numbers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from appliance.blocks.extents import Extent, align, intersect, normalise, split_by, subtract

extents = st.lists(st.builds(Extent, st.integers(0, 200), st.integers(1, 60)), max_size=12)


def members(of: list[Extent]) -> set[int]:
    return {byte for extent in of for byte in range(extent.offset, extent.end)}


def assert_is_set(of: list[Extent]) -> None:
    assert all(left.end < right.offset for left, right in itertools.pairwise(of))


@given(extents)
def test_normalising_keeps_the_bytes_and_joins_neighbours(given_extents: list[Extent]) -> None:
    """The same bytes, as a sorted list in which nothing overlaps or touches."""
    result = normalise(given_extents)
    assert members(result) == members(given_extents)
    assert_is_set(result)


@given(extents, extents)
def test_intersection_and_difference_match_sets_of_bytes(a: list[Extent], b: list[Extent]) -> None:
    """`intersect` and `subtract` say what Python's sets say."""
    left, right = normalise(a), normalise(b)
    assert members(intersect(left, right)) == members(left) & members(right)
    assert members(subtract(left, right)) == members(left) - members(right)
    assert_is_set(subtract(left, right))


@given(extents, st.integers(1, 32), st.integers(1, 300))
def test_aligning_grows_outwards_and_stays_inside_the_disk(
    given_extents: list[Extent], unit_bytes: int, size_bytes: int
) -> None:
    """Every byte inside the disk stays covered, and borders are multiples or the disk's end."""
    result = align(given_extents, unit_bytes, size_bytes)
    assert members(result) >= {b for b in members(given_extents) if b < size_bytes}
    for extent in result:
        assert extent.offset % unit_bytes == 0
        assert extent.end % unit_bytes == 0 or extent.end == size_bytes


@given(extents, st.integers(1, 50))
def test_splitting_loses_nothing_and_never_crosses_a_unit(
    given_extents: list[Extent], unit_bytes: int
) -> None:
    """The pieces of a unit lie inside it; units come in order; together they are the set."""
    whole = normalise(given_extents)
    numbers, pieces = [], []
    for number, part in split_by(whole, unit_bytes):
        numbers.append(number)
        pieces += part
        assert all(piece.offset // unit_bytes == number for piece in part)
        assert all((piece.end - 1) // unit_bytes == number for piece in part)
    assert numbers == sorted(set(numbers))
    assert members(pieces) == members(whole)
