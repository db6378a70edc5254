"""The sparse in-memory disk that others are compared with is itself compared with a bytearray."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.base.errors import OutOfRangeError, StorageFullError
from appliance.blocks.extents import ExtentKind
from tests.support.sparse_device import BLOCK_BYTES, SparseDevice

SIZE_BYTES = 5 * BLOCK_BYTES + 100
ranges = st.tuples(st.integers(0, SIZE_BYTES), st.integers(0, SIZE_BYTES)).map(
    lambda pair: (min(pair), max(pair) - min(pair))
)
steps = st.lists(st.tuples(st.booleans(), ranges, st.integers(0, 3)), max_size=12)


@given(steps, ranges)
def test_it_is_a_bytearray_with_holes(
    operations: list[tuple[bool, tuple[int, int], int]], asked: tuple[int, int]
) -> None:
    """Reads give what was written, and what is mapped as ZERO reads as zeros."""
    disk, model = SparseDevice(SIZE_BYTES), bytearray(SIZE_BYTES)
    for is_write, (offset, length), value in operations:
        data = bytes([value]) * length if is_write else bytes(length)
        if is_write:
            disk.write_at(offset, data)
        else:
            disk.zero_at(offset, length)
        model[offset : offset + length] = data
    assert disk.read_at(0, SIZE_BYTES) == model
    offset, length = asked
    buffer = bytearray(length)
    disk.read_into(offset, memoryview(buffer))
    assert buffer == model[offset : offset + length] == disk.try_read_at(offset, length)
    mapped = disk.map_extents(offset, length)
    assert sum(extent.length for extent in mapped) == length
    at = offset
    for extent in mapped:
        assert extent.offset == at
        at = extent.end
        if extent.kind is ExtentKind.ZERO:
            assert not any(model[extent.offset : extent.end])


@given(ranges)
def test_zeroing_frees_whole_blocks(zeroed: tuple[int, int]) -> None:
    disk = SparseDevice(SIZE_BYTES, content=b"x" * SIZE_BYTES)
    disk.zero_at(*zeroed)
    first, end = zeroed[0], sum(zeroed)
    kept = [
        number
        for number in range(6)
        if number * BLOCK_BYTES < first or min((number + 1) * BLOCK_BYTES, SIZE_BYTES) > end
    ]
    assert disk.allocated_bytes == len(kept) * BLOCK_BYTES


def test_it_can_be_full_and_knows_its_end() -> None:
    disk = SparseDevice(SIZE_BYTES, capacity_bytes=2 * BLOCK_BYTES)
    disk.write_at(0, bytes(2 * BLOCK_BYTES))
    with pytest.raises(StorageFullError):
        disk.write_at(3 * BLOCK_BYTES, b"x")
    disk.zero_at(0, BLOCK_BYTES)
    disk.write_at(3 * BLOCK_BYTES, b"x")
    for call in (disk.read_at, disk.zero_at, disk.map_extents):
        with pytest.raises(OutOfRangeError):
            call(SIZE_BYTES, 1)
    with pytest.raises(OutOfRangeError):
        disk.write_at(SIZE_BYTES, b"x")
