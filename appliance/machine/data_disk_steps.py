"""Looking at the disks of this machine, and carrying out a plan of `data_disk`.

Blank means that blkid finds no signature of any kind and that the first 64 MiB and the last one
read as zeros. A file system is checked before it is mounted and grown after; both are safe to cut
off, and the next boot repeats them. Needs root. Source: sysfs-block, blkid(8), lsblk(8).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from appliance.base.units import MIB, SECTOR_BYTES
from appliance.machine.data_disk import LABEL, Content, Disk, Plan, Step
from appliance.machine.errors import DataDiskError, MachineCommandError
from appliance.machine.programs import run

_LOOKED_AT_BYTES = 64 * MIB
_KINDS = ("sd", "vd", "nvme", "xvd")
_NOTHING_FOUND = 2  # blkid's exit code
_CHECK_S = 3600.0


def survey(sys_block: Path = Path("/sys/block"), dev: Path = Path("/dev")) -> list[Disk]:
    """All whole disks but those with a mounted part. Raises OSError."""
    used = mounted_devices()
    disks = []
    for entry in sorted(sys_block.iterdir()):
        if not entry.name.startswith(_KINDS):
            continue
        parts = {entry.name, *(part.name for part in entry.glob(f"{entry.name}*"))}
        if parts & used:
            continue
        size_bytes = int((entry / "size").read_text()) * SECTOR_BYTES
        if size_bytes:
            disks.append(look_at(dev / entry.name, size_bytes))
    return disks


def mounted_devices(mounts: Path = Path("/proc/self/mountinfo")) -> set[str]:
    """Kernel names of what is mounted, "sda3"."""
    found = set()
    for line in mounts.read_text().splitlines():
        source = line.partition(" - ")[2].split()[1]
        if source.startswith("/dev/"):
            found.add(Path(source).resolve().name)
    return found


def look_at(device: Path, size_bytes: int) -> Disk:
    """What is on it; one that cannot be read is not ours to judge. Reads only."""
    content = Content.OTHER
    found: dict[str, str] = {"TYPE": "unclear"}
    with suppress(MachineCommandError):  # several signatures at once: not ours to judge
        text = run(["blkid", "--probe", "--output", "export", device], good=(0, _NOTHING_FOUND))
        found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if found.get("LABEL") == LABEL and found.get("TYPE") == "ext4":
        content = Content.OURS
    elif not found.keys() - {"DEVNAME"} and _reads_as_zeros(device, size_bytes):
        content = Content.BLANK
    uuid = found.get("UUID", "") if content is Content.OURS else ""
    return Disk(device=str(device), size_bytes=size_bytes, content=content, uuid=uuid)


def carry_out(plan: Plan, mount_point: Path) -> str:
    """Mount the disk, formatted and grown as need be; return the UUID. Idempotent.

    Raises DataDiskError, MachineCommandError.
    """
    device = plan.disk.device
    if plan.step is Step.FORMAT:
        # -F: a whole disk on purpose. Without -F -F mke2fs still refuses what is in use.
        run(["mkfs.ext4", "-q", "-F", "-m", "1", "-L", LABEL, device], timeout_s=_CHECK_S)
    disk = look_at(Path(device), plan.disk.size_bytes)
    if disk.content is not Content.OURS:
        raise DataDiskError(f"{device} has no file system after it was made")
    run(["e2fsck", "-p", device], good=(0, 1), timeout_s=_CHECK_S)
    mount_point.mkdir(parents=True, exist_ok=True)
    run(["mount", "-o", "noatime,nodev,nosuid,noexec", device, mount_point])
    try:
        run(["resize2fs", device], timeout_s=_CHECK_S)
    except MachineCommandError:
        run(["umount", mount_point])
        raise
    return disk.uuid


def _reads_as_zeros(device: Path, size_bytes: int) -> bool:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start in (*range(0, _LOOKED_AT_BYTES, MIB), size_bytes - MIB):
                data = os.pread(fd, MIB, max(0, start))
                if data.count(0) != len(data):
                    return False
        finally:
            os.close(fd)
    except OSError:  # a disk of some VM, say, must not keep our own from being mounted
        return False
    return True
