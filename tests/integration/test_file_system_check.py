"""File systems of guests, made by their own tools, checked as a verification does."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from appliance.base.errors import CancelledError
from appliance.base.run_context import CancelToken
from appliance.blocks.overlay import Overlay
from appliance.blocks.partition_table import Volume, VolumeKind
from appliance.exports.nbd import NbdExport, NbdServer
from appliance.sandbox import file_system_check
from appliance.sandbox.file_system_check import (
    CHECK_FAILED,
    DAMAGED,
    NO_CHECKER,
    NOT_CHECKABLE,
    TABLE_DAMAGED,
    VolumeCheck,
    check_disk,
)
from appliance.sandbox.spec import NbdExport as SandboxDisk
from appliance.sources.raw_image import RawImageReader
from lab.guests import GuestKind
from tests.support.guest_images import fresh_copy
from tests.support.needs import needs
from tests.support.programs import run

pytestmark = pytest.mark.integration

MIB = 1 << 20


@contextmanager
def served(image: Path, folder: Path) -> Iterator[tuple[Overlay, SandboxDisk]]:
    with ExitStack() as stack:
        overlay = Overlay.create(folder / "overlay", RawImageReader(image), {"of": "test"})
        stack.callback(overlay.discard)
        socket_path = folder / "nbd"
        export = NbdExport(name="disk", disk=overlay, read_only=False)
        stack.enter_context(NbdServer([export], address=socket_path))
        yield overlay, SandboxDisk(socket_path=socket_path, export="disk")


def check(image: Path, folder: Path, *, timeout_s: float = 60.0) -> list[VolumeCheck]:
    needs("qemu-storage-daemon", "fusermount3", "setpriv", "prlimit", "unshare")
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-check-") as name,
        served(image, folder) as (overlay, export),
    ):
        place = Path(name)
        place.chmod(0o711)  # nobody has to get to the file
        found = check_disk(0, overlay, export, place, timeout_s=timeout_s, cancel=CancelToken())
        assert list(place.iterdir()) == []
    mounts = Path("/proc/mounts").read_text()
    assert name not in mounts and str(folder) not in mounts, "nothing stays mounted"
    return found


def make(path: Path, size_bytes: int, *command: str) -> Path:
    needs(command[0])
    with path.open("wb") as file:
        file.truncate(size_bytes)
    run(*command, path)
    return path


def test_a_guest_disk_is_sound_and_stays_as_it_is(tmp_path: Path) -> None:
    """The tiny guest has one ext4 volume and one raw one, which nothing checks."""
    image = fresh_copy(GuestKind.TINY, tmp_path)
    before = image.stat().st_mtime_ns
    ext, raw = check(image, tmp_path)
    assert (ext.kind, ext.number, ext.reason) == (VolumeKind.EXT, 1, None), ext
    assert (raw.number, raw.reason) == (2, None) or raw.reason == NOT_CHECKABLE
    assert image.stat().st_mtime_ns == before


def test_damage_inside_a_guest_is_found(tmp_path: Path) -> None:
    """An inode that points anywhere is no accident of being backed up while running."""
    image = fresh_copy(GuestKind.TINY, tmp_path)
    ext = f"{image}?offset={MIB}"
    run("debugfs", "-w", "-R", "sif /boot/vmlinuz block[0] 1", ext)
    run("debugfs", "-w", "-R", "sif /boot mode 0100644", ext)
    found = check(image, tmp_path)[0]
    assert found.reason == DAMAGED and found.damaged, found


@pytest.mark.parametrize(
    ("kind", "command", "size_bytes"),
    [
        (VolumeKind.NTFS, ("mkntfs", "-Q", "-F", "-q"), 16 * MIB),
        (VolumeKind.FAT, ("mkfs.vfat",), 16 * MIB),
        (VolumeKind.XFS, ("mkfs.xfs", "-q"), 320 * MIB),
        (VolumeKind.EXT, ("mkfs.ext4", "-q", "-F"), 16 * MIB),
    ],
)
def test_each_kind_is_checked_by_its_own_program(
    kind: VolumeKind, command: tuple[str, ...], size_bytes: int, tmp_path: Path
) -> None:
    """A disk without a partition table counts as one volume."""
    (found,) = check(make(tmp_path / "disk", size_bytes, *command), tmp_path)
    assert (found.kind, found.number, found.reason) == (kind, 0, None), found


@pytest.mark.parametrize(
    ("command", "size_bytes", "wrecked"),
    [
        (("mkntfs", "-Q", "-F", "-q"), 16 * MIB, (0x4000, 64 * 1024)),
        (("mkfs.vfat", "-F", "32"), 64 * MIB, (0x4000, 400)),
        (("mkfs.xfs", "-q"), 320 * MIB, (512, 2048)),
    ],
    ids=["ntfs", "fat", "xfs"],
)
def test_each_kind_shows_its_damage(
    command: tuple[str, ...], size_bytes: int, wrecked: tuple[int, int], tmp_path: Path
) -> None:
    """A verdict that can only be good is none."""
    image = make(tmp_path / "disk", size_bytes, *command)
    with image.open("r+b") as file:
        file.seek(wrecked[0])
        file.write(os.urandom(wrecked[1]))
    (found,) = check(image, tmp_path)
    assert found.reason == DAMAGED, found


def test_a_volume_that_was_in_use_is_not_damaged(tmp_path: Path) -> None:
    """FAT says so with a bit, which a check would count as an error."""
    image = make(tmp_path / "disk", 64 * MIB, "mkfs.vfat", "-F", "32")
    with image.open("r+b") as file:
        file.seek(0x41)
        file.write(b"\1")
    (found,) = check(image, tmp_path)
    assert found.reason is None, found


def test_a_table_that_lies_is_a_verdict(tmp_path: Path) -> None:
    """A partition beyond the disk is damage, not an exception."""
    image = tmp_path / "disk"
    sector = bytearray(512)
    sector[446 + 4], sector[446 + 8] = 0x83, 1
    sector[446 + 12 : 446 + 16] = b"\xff\xff\xff\x7f"
    sector[510:] = b"\x55\xaa"
    image.write_bytes(bytes(sector) + bytes(MIB))
    (found,) = check(image, tmp_path)
    assert found.reason == TABLE_DAMAGED and found.damaged


def test_a_checker_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that keeps a checker busy costs its time and no more."""
    hangs = {**file_system_check._CHECKERS, VolumeKind.EXT: ("sh", "-c", "sleep 60 & sleep 60")}
    monkeypatch.setattr(file_system_check, "_CHECKERS", hangs)
    image = make(tmp_path / "disk", 4 * MIB, "mkfs.ext4", "-q", "-F")
    (found,) = check(image, tmp_path, timeout_s=0.5)
    assert found.reason == CHECK_FAILED and "killed" in found.detail
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "sleep 60 & sleep 60" not in listed.stdout


