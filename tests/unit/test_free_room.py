"""Guests' writes stop before the appliance's own disk is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.base.errors import StorageFullError
from appliance.blocks import free_room
from appliance.blocks.free_room import FreeRoom, RoomKeepingDevice
from appliance.blocks.overlay import Overlay
from appliance.exports.nbd import DiskBackend
from tests.support.memory_device import MemoryDevice

EXABYTE = 1 << 60


def test_a_write_that_would_use_the_space_kept_free_is_refused_whole(tmp_path: Path) -> None:
    """Nothing of it is written; reads, zeroing and flushes go on, which need no space."""
    device = RoomKeepingDevice(MemoryDevice(b"before" * 1000), FreeRoom(tmp_path, EXABYTE))
    with pytest.raises(StorageFullError):
        device.write_at(0, b"after")
    assert device.read_at(0, 6) == b"before"
    device.zero_at(0, 4096)
    assert device.read_at(4090, 8) == bytes(6) + b"re"
    device.zero_at(4096, 6000 - 4096)
    device.flush()


@pytest.mark.parametrize(("offset", "length"), [(0, 512), (512, 4096), (0, 4097), (4608, 1)])
def test_zeroing_a_part_of_a_block_cannot_use_the_space_kept_free(
    offset: int, length: int, tmp_path: Path
) -> None:
    """A guest that zeroes a sector of each block would copy its whole disk into the overlay."""
    overlay = Overlay.create(tmp_path / "session", MemoryDevice(b"x" * (1 << 20)), {})
    device = RoomKeepingDevice(overlay, FreeRoom(tmp_path, EXABYTE))
    with pytest.raises(StorageFullError):
        device.zero_at(offset, length)
    assert overlay.stats().dirty_bytes == 0
    device.close()


@pytest.mark.parametrize(
    ("offset", "length", "zeroed"),
    [
        (0, 1 << 20, 1 << 20),
        (512, 8192, 4096),
        (512, 512, 0),
        (1 << 19, (1 << 19) + 9, 9 + (1 << 19)),
    ],
)
def test_a_trim_takes_no_space_even_where_it_meets_blocks_in_part(
    offset: int, length: int, zeroed: int, tmp_path: Path
) -> None:
    """A guest whose partition is not aligned is not stopped by its own discards on a full disk."""
    size_bytes = (1 << 20) + 9
    overlay = Overlay.create(tmp_path / "session", MemoryDevice(b"x" * size_bytes), {})
    device = RoomKeepingDevice(overlay, FreeRoom(tmp_path, EXABYTE))
    DiskBackend(device, read_only=False).trim(offset, length)
    assert overlay.stats().dirty_bytes == 0
    assert device.read_at(0, size_bytes).count(0) == zeroed
    device.close()


def test_without_a_reserve_the_file_system_itself_is_the_limit(tmp_path: Path) -> None:
    """A reserve of 0 asks nobody."""
    room = FreeRoom(tmp_path / "not there", 0)
    room.check(EXABYTE)
    with pytest.raises(FileNotFoundError):
        room.look()


def test_room_that_comes_back_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator who makes space need not start anything again."""
    free = FreeRoom(tmp_path).look().free_bytes
    room = FreeRoom(tmp_path, free + (1 << 40))
    with pytest.raises(StorageFullError):
        room.check(1)
    monkeypatch.setattr(free_room, "_KEPT_S", 0.0)
    room._reserve_bytes = 1
    room.check(1)
