"""Batches: everything once, in order, never more than was asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.base.batches import batches
from appliance.base.write_batches import WRITE_BYTES, write_batches


@given(st.lists(st.integers(0, 40)), st.integers(1, 60), st.integers(1, 7))
def test_batches_are_as_large_as_they_may_be(sizes: list[int], most: int, count: int) -> None:
    """Each but the last would be too large with the next item; only a single item is too large."""
    found = [list(batch) for batch in batches(sizes, lambda size: size, most, count_most=count)]
    assert [size for batch in found for size in batch] == sizes
    for number, batch in enumerate(found):
        assert len(batch) == 1 or (sum(batch) <= most and len(batch) <= count)
        if number + 1 < len(found):
            assert len(batch) == count or sum(batch) + found[number + 1][0] > most


def test_writes_are_cut_between_buffers() -> None:
    """Chunks go out in calls of 256 KiB and less; a longer buffer goes out alone."""
    chunk, long = bytes(96 << 10), bytes(WRITE_BYTES + 1)
    cut = list(write_batches([chunk, chunk, chunk, long, chunk]))
    assert [list(map(len, batch)) for batch in cut] == [
        [len(chunk)] * 2,
        [len(chunk)],
        [len(long)],
        [len(chunk)],
    ]