def test_a_checker_has_no_privileges_no_network_and_no_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It parses what a hostile guest wrote, so it gets what it needs and nothing else."""
    script = 'id -u; grep NoNewPrivs /proc/self/status; grep -c : /proc/net/dev; head -c4 "$0"; cat'
    asks = {
        **file_system_check._CHECKERS,
        VolumeKind.EXT: ("sh", "-c", f"echo $({script} /etc/shadow 2>&1)"),
    }
    monkeypatch.setattr(file_system_check, "_CHECKERS", asks)
    image = make(tmp_path / "disk", 4 * MIB, "mkfs.ext4", "-q", "-F")
    (found,) = check(image, tmp_path)
    assert "NoNewPrivs: 1" in found.detail
    assert "Permission denied" in found.detail
    if os.geteuid() == 0:
        user, _, _, devices, *_ = found.detail.split()
        assert user == "65534" and devices == "1", "the loopback of its own"


def test_a_missing_checker_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a skip with a reason, never a pass."""
    missing = {**file_system_check._CHECKERS, VolumeKind.EXT: ("no-such-checker",)}
    monkeypatch.setattr(file_system_check, "_CHECKERS", missing)
    image = make(tmp_path / "disk", 4 * MIB, "mkfs.ext4", "-q", "-F")
    (found,) = check(image, tmp_path)
    assert found.reason == NO_CHECKER


def test_a_cancelled_check_ends(tmp_path: Path) -> None:
    """Between volumes and while a checker runs."""
    image = make(tmp_path / "disk", 4 * MIB, "mkfs.ext4", "-q", "-F")
    cancel = CancelToken()
    cancel.cancel()
    with served(image, tmp_path) as (overlay, export), pytest.raises(CancelledError):
        check_disk(0, overlay, export, tmp_path, timeout_s=60, cancel=cancel)


def test_a_confinement_that_fails_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where namespaces are forbidden the exit code is not the checker's: 1 must not mean sound."""

    def refused(volume: Volume, timeout_s: float) -> list[str]:
        return ["sh", "-c", "echo unshare failed: Operation not permitted; exit 1", "--"]

    image = make(tmp_path / "disk", 4 * MIB, "mkfs.ext4", "-q", "-F")
    monkeypatch.setattr(file_system_check, "_confinement", refused)
    (found,) = check(image, tmp_path)
    assert found.reason == CHECK_FAILED and "not permitted" in found.detail
