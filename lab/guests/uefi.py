"""The uefi guest: the tiny one, on a disk that UEFI firmware boots, with or without Secure Boot.

Its EFI system partition holds Debian's programs as Debian signs them: shim (by Microsoft's
certificate for other vendors' loaders), GRUB and the kernel (by Debian's, which shim knows). They
lie where firmware looks that remembers no boot entry, so the disk boots on a machine that has never
seen it. All else is as in `tiny`: journal, commands, page. With Secure Boot, it needs 512 MiB.

Nothing is installed or mounted: packages are downloaded and unpacked, mtools fills the partition.
Source: UEFI 2.10, 3.5.1.1 (removable media boot); Debian's grub2, debian/build-efi-images.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from appliance.base.units import MIB
from lab.guests import tiny
from lab.guests.disk import Partition
from lab.guests.journal import JOURNAL_OFFSET
from lab.guests.packages import run

SIGNED_PACKAGES = ("shim-signed", "grub-efi-amd64-signed")
PACKAGES = (*tiny.PACKAGES, *SIGNED_PACKAGES)
_MODULES = ("virtio_scsi",)  # the SCSI controller that both the firmware and Linux know
_EFI_SYSTEM = 0xEF  # MBR partition type
_ESP_BYTES = 8 * MIB
_ESP = Partition(offset=JOURNAL_OFFSET - _ESP_BYTES, length=_ESP_BYTES, kind=_EFI_SYSTEM)
_GRUB_CONFIG = f"""\
search --no-floppy --fs-uuid --set=root {tiny.ROOT_UUID}
linux /boot/vmlinuz {tiny.KERNEL_ARGS}
initrd /boot/initrd.img
boot
"""


def build_uefi(target: Path) -> None:
    tiny.write_tiny(target, [_ESP], _MODULES)
    with tempfile.TemporaryDirectory(prefix="holdfast-uefi-") as name:
        folder = Path(name)
        tree = folder / "tree"
        for place, data in signed_programs(folder).items():
            path = tree / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        # Where the signed GRUB looks for its configuration.
        (tree / "EFI/debian").mkdir()
        (tree / "EFI/debian/grub.cfg").write_text(_GRUB_CONFIG)
        volume = folder / "esp"
        with volume.open("xb") as file:
            file.truncate(_ESP_BYTES)
        run(["mkfs.vfat", "-i", "686f6c64", "--invariant", volume], timeout_s=60)
        run(["mcopy", "-i", volume, "-s", "-Q", tree / "EFI", "::"], timeout_s=60)
        with target.open("r+b") as disk:
            disk.seek(_ESP.offset)
            disk.write(volume.read_bytes())


def signed_programs(folder: Path) -> dict[str, bytes]:
    """Shim and GRUB by their place in an EFI system partition; `folder` takes the packages."""
    download = folder / "boot-packages"
    download.mkdir()
    subprocess.run(
        ["apt-get", "--quiet=2", "download", *SIGNED_PACKAGES],
        cwd=download,
        check=True,
        timeout=300,
        capture_output=True,
    )
    for package in download.glob("*.deb"):
        run(["dpkg-deb", "--extract", package, folder / "boot-root"], timeout_s=60)
    root = folder / "boot-root/usr/lib"
    return {
        "EFI/BOOT/BOOTX64.EFI": (root / "shim/shimx64.efi.signed").read_bytes(),
        "EFI/BOOT/grubx64.efi": (root / "grub/x86_64-efi-signed/grubx64.efi.signed").read_bytes(),
    }
