"""Bootable raw disks: MBR, GRUB in the gap behind it, ext4, and copies that stay sparse.

Nothing is mounted and no chroot is entered: mke2fs fills the file system from a folder, and the
boot sectors are written as grub-bios-setup would. The BIOS loads any of it from whatever
controller it knows, so a restored disk boots on virtio, IDE, SATA, NVMe and PVSCSI alike.
Source: GRUB 2.06 grub-core/boot/i386/pc/boot.S and diskboot.S, util/setup.c.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.base.units import MIB, SECTOR_BYTES
from lab.guests.packages import run

GRUB_FOLDER = Path("/usr/lib/grub/i386-pc")
FIRST_PARTITION_OFFSET = MIB
LINUX, RAW_DATA = 0x83, 0xDA  # MBR partition types
_BOOT_CODE_BYTES = 440
_DRIVE_CHECK_OFFSET = 0x66  # boot.S: grub-bios-setup puts two nops here on hard disks
_GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux")
_PARTITION_ENTRY = struct.Struct("<B3sB3sII")
_COPY_BYTES = 4 * MIB
_FICLONE = 0x40049409  # linux/fs.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    offset: int
    length: int
    kind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """An ext4 file system filled from a folder; the UUID also fixes mke2fs's hash seed."""

    label: str
    uuid: str
    folder: Path


def write_disk(
    path: Path, size_bytes: int, partitions: Sequence[Partition], root: FileSystem, kernel_args: str
) -> None:
    """Make `path` a disk of `size_bytes` whose first partition holds `root` and boots it.

    `root` must contain /boot/vmlinuz and /boot/initrd.img.
    """
    with path.open("xb") as disk:
        disk.truncate(size_bytes)
        disk.write(_boot_sector(partitions))
        core = _grub_core(kernel_args)
        if SECTOR_BYTES + len(core) > FIRST_PARTITION_OFFSET:
            raise ValueError(f"GRUB's core image of {len(core)} bytes does not fit the gap")
        disk.write(core)
    _make_file_system(path, partitions[0], root)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy an image: as a reflink where the file system can, else its data without its holes."""
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
                raise
        size_bytes = os.fstat(reader.fileno()).st_size
        writer.truncate(size_bytes)
        _copy_data(reader.fileno(), writer.fileno(), size_bytes)


def _copy_data(source_fd: int, target_fd: int, size_bytes: int) -> None:
    offset = 0
    while offset < size_bytes:
        try:
            offset = os.lseek(source_fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            raise
        end = os.lseek(source_fd, offset, os.SEEK_HOLE)
        while offset < end:
            count = min(_COPY_BYTES, end - offset)
            copied = os.copy_file_range(source_fd, target_fd, count, offset, offset)
            if copied == 0:
                raise OSError(errno.EIO, "the image shrank while it was copied")
            offset += copied


def _boot_sector(partitions: Sequence[Partition]) -> bytes:
    """GRUB's boot.img as it is (it loads sector 1), a fixed disk signature, the table."""
    code = bytearray(GRUB_FOLDER.joinpath("boot.img").read_bytes()[:_BOOT_CODE_BYTES])
    code[_DRIVE_CHECK_OFFSET : _DRIVE_CHECK_OFFSET + 2] = b"\x90\x90"
    table = b"".join(
        _PARTITION_ENTRY.pack(
            0x80 if number == 0 else 0,
            b"\xfe\xff\xff",  # beyond CHS: use the LBA fields
            partition.kind,
            b"\xfe\xff\xff",
            partition.offset // SECTOR_BYTES,
            partition.length // SECTOR_BYTES,
        )
        for number, partition in enumerate(partitions)
    )
    return bytes(code) + b"HFST\0\0" + table.ljust(64, b"\0") + b"\x55\xaa"


def _grub_core(kernel_args: str) -> bytes:
    """diskboot.img expects the rest of the core right behind itself, as it is written here."""
    config = (
        f"set root=(hd0,msdos1)\nlinux /boot/vmlinuz {kernel_args}\ninitrd /boot/initrd.img\nboot\n"
    )
    with tempfile.TemporaryDirectory(prefix="holdfast-grub-") as folder:
        config_path = Path(folder, "early.cfg")
        config_path.write_text(config)
        core_path = Path(folder, "core.img")
        options: list[str | Path] = [
            "-O",
            "i386-pc",
            "-d",
            GRUB_FOLDER,
            "-p",
            "/boot/grub",
            "-c",
            config_path,
        ]
        run(["grub-mkimage", *options, "-o", core_path, *_GRUB_MODULES], timeout_s=60)
        return core_path.read_bytes()


def _make_file_system(disk: Path, partition: Partition, root: FileSystem) -> None:
    """GRUB 2.06 cannot read metadata_csum_seed or orphan_file, so both stay off.

    The image is sparse, so mke2fs may take the storage as zeroed; without that the guest's kernel
    would write zeros over all inode tables in the background after its first boot.
    """
    extended = f"offset={partition.offset},hash_seed={root.uuid},assume_storage_prezeroed=1"
    run(
        [
            *("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-L", root.label, "-U", root.uuid),
            *("-O", "^metadata_csum_seed,^orphan_file", "-E", f"{extended},root_owner=0:0"),
            *("-d", root.folder, disk, f"{partition.length // 1024}k"),
        ],
        timeout_s=300,
    )
