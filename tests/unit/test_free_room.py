"""Guests' writes stop before the appliance's own disk is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.base.errors import StorageFullError
from appliance.blocks import free_room
from appliance.blocks.free_room import FreeRoom, RoomKeepingDevice
from tests.support.memory_device import MemoryDevice

EXABYTE = 1 << 60


def test_a_write_that_would_use_the_space_kept_free_is_refused_whole(tmp_path: Path) -> None:
    """Nothing of it is written; reads, zeroing and flushes go on, which need no space."""
    device = RoomKeepingDevice(MemoryDevice(b"before" * 100), FreeRoom(tmp_path, EXABYTE))
    with pytest.raises(StorageFullError):
        device.write_at(0, b"after")
    assert device.read_at(0, 6) == b"before"
    device.zero_at(0, 6)
    assert device.read_at(0, 7) == bytes(6) + b"b"
    device.flush()


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
