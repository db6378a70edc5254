"""What a write-through device has answered survives a kill with no flush asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.blocks.overlay import Overlay
from appliance.blocks.write_through import WriteThroughDevice
from tests.support.zero_disk import ZeroDisk

_DISK_BYTES = 1 << 20


@pytest.mark.parametrize("written", [b"answered", bytes(4096)], ids=["part", "zeros"])
def test_an_answered_write_survives_a_kill(tmp_path: Path, written: bytes) -> None:
    """A child writes (and zeroes) and dies at once; the session holds what had returned."""
    folder = tmp_path / "session"
    child = os.fork()
    if child == 0:
        try:
            device = WriteThroughDevice(Overlay.create(folder, ZeroDisk(_DISK_BYTES), {}))
            device.write_at(5000, b"before")
            device.write_at(8192, b"gone" * 1024)
            device.zero_at(8192, 4096)
            device.write_at(40960, written)
        finally:
            os._exit(9)  # no close, no flush
    os.waitpid(child, 0)
    overlay = Overlay.open(folder, ZeroDisk(_DISK_BYTES), {})
    assert overlay.read_at(5000, 6) == b"before"
    assert overlay.read_at(8192, 4096) == bytes(4096)
    assert overlay.read_at(40960, len(written)) == written
    overlay.close()
