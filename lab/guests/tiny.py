"""The tiny guest: Debian's cloud kernel and a static busybox, ready within seconds under TCG.

Layout of its 256 MiB disk: GRUB in the gap, an ext4 partition (/boot and the guest's files), and
the journal's raw partition at a fixed place (see `journal`). Its page and boot counter are
written at every boot, so two boots of one image differ on disk.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from appliance.base.units import MIB
from lab.guests.disk import (
    FIRST_PARTITION_OFFSET,
    LINUX,
    RAW_DATA,
    FileSystem,
    Partition,
    write_disk,
)
from lab.guests.initramfs import MODULES, initramfs
from lab.guests.journal import JOURNAL_BYTES, JOURNAL_OFFSET
from lab.guests.packages import KERNEL, fetch_kernel, kernel_image

PACKAGES = (KERNEL, "busybox-static", "grub-pc-bin")
DISK_BYTES = 256 * MIB
HTTP_PORT = 8080
TCP_PORT = 7777
_FILES = Path(__file__).with_name("files")
ROOT_UUID = "686f6c64-6661-7374-0000-74696e790000"
# The last console= is /dev/console; kernel messages go to both.
KERNEL_ARGS = "console=ttyS0 console=tty0 quiet panic=-1"


def build_tiny(target: Path) -> None:
    write_tiny(target, [])


def write_tiny(
    target: Path, before_journal: Sequence[Partition], more_modules: Sequence[str] = ()
) -> None:
    """The guest's disk; `before_journal` are further partitions, left empty, in order."""
    ends_at = before_journal[0].offset if before_journal else JOURNAL_OFFSET
    partitions = [
        Partition(
            offset=FIRST_PARTITION_OFFSET,
            length=ends_at - FIRST_PARTITION_OFFSET,
            kind=LINUX,
        ),
        *before_journal,
        Partition(offset=JOURNAL_OFFSET, length=JOURNAL_BYTES, kind=RAW_DATA),
    ]
    with tempfile.TemporaryDirectory(prefix="holdfast-tiny-") as name:
        folder = Path(name)
        kernel_root = fetch_kernel(folder)
        boot = folder / "root" / "boot"
        boot.mkdir(parents=True)
        shutil.copy(kernel_image(kernel_root), boot / "vmlinuz")
        scripts = {script: (_FILES / script).read_text() for script in ("start.sh", "dhcp.sh")}
        init = (_FILES / "tiny-init.sh").read_text()
        modules = (*MODULES, *more_modules)
        boot.joinpath("initrd.img").write_bytes(initramfs(kernel_root, init, scripts, modules))
        root = FileSystem(label="holdfast-tiny", uuid=ROOT_UUID, folder=boot.parent)
        write_disk(target, DISK_BYTES, partitions, root, KERNEL_ARGS)
