"""Tell disk image formats apart by their headers, and find references to other files in them.

Headers are guest data when the image is a raw guest disk: a guest may write a qcow2 header into its
first sector and name `/etc/shadow` of the backup host as backing file. So

- a block device is raw unless the operator names a format: volumes given to guests are raw, and
  their first bytes belong to the guest;
- a regular file is what its header says, but an image that takes content from another file is
  refused (`ExternalFileError`) unless the operator allows it, and qemu-nbd is told which format to
  use and to open no backing file;
- nothing here opens any other file.

What remains: a guest whose raw *file* is backed up with the format left open can have its own disk
read as the image that it wrote there. Name `raw` for the disks of guests that you do not trust.

Sources: QEMU docs/interop/qcow2.txt (header, feature bits); VMware "Virtual Disk Format 5.0";
Microsoft "Virtual Hard Disk Image Format" (footer) and MS-VHDX 2.2.1 (file type identifier).
"""

from __future__ import annotations

import os
import re
import stat
from enum import StrEnum
from pathlib import Path
from struct import Struct

from appliance.base.units import KIB, SECTOR_BYTES
from appliance.sources.errors import ExternalFileError, ImageFormatError, SourceReadError
from appliance.sources.raw_image import open_disk


class ImageFormat(StrEnum):
    AUTO = "auto"
    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VHDX = "vhdx"
    VHD = "vhd"


_QCOW2 = b"QFI\xfb"
_QCOW2_START = Struct(">4sIQI")  # magic version, backing file name: offset and length
_QCOW2_FEATURES_AT = 72  # version 3: incompatible features
_QCOW2_EXTERNAL_DATA = 1 << 2
_VMDK_SPARSE = b"KDMV"
_VMDK_START = Struct("<4sIIQQQQ")  # magic version flags capacity grain, descriptor: at and length
_VMDK_DESCRIPTOR = b"# Disk DescriptorFile"
_VMDK_DESCRIPTOR_LIMIT_BYTES = 64 * KIB
_VMDK_PARENT = re.compile(
    rb"^\s*parentCID\s*=\s*(?!f{8}\b)|^\s*parentFileNameHint\s*=", re.I | re.M
)
_VHDX = b"vhdxfile"
_VHD = b"conectix"
_VHD_FOOTER = Struct(">8sIIQI4sI4sQQIII")  # … original size, current size, geometry, type, checksum
_VHD_FIXED, _VHD_DIFFERENCING = 2, 4


def settle_format(path: Path, asked: ImageFormat, *, allow_external: bool) -> ImageFormat:
    """Return the format to open `path` with, never AUTO.

    Raises:
        ImageFormatError: it is not of the format asked for.
        ExternalFileError: it refers to other files, and `allow_external` is not set.
        NotADiskError, SourceReadError.
    """
    if asked is ImageFormat.RAW:
        return asked
    fd = open_disk(path)
    try:
        if asked is ImageFormat.AUTO and stat.S_ISBLK(os.fstat(fd).st_mode):
            return ImageFormat.RAW
        found = _detect(fd)
        if asked not in (ImageFormat.AUTO, found):
            raise ImageFormatError(f"{path}: asked for {asked}, but it is {found}")
        reference = None if found is ImageFormat.RAW else _external(fd, found)
    except OSError as error:
        raise SourceReadError(f"{path}: {error.strerror}") from error
    finally:
        os.close(fd)
    if reference is not None and not allow_external:
        raise ExternalFileError(f"{path}: {found} image with {reference}")
    return found


def _detect(fd: int) -> ImageFormat:
    head = os.pread(fd, SECTOR_BYTES, 0)
    if head.startswith(_QCOW2):
        return ImageFormat.QCOW2
    if head.startswith((_VMDK_SPARSE, b"COWD", _VMDK_DESCRIPTOR)):
        return ImageFormat.VMDK
    if head.startswith(_VHDX):
        return ImageFormat.VHDX
    if _vhd_type(head) or _is_fixed_vhd(fd):
        return ImageFormat.VHD
    return ImageFormat.RAW


def _is_fixed_vhd(fd: int) -> bool:
    """A fixed VHD is the disk followed by a footer that names its size."""
    data_bytes = os.lseek(fd, 0, os.SEEK_END) - SECTOR_BYTES
    footer = os.pread(fd, SECTOR_BYTES, max(data_bytes, 0))
    return _vhd_type(footer) == _VHD_FIXED and _VHD_FOOTER.unpack_from(footer)[9] == data_bytes


def _vhd_type(footer: bytes) -> int:
    """Return the disk type of a footer whose checksum is right, 0 for anything else."""
    if len(footer) < SECTOR_BYTES or not footer.startswith(_VHD):
        return 0
    fields = _VHD_FOOTER.unpack_from(footer)
    kind, checksum = int(fields[11]), int(fields[12])
    at = _VHD_FOOTER.size - 4
    total = sum(footer) - sum(footer[at : at + 4])
    return kind if checksum == ~total & 0xFFFF_FFFF else 0


def _external(fd: int, found: ImageFormat) -> str | None:
    """Say what the image refers to outside itself, None for nothing."""
    if found is ImageFormat.QCOW2:
        return _qcow2_external(os.pread(fd, SECTOR_BYTES, 0))
    if found is ImageFormat.VMDK:
        return _vmdk_external(fd)
    if found is ImageFormat.VHD and _vhd_type(os.pread(fd, SECTOR_BYTES, 0)) == _VHD_DIFFERENCING:
        return "a parent (differencing disk)"
    return None  # VHDX: its reader refuses a parent that it was not allowed to open


def _qcow2_external(head: bytes) -> str | None:
    if len(head) < _QCOW2_FEATURES_AT + 8:
        raise ImageFormatError("qcow2 header is cut short")
    _, version, backing_at, backing_bytes = _QCOW2_START.unpack_from(head)
    if version not in (2, 3):
        raise ImageFormatError(f"qcow2 of version {version}")
    if backing_at or backing_bytes:
        return "a backing file"
    features = int.from_bytes(head[_QCOW2_FEATURES_AT : _QCOW2_FEATURES_AT + 8], "big")
    return "an external data file" if version == 3 and features & _QCOW2_EXTERNAL_DATA else None


def _vmdk_external(fd: int) -> str | None:
    head = os.pread(fd, SECTOR_BYTES, 0)
    if head.startswith(_VMDK_DESCRIPTOR):
        return "its extents in other files (a descriptor)"
    if not head.startswith(_VMDK_SPARSE):
        return "a chain of COWD extents"
    _, _, _, capacity, _, at, length = _VMDK_START.unpack_from(head)
    if not capacity:
        return "its extents in other files (an embedded descriptor without data)"
    wanted = min(length * SECTOR_BYTES, _VMDK_DESCRIPTOR_LIMIT_BYTES)
    descriptor = os.pread(fd, wanted, at * SECTOR_BYTES) if at < 1 << 54 else b""
    return "a parent" if _VMDK_PARENT.search(descriptor) else None
