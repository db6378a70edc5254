"""The system disk: GPT, GRUB for BIOS and UEFI, one ext4 file system, without mounting anything.

BIOS loads GRUB from a partition of its own; UEFI loads Debian's signed shim and GRUB from the EFI
partition, so Secure Boot may stay on. Both read /boot/grub/grub.cfg of the system. Every identifier
and time in it is fixed, so that the same tree makes the same disk.
Source: UEFI 2.10 section 5; GRUB 2.06 grub-core/boot/i386/pc/boot.S and diskboot.S, util/setup.c.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

from appliance.base.units import GIB, MIB, SECTOR_BYTES
from lab.guests.disk import GRUB_FOLDER
from lab.guests.packages import run
from lab.guests.uefi import signed_programs

SYSTEM_BYTES = 8 * GIB
LABEL = "holdfast-system"
_BIOS_SECTOR = MIB // SECTOR_BYTES
_ESP_SECTOR = 2 * MIB // SECTOR_BYTES
_ESP_BYTES = 62 * MIB
_ROOT_SECTOR = 64 * MIB // SECTOR_BYTES
_ROOT_BYTES = SYSTEM_BYTES - 65 * MIB  # the copy of the table is at the end
_DISK_ID = "686f6c64-6661-4000-8000-000000000000"
_ROOT_UUID = "686f6c64-6661-4000-8000-000000000003"
_PARTITIONS = f"""\
label: gpt
label-id: {_DISK_ID}
unit: sectors
first-lba: 2048
start={_BIOS_SECTOR}, size={MIB // SECTOR_BYTES}, type=21686148-6449-6E6F-744E-656564454649, \
uuid=686f6c64-6661-4000-8000-000000000001
start={_ESP_SECTOR}, size={_ESP_BYTES // SECTOR_BYTES}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, \
uuid=686f6c64-6661-4000-8000-000000000002
start={_ROOT_SECTOR}, size={_ROOT_BYTES // SECTOR_BYTES}, \
type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, uuid={_ROOT_UUID}
"""
_BOOT_CODE_BYTES = 440
_KERNEL_SECTOR_OFFSET = 0x5C  # boot.S: where the core begins, u64
_DRIVE_CHECK_OFFSET = 0x66  # boot.S: two nops here on hard disks
_BLOCK_LIST_OFFSET = SECTOR_BYTES - 12  # diskboot.S: where its rest begins, u64
_MODULES = (
    *("biosdisk", "part_gpt", "ext2", "linux", "normal", "configfile", "search", "search_label"),
    *("echo", "test", "sleep", "minicmd", "reboot", "halt"),
)
_FIND_SYSTEM = f"search --no-floppy --label --set=root {LABEL}\n"
_EARLY = _FIND_SYSTEM + "normal ($root)/boot/grub/grub.cfg\n"
_EFI_CONFIG = _FIND_SYSTEM + "configfile ($root)/boot/grub/grub.cfg\n"


def make_disk(tree: Path, target: Path, work: Path, epoch: int) -> None:
    """Make `target` a raw, sparse disk that boots `tree`."""
    with target.open("xb") as disk:
        disk.truncate(SYSTEM_BYTES)
    run(["sfdisk", "--quiet", "--no-reread", target], timeout_s=60, text=_PARTITIONS)
    _write_bios_boot(target, work)
    _write_efi_partition(target, work, epoch)
    _write_system(target, tree, epoch)
    _pin_inode_times(target, epoch)


def _write_bios_boot(target: Path, work: Path) -> None:
    config, core_path = work / "early.cfg", work / "core.img"
    config.write_text(_EARLY)
    options: list[str | Path] = ["-O", "i386-pc", "-d", GRUB_FOLDER, "-p", "/boot/grub"]
    run(
        ["grub-mkimage", *options, "-c", config, "-o", core_path, *_MODULES],
        timeout_s=60,
    )
    core = bytearray(core_path.read_bytes())
    if len(core) > MIB:
        raise ValueError(f"GRUB's core image of {len(core)} bytes does not fit its partition")
    struct.pack_into("<Q", core, _BLOCK_LIST_OFFSET, _BIOS_SECTOR + 1)
    boot = bytearray(GRUB_FOLDER.joinpath("boot.img").read_bytes()[:_BOOT_CODE_BYTES])
    boot[_DRIVE_CHECK_OFFSET : _DRIVE_CHECK_OFFSET + 2] = b"\x90\x90"
    struct.pack_into("<Q", boot, _KERNEL_SECTOR_OFFSET, _BIOS_SECTOR)
    with target.open("r+b") as disk:
        disk.write(boot)
        disk.seek(_BIOS_SECTOR * SECTOR_BYTES)
        disk.write(core)


def _write_efi_partition(target: Path, work: Path, epoch: int) -> None:
    esp = work / "esp.img"
    with esp.open("xb") as file:
        file.truncate(_ESP_BYTES)
    options = ["-F", "32", "-i", "686f6c64", "-n", "HOLDFAST", "--invariant"]
    _run_pinned(["mkfs.vfat", *options, str(esp)], epoch)
    tree = work / "esp"
    for name, content in _efi_files(work).items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for path in sorted(tree.rglob("*"), reverse=True):
        os.utime(path, (epoch, epoch))
    _run_pinned(["mcopy", "-i", str(esp), "-s", "-m", "-Q", str(tree / "EFI"), "::"], epoch)
    with target.open("r+b") as disk:
        disk.seek(_ESP_SECTOR * SECTOR_BYTES)
        disk.write(esp.read_bytes())


def _efi_files(work: Path) -> Mapping[str, bytes]:
    return {
        **signed_programs(work),
        "EFI/debian/grub.cfg": _EFI_CONFIG.encode(),
    }


def _write_system(target: Path, tree: Path, epoch: int) -> None:
    """GRUB 2.06 cannot read metadata_csum_seed or orphan_file, so both stay off."""
    extended = f"offset={_ROOT_SECTOR * SECTOR_BYTES},hash_seed={_ROOT_UUID},root_owner=0:0"
    _run_pinned(
        [
            *("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "2", "-L", LABEL, "-U", _ROOT_UUID),
            *("-O", "^metadata_csum_seed,^orphan_file", "-E"),
            f"{extended},assume_storage_prezeroed=1",
            *("-d", str(tree), str(target), f"{_ROOT_BYTES // 1024}k"),
        ],
        epoch,
    )


def _pin_inode_times(target: Path, epoch: int) -> None:
    """mke2fs takes the change times of the tree's files, which nobody can set: pin them here."""
    device = f"{target}?offset={_ROOT_SECTOR * SECTOR_BYTES}"
    stats = run(["dumpe2fs", "-h", device], timeout_s=60)
    fields = dict(line.split(":", 1) for line in stats.splitlines() if ":" in line)
    used = int(fields["Inode count"]) - int(fields["Free inodes"])
    stamp = f"@{epoch}"
    lines = [
        f"set_inode_field <{inode}> {name} {stamp}\n"
        for inode in (2, *range(11, used + 1))
        for name in ("ctime", "atime", "crtime")
    ]
    _run_pinned(["debugfs", "-w", "-f", "/dev/stdin", device], epoch, text="".join(lines))


def _run_pinned(command: list[str], epoch: int, *, text: str = "") -> None:
    done = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env=os.environ
        | {"SOURCE_DATE_EPOCH": str(epoch), "E2FSPROGS_FAKE_TIME": str(epoch), "TZ": "UTC"},
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")
