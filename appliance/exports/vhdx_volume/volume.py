"""A disk with an NTFS volume on it that holds every disk of a recovery point as a VHDX file.

    LUN  GPT | NTFS: its own tables ... disk-0.vhdx [ head | disk ] ... free | GPT
         `---------------- scratch overlay ----------------'  `- overlay of disk 0

A host sees a local NTFS disk with ordinary, fixed VHDX files: it may start a VM from them, take
checkpoints beside them, and move them away. Only the tables are made, once: by ntfs-3g's programs
in an overlay over nothing, whatever the size. All that a host writes later lands in the overlays.

    FOLDER/scratch/      overlay: tables of the volume, heads of the VHDX files, what hosts add
    FOLDER/layout.json   written last; a folder without it holds no volume

Invariants: the layout is fixed once made (see `layout`). What is acknowledged by `flush` of the
device is in the overlays. Thread model: `build_volume` blocks for 1 s (10 s at 62 TiB); the device
as BlockDevice.
Source: shared clusters through run lists, as in `hyperv.ntfs`; [MS-VHDX] through `hyperv.vhdx`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

from appliance.base.errors import ApplianceError, StorageError
from appliance.base.units import GIB, TIB
from appliance.blocks.composed_device import ComposedDevice, Piece
from appliance.blocks.device import BlockDevice
from appliance.blocks.overlay import Overlay
from appliance.blocks.zero_reader import ZeroReader
from appliance.exports.device_files import DeviceFiles
from appliance.exports.vhdx_volume import gpt
from appliance.exports.vhdx_volume.layout import (
    LaidDisk,
    LaidPiece,
    VolumeDamagedError,
    VolumeLayout,
    read_layout,
    write_layout,
)
from appliance.exports.vhdx_volume.ntfs_tools import CLUSTER_BYTES, allocate_file, format_volume
from hyperv.ntfs.errors import NtfsError
from hyperv.ntfs.volume import FileExtent, NtfsVolume
from hyperv.vhdx.errors import DiskFileError
from hyperv.vhdx.layout import FixedVhdxLayout, Part
from hyperv.vhdx.shape import VhdxShape

LABEL = "Holdfast"
_LEAST_FREE_BYTES = 8 * GIB  # for checkpoints and a guest's saved memory; sparse, so it costs none
_MOST_BYTES = 128 * TIB  # of an overlay; NTFS with 64 KiB clusters could hold 256
COPY_BYTES = 1 << 20
_IDS = UUID("5b0c0a52-1f6e-4d3c-9a55-3f0a6f0c7d11")


class VolumeError(ApplianceError):
    """The NTFS volume for Hyper-V could not be made; the message says why. `--raw` shows each disk
    as a LUN of its own instead."""

    code = "volume.failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeDisk:
    number: int
    size_bytes: int
    content_id: str  # the same for the same content: a recovery point and a disk of it

    @property
    def file(self) -> str:
        return f"disk-{self.number}.vhdx"


class OpenVolume:
    """A volume that is there; `device` may be shown until `close`."""

    def __init__(self, layout: VolumeLayout, scratch: Overlay, device: ComposedDevice) -> None:
        """Use `open_volume`."""
        self.layout = layout
        self.device = device
        self._scratch = scratch

    def close(self) -> None:
        """The disks' own devices stay open; they are the caller's."""
        self._scratch.close()


def has_volume(folder: Path) -> bool:
    """Raises VolumeDamagedError, StorageError."""
    return read_layout(folder) is not None


def open_volume(folder: Path, devices: Mapping[int, BlockDevice]) -> OpenVolume:
    """Go on with a volume: the same bytes, and every flushed write.

    Args:
        devices: the disks by number; they stay the caller's.

    Raises: VolumeDamagedError, UsageError, and as `Overlay.open`.
    """
    layout = read_layout(folder)
    if layout is None:
        raise VolumeDamagedError(f"{folder} holds no finished volume")
    scratch = Overlay.open(folder / "scratch", ZeroReader(layout.size_bytes), overlay_identity())
    try:
        return OpenVolume(layout, scratch, layout.compose(scratch, devices))
    except BaseException:
        scratch.close()
        raise


def build_volume(folder: Path, disks: Sequence[VolumeDisk]) -> None:
    """Make the volume of `disks` in `folder`, whose parent exists. Reads none of their content.

    After a crash there is a whole volume or none, and the call may be repeated.

    Raises: VolumeError, ExternalProgramError, MountError, StorageError, StorageFullError.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a build that was killed
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}") from error
    try:
        files = [FixedVhdxLayout(vhdx_shape(disk)) for disk in disks]
        write_layout(folder, _build(folder, disks, files))
    except (DiskFileError, NtfsError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise VolumeError(str(error)) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _build(
    folder: Path, disks: Sequence[VolumeDisk], files: Sequence[FixedVhdxLayout]
) -> VolumeLayout:
    partition_bytes = _partition_bytes(sum(file.file_bytes for file in files))
    size_bytes = gpt.PARTITION_OFFSET + partition_bytes + gpt.BEHIND_BYTES
    if size_bytes > _MOST_BYTES:
        raise VolumeError(f"disks of {sum(disk.size_bytes for disk in disks)} bytes together")
    with ExitStack() as stack:
        scratch = Overlay.create(folder / "scratch", ZeroReader(size_bytes), overlay_identity())
        stack.callback(scratch.close)
        for offset, content in gpt.partition_table(
            size_bytes, partition_bytes, disk_id=uuid4(), partition_id=uuid4(), name=LABEL
        ):
            scratch.write_at(offset, content)
        partition = ComposedDevice(
            [
                Piece(
                    offset=0,
                    length=partition_bytes,
                    device=scratch,
                    device_offset=gpt.PARTITION_OFFSET,
                )
            ]
        )
        _format(partition, disks, files)
        ntfs = NtfsVolume(partition)
        laid = []
        for disk, file in zip(disks, files, strict=True):
            found = ntfs.find(disk.file)
            ntfs.settle(found)
            _write_head(partition, file, found.extents)
            laid.append(_laid_disk(disk, file, found.extents))
        layout = VolumeLayout(size_bytes=size_bytes, disks=tuple(laid))
        scratch.flush()
    return layout


def _format(
    partition: ComposedDevice, disks: Sequence[VolumeDisk], files: Sequence[FixedVhdxLayout]
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-volume-") as parent,
        DeviceFiles(Path(parent) / "mount") as shown,
    ):
        path = shown.add("volume", partition)
        format_volume(path, LABEL, gpt.PARTITION_OFFSET)
        for disk, file in zip(disks, files, strict=True):
            allocate_file(path, disk.file, file.file_bytes)


def _write_head(
    partition: ComposedDevice, file: FixedVhdxLayout, extents: Sequence[FileExtent]
) -> None:
    """Everything of the VHDX but the disk; what is zeros in it is zeros already."""
    for start, length in file.head_extents():
        for offset in range(start, start + length, COPY_BYTES):
            content = file.head(offset, min(COPY_BYTES, start + length - offset))
            for volume_offset, file_offset, part in _mapped(extents, offset, len(content)):
                at = file_offset - offset
                partition.write_at(volume_offset, content[at : at + part])


def _laid_disk(disk: VolumeDisk, file: FixedVhdxLayout, extents: Sequence[FileExtent]) -> LaidDisk:
    pieces = [
        LaidPiece(
            offset=gpt.PARTITION_OFFSET + volume_offset,
            disk_offset=piece.disk_offset + file_offset - piece.offset,
            length=length,
        )
        for piece in file.pieces(0, file.file_bytes)
        if piece.part is Part.DISK
        for volume_offset, file_offset, length in _mapped(extents, piece.offset, piece.length)
    ]
    return LaidDisk(
        number=disk.number, size_bytes=disk.size_bytes, file=disk.file, pieces=tuple(pieces)
    )


def _mapped(
    extents: Sequence[FileExtent], offset: int, length: int
) -> Iterator[tuple[int, int, int]]:
    """(offset in the volume, offset in the file, bytes) for a range of the file."""
    for extent in extents:
        start = max(offset, extent.file_offset)
        end = min(offset + length, extent.file_offset + extent.length)
        if start < end:
            yield extent.volume_offset + start - extent.file_offset, start, end - start


def _partition_bytes(files_bytes: int) -> int:
    """Room for the files, the volume's own tables, and what a host adds."""
    free_bytes = max(_LEAST_FREE_BYTES, files_bytes // 8)
    tables_bytes = files_bytes // CLUSTER_BYTES  # a bit per cluster; generous
    return -(-(files_bytes + free_bytes + tables_bytes) // CLUSTER_BYTES) * CLUSTER_BYTES


def vhdx_shape(disk: VolumeDisk) -> VhdxShape:
    """The same content always has the same identities: a differencing child records them."""
    return VhdxShape(
        disk_bytes=disk.size_bytes,
        disk_id=uuid5(_IDS, f"disk {disk.content_id}"),
        data_write_id=uuid5(_IDS, f"data {disk.content_id}"),
        file_write_id=uuid5(_IDS, f"file {disk.content_id}"),
    )


def overlay_identity() -> dict[str, Any]:
    return {"volume": LABEL}
