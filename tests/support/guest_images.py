"""Fresh copies of the cached lab guests, for tests that boot them."""

from __future__ import annotations

from pathlib import Path

from lab.guests import GuestKind, build, copy_sparse
from tests.support.needs import needs

_PROGRAMS = {
    GuestKind.TINY: ("busybox", "mkfs.ext4", "grub-mkimage"),
    GuestKind.DEBIAN: ("busybox", "mkfs.ext4", "grub-mkimage", "mmdebstrap"),
    GuestKind.UEFI: ("busybox", "mkfs.ext4", "grub-mkimage", "mkfs.vfat", "mcopy"),
}


def fresh_copy(kind: GuestKind, folder: Path) -> Path:
    """Return a writable image of the guest in `folder`; builds the original when it must."""
    needs("qemu-system-x86_64", "setpriv", *_PROGRAMS[kind])
    path = folder / f"{kind}.raw"
    copy_sparse(build(kind), path)
    return path
