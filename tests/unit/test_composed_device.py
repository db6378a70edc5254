"""A disk made of ranges of others: what cannot be one is refused."""

from __future__ import annotations

import pytest

from appliance.base.errors import UsageError
from appliance.blocks.composed_device import ComposedDevice, Piece
from tests.support.memory_device import MemoryDevice

DEVICE = MemoryDevice(bytes(100))


def piece(offset: int, length: int, device_offset: int = 0) -> Piece:
    return Piece(offset=offset, length=length, device=DEVICE, device_offset=device_offset)


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(1, 10)],
        [piece(0, 10), piece(11, 5)],
        [piece(0, 10), piece(9, 5)],
        [piece(0, 0)],
        [piece(0, 101)],
        [piece(0, 10, 91)],
        [piece(0, 10, -1)],
    ],
)
def test_gaps_overlaps_and_pieces_outside_their_device_are_refused(pieces: list[Piece]) -> None:
    """Every byte of the disk belongs to exactly one byte that exists."""
    with pytest.raises(UsageError):
        ComposedDevice(pieces)
