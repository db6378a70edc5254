"""A disk of which only allocated areas are read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.base.run_context import CancelToken
from appliance.blocks.extents import Extent, ExtentKind, normalise
from appliance.sources.allocated_reader import AllocatedReader
from appliance.sources.frozen import TransferReport
from appliance.sources.reopening_reader import OpenTransport, ReopeningReader
from tests.support.memory_reader import MemoryReader

SIZE = 400


def reader(areas: list[Extent]) -> AllocatedReader:
    opened = OpenTransport(reader=MemoryReader(b"x" * SIZE), report=TransferReport(transport="t"))
    base = ReopeningReader("disk", SIZE, lambda planned: opened, CancelToken())
    return AllocatedReader(base, areas)


@given(
    st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 60)), max_size=12),
    st.integers(0, SIZE - 1),
    st.integers(1, SIZE),
)
def test_the_map_is_data_exactly_in_the_areas(
    raw: list[tuple[int, int]], offset: int, length: int
) -> None:
    """Contiguous, in order, equal neighbours joined, whatever range is asked for."""
    areas = normalise(Extent(start, min(count, SIZE - start)) for start, count in raw)
    length = min(length, SIZE - offset)
    mapped = reader(areas).map_extents(offset, length)
    position = offset
    for part, following in zip(mapped, [*mapped[1:], None], strict=True):
        assert part.offset == position
        assert following is None or following.kind is not part.kind
        inside = {
            any(area.offset <= at < area.end for area in areas)
            for at in range(part.offset, part.end)
        }
        assert inside == {part.kind is ExtentKind.DATA}
        position = part.end
    assert position == offset + length
