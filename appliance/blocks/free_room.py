"""Space that guests' writes leave free on the appliance's disk: who asks first, writes.

Data path: whatever shows a recovery session (NFS, NBD, iSCSI, SMB) -> here -> the overlays. A
session must not fill the disk that backups need, nor the one its own journal lies on.

Room is looked up at most once a second, so a second's writes may go beyond the mark.
Thread model: any thread.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from appliance.base.errors import StorageFullError
from appliance.blocks.device import BlockDevice
from appliance.blocks.layers import ReaderLayer
from appliance.blocks.overlay_map import Geometry

_KEPT_S = 1.0
_BLOCK_BYTES = Geometry().block_bytes


class Room(NamedTuple):
    total_bytes: int
    free_bytes: int  # without what is to be left free


class FreeRoom:
    def __init__(self, folder: Path, reserve_bytes: int = 0) -> None:
        """`reserve_bytes`: left free where `folder` lies."""
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._known: tuple[float, Room] | None = None

    def look(self) -> Room:
        """Raises OSError."""
        known, now_s = self._known, time.monotonic()
        if known is not None and now_s - known[0] < _KEPT_S:
            return known[1]
        found = os.statvfs(self._folder)
        free_bytes = max(0, found.f_bavail * found.f_frsize - self._reserve_bytes)
        room = Room(total_bytes=found.f_blocks * found.f_frsize, free_bytes=free_bytes)
        self._known = (now_s, room)
        return room

    def check(self, length: int) -> None:
        """Raises StorageFullError: `length` more bytes would use what is to be left free."""
        if self._reserve_bytes and self.look().free_bytes < length:
            raise StorageFullError("the space kept free on the appliance would be used")


class RoomKeepingDevice(ReaderLayer):
    """A BlockDevice whose writes are refused, each whole, once the room is used up.

    Zeroing whole blocks of an overlay takes no space and goes on; the rest of a block that is
    zeroed in part has to be copied, so that is a write.
    """

    def __init__(self, device: BlockDevice, room: FreeRoom) -> None:
        super().__init__(device)
        self._device = device
        self._room = room

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self._room.check(len(data))
        self._device.write_at(offset, data)

    def zero_at(self, offset: int, length: int) -> None:
        end = offset + length
        if offset % _BLOCK_BYTES or (end % _BLOCK_BYTES and end != self.size_bytes):
            self._room.check(2 * _BLOCK_BYTES)
        self._device.zero_at(offset, length)

    def flush(self) -> None:
        self._device.flush()
