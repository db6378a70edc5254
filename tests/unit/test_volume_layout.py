"""`layout.json`: what contradicts itself, or belongs to other disks, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.base.errors import UsageError
from appliance.exports.vhdx_volume.layout import (
    VolumeDamagedError,
    VolumeLayout,
    read_layout,
    write_layout,
)
from tests.support.memory_device import MemoryDevice

SCRATCH = MemoryDevice(bytes(1000))
DISK = MemoryDevice(bytes(range(200)))


def layout(*pieces: tuple[int, int, int], size: int = 200) -> VolumeLayout:
    """Of one disk; pieces are (offset, offset in the disk, length)."""
    disk: dict[str, Any] = {
        "number": 0,
        "size_bytes": size,
        "file": "disk-0.vhdx",
        "pieces": [
            {"offset": offset, "disk_offset": disk_offset, "length": length}
            for offset, disk_offset, length in pieces
        ],
    }
    return VolumeLayout.model_validate({"size_bytes": 1000, "disks": [disk]})


def test_the_disk_shows_where_the_layout_says_and_nowhere_else() -> None:
    """In pieces that need not be in the order of the volume."""
    device = layout((500, 0, 150), (100, 150, 50)).compose(SCRATCH, {0: DISK})
    content = device.read_at(0, 1000)
    assert content[500:650] + content[100:150] == bytes(range(200))
    assert not any(content[:100] + content[150:500] + content[650:])


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        ((100, 0, 150),),
        ((100, 0, 150), (300, 160, 40)),
        ((100, 0, 150), (200, 150, 50)),
        ((100, 0, 150), (980, 150, 50)),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(pieces: tuple[Any, ...]) -> None:
    """A part of the disk that is not shown, or twice; pieces over each other, or past the end."""
    with pytest.raises(UsageError):
        layout(*pieces).compose(SCRATCH, {0: DISK})


@pytest.mark.parametrize("devices", [{}, {1: DISK}, {0: SCRATCH}])
def test_a_volume_is_not_opened_over_other_disks(devices: dict[int, MemoryDevice]) -> None:
    """By number and by size."""
    with pytest.raises(UsageError):
        layout((100, 0, 200)).compose(SCRATCH, devices)


def test_a_layout_is_read_as_it_was_written(tmp_path: Path) -> None:
    """And none is none."""
    assert read_layout(tmp_path) is None
    write_layout(tmp_path, layout((100, 0, 200)))
    assert read_layout(tmp_path) == layout((100, 0, 200))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"version": 2}', b"\xff" * 100])
def test_a_damaged_layout_is_named(tmp_path: Path, raw: bytes) -> None:
    """Not understood is not guessed."""
    (tmp_path / "layout.json").write_bytes(raw)
    with pytest.raises(VolumeDamagedError, match=r"layout\.json"):
        read_layout(tmp_path)


def test_names_that_are_no_plain_file_names_are_refused() -> None:
    """They come back from a file that somebody may have edited."""
    with pytest.raises(ValueError, match="pattern"):
        VolumeLayout.model_validate(
            {
                "size_bytes": 9,
                "disks": [{"number": 0, "size_bytes": 1, "file": "../x", "pieces": []}],
            }
        )
