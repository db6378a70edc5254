"""One disk as a VHDX file without a file system around it, for a share: `build_file`, and then
`volume.open_volume`, as for a volume.

    file     [ head | disk | zeros up to a whole block ]
    stored   scratch  overlay of the disk   scratch

Thread model: `build_file` blocks, for milliseconds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from appliance.base.errors import StorageError
from appliance.blocks.overlay import Overlay
from appliance.blocks.zero_reader import ZeroReader
from appliance.exports.vhdx_volume.layout import LaidDisk, LaidPiece, VolumeLayout, write_layout
from appliance.exports.vhdx_volume.volume import (
    COPY_BYTES,
    VolumeDisk,
    VolumeError,
    overlay_identity,
    vhdx_shape,
)
from hyperv.vhdx.errors import DiskFileError
from hyperv.vhdx.layout import FixedVhdxLayout


def build_file(folder: Path, disk: VolumeDisk) -> None:
    """Make the file of `disk` in `folder`, whose parent exists. Reads none of its content.

    After a crash there is a whole file or none, and the call may be repeated.

    Raises: VolumeError, StorageError, StorageFullError.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of a build that was killed
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}") from error
    try:
        write_layout(folder, _build(folder, disk))
    except DiskFileError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise VolumeError(str(error)) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _build(folder: Path, disk: VolumeDisk) -> VolumeLayout:
    file = FixedVhdxLayout(vhdx_shape(disk))
    base = ZeroReader(file.file_bytes)
    scratch = Overlay.create(folder / "scratch", base, overlay_identity())
    try:
        for start, length in file.head_extents():
            for offset in range(start, start + length, COPY_BYTES):
                part = min(COPY_BYTES, start + length - offset)
                scratch.write_at(offset, file.head(offset, part))
        scratch.flush()
    finally:
        scratch.close()
    piece = LaidPiece(offset=file.payload_offset, disk_offset=0, length=disk.size_bytes)
    laid = LaidDisk(number=disk.number, size_bytes=disk.size_bytes, file=disk.file, pieces=(piece,))
    return VolumeLayout(size_bytes=file.file_bytes, disks=(laid,))
