"""The NTFS volume that shows disks as VHDX files, at every size, as ntfs-3g and QEMU see it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from appliance.base.units import GIB, MIB, TIB
from appliance.blocks.composed_device import ComposedDevice, Piece
from appliance.blocks.overlay import Overlay
from appliance.blocks.zero_reader import ZeroReader
from appliance.exports.device_files import DeviceFiles
from appliance.exports.vhdx_volume import gpt
from appliance.exports.vhdx_volume.layout import VolumeDamagedError
from appliance.exports.vhdx_volume.volume import (
    OpenVolume,
    VolumeDisk,
    VolumeError,
    build_volume,
    has_volume,
    open_volume,
)
from tests.support.iscsi_clients import says
from tests.support.needs import needs

pytestmark = pytest.mark.integration


@contextmanager
def opened(folder: Path, sizes: list[int]) -> Iterator[tuple[OpenVolume, list[Overlay]]]:
    """The volume of empty disks, made at first use, and their overlays."""
    with ExitStack() as stack:
        disks = []
        for number, size in enumerate(sizes):
            place, base = folder / f"disk-{number}", ZeroReader(size)
            make = Overlay.open if place.exists() else Overlay.create
            disks.append(make(place, base, {}))
            stack.callback(disks[-1].close)
        if not has_volume(folder / "volume"):
            build_volume(
                folder / "volume",
                [
                    VolumeDisk(number=number, size_bytes=size, content_id=f"point/{number}")
                    for number, size in enumerate(sizes)
                ],
            )
        volume = open_volume(folder / "volume", dict(enumerate(disks)))
        stack.callback(volume.close)
        yield volume, disks


@contextmanager
def mounted(volume: OpenVolume, folder: Path) -> Iterator[Path]:
    """Its partition, mounted by ntfs-3g through the same files that tgt gets."""
    length = volume.device.size_bytes - gpt.PARTITION_OFFSET - gpt.BEHIND_BYTES
    partition = ComposedDevice(
        [
            Piece(
                offset=0,
                length=length,
                device=volume.device,
                device_offset=gpt.PARTITION_OFFSET,
            )
        ]
    )
    mount = folder / "mount"
    mount.mkdir()
    with DeviceFiles(folder / "files") as files:
        says("ntfs-3g", files.add("partition", partition), mount)
        try:
            yield mount
        finally:
            says("fusermount3", "-u", mount)
            mount.rmdir()


@pytest.fixture(autouse=True)
def programs() -> None:
    needs("mkntfs", "ntfs-3g", "fusermount3", "qemu-img", "qemu-io")


@pytest.mark.parametrize("size", [MIB, 127 * GIB, 2 * TIB, 62 * TIB])
def test_the_vhdx_is_sound_and_shows_the_disk_at_every_size(tmp_path: Path, size: int) -> None:
    """First and last sectors written to the disk are read through NTFS and VHDX; and the other way
    round."""
    with opened(tmp_path, [size, MIB]) as (volume, (disk, other)):
        disk.write_at(0, b"\x11" * 4096)
        disk.write_at(size - 4096, b"\x22" * 4096)
        with mounted(volume, tmp_path) as mount:
            file = mount / "disk-0.vhdx"
            says("qemu-img", "check", "-f", "vhdx", file)
            last = f"{size - 4096}"
            reads = ("-c", "read -P 0x11 0 4k", "-c", f"read -P 0x22 {last} 4k")
            said = says("qemu-io", "-r", "-f", "vhdx", *reads, file)
            assert "Pattern verification failed" not in said
            says("qemu-io", "-f", "vhdx", "-c", f"write -P 0x33 {size // 2} 4k", file)
            says("qemu-io", "-f", "vhdx", "-c", "write -P 0x44 0 4k", mount / "disk-1.vhdx")
        assert disk.read_at(size // 2, 4096) == b"\x33" * 4096
        assert other.read_at(0, 4096) == b"\x44" * 4096


def test_a_volume_that_is_opened_again_is_the_same_to_the_byte(tmp_path: Path) -> None:
    """What was there, and what was written through it and flushed."""
    sizes = [40 * MIB, MIB]
    with opened(tmp_path, sizes) as (volume, _):
        written = os.urandom(MIB)
        for piece in volume.layout.disks[0].pieces:
            volume.device.write_at(piece.offset + piece.length - 512, written[:512])
        volume.device.write_at(volume.device.size_bytes - 3 * MIB, written)
        volume.device.flush()
        before = volume.device.read_at(0, 128 * MIB), volume.layout
    with opened(tmp_path, sizes) as (volume, _):
        assert (volume.device.read_at(0, 128 * MIB), volume.layout) == before
        assert volume.device.read_at(volume.device.size_bytes - 3 * MIB, MIB) == written


def test_a_disk_that_no_vhdx_can_hold_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """Half a sector, and more than 64 TiB."""
    for size in (MIB + 100, 65 * TIB):
        disk = VolumeDisk(number=0, size_bytes=size, content_id="point/0")
        with pytest.raises(VolumeError):
            build_volume(tmp_path / "volume", [disk])
        assert not (tmp_path / "volume").exists()


def test_a_build_that_was_killed_is_no_volume_and_is_made_anew(tmp_path: Path) -> None:
    """Without its layout, which is written last, nothing opens; building again replaces it."""
    with opened(tmp_path, [MIB]):
        pass
    (tmp_path / "volume" / "layout.json").unlink()
    with pytest.raises(VolumeDamagedError):
        open_volume(tmp_path / "volume", {})
    with opened(tmp_path, [MIB]) as (volume, _):
        assert volume.layout.disks[0].size_bytes == MIB
