"""The data disk: which one is taken, and that nothing but a blank one is ever formatted."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.base.units import GIB, MIB
from appliance.machine.data_disk import LABEL, Content, Disk, Plan, Step, plan
from appliance.machine.data_disk_steps import look_at, mounted_devices
from appliance.machine.errors import DataDiskError
from appliance.machine.programs import run
from tests.support.needs import needs


def disk(name: str, content: Content, *, size_bytes: int = 100 * GIB, uuid: str = "") -> Disk:
    return Disk(device=f"/dev/{name}", size_bytes=size_bytes, content=content, uuid=uuid)


BLANK = disk("sdb", Content.BLANK)
OTHER = disk("sdc", Content.OTHER)
OURS = disk("sdd", Content.OURS, uuid="one")


def test_a_blank_disk_is_formatted_at_the_first_boot() -> None:
    """Other disks beside it do not matter."""
    assert plan([OTHER, BLANK], "") == Plan(step=Step.FORMAT, disk=BLANK)


def test_a_data_disk_of_another_appliance_is_taken_over_and_not_formatted() -> None:
    """Even when a blank one is attached too."""
    assert plan([BLANK, OURS, OTHER], "") == Plan(step=Step.USE, disk=OURS)


def test_the_disk_that_was_used_before_is_used_again() -> None:
    """Among others of the same kind."""
    second = disk("sde", Content.OURS, uuid="two")
    assert plan([second, BLANK, OURS], "one").disk is OURS


@pytest.mark.parametrize(
    ("disks", "recorded"),
    [
        ([], ""),
        ([OTHER], ""),
        ([BLANK, disk("sde", Content.BLANK)], ""),
        ([OURS, disk("sde", Content.OURS, uuid="two")], ""),
        ([disk("sde", Content.BLANK, size_bytes=GIB)], ""),
        ([BLANK], "one"),  # the blank disk of a VM that is being backed up
        ([disk("sde", Content.OURS, uuid="two"), BLANK], "one"),
        ([OURS, disk("sde", Content.OURS, uuid="one")], "one"),
    ],
)
def test_in_doubt_no_disk_is_touched(disks: list[Disk], recorded: str) -> None:
    """Above all: a machine that knows its disk never formats another."""
    with pytest.raises(DataDiskError):
        plan(disks, recorded)


def image(path: Path, size_bytes: int = 128 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def test_only_a_disk_without_any_byte_at_its_ends_is_blank(tmp_path: Path) -> None:
    """What no program recognises may still be somebody's."""
    needs("blkid")
    path = image(tmp_path / "disk")
    assert look_at(path, 128 * MIB).content is Content.BLANK
    for offset in (3, 17 * MIB + 5, 128 * MIB - 1):
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"\1")
        assert look_at(path, 128 * MIB).content is Content.OTHER
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"\0")
    assert look_at(path, 128 * MIB).content is Content.BLANK


@pytest.mark.parametrize(
    ("command", "content"),
    [
        (["mkfs.ext4", "-q", "-F", "-L", LABEL], Content.OURS),
        (["mkfs.ext4", "-q", "-F", "-L", "data"], Content.OTHER),
        (["mkfs.ext2", "-q", "-F", "-L", LABEL], Content.OTHER),
        (["mkfs.vfat", "-F", "32"], Content.OTHER),
    ],
)
def test_file_systems_are_told_apart(tmp_path: Path, command: list[str], content: Content) -> None:
    """Ours by type and label; anything else is somebody's."""
    needs(command[0], "blkid")
    path = image(tmp_path / "disk")
    run([*command, path])
    found = look_at(path, 128 * MIB)
    assert found.content is content
    assert bool(found.uuid) == (content is Content.OURS)


def test_a_disk_that_cannot_be_read_is_somebody_elses(tmp_path: Path) -> None:
    """It is never formatted, and our own data disk beside it is mounted all the same."""
    needs("blkid")
    assert look_at(tmp_path / "gone", 100 * MIB).content is Content.OTHER


def test_what_is_mounted_is_found_by_its_kernel_name(tmp_path: Path) -> None:
    """So that the system disk is never looked at."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:3 / / rw,relatime shared:1 - ext4 /dev/sda3 rw\n"
        "23 22 0:5 / /dev rw shared:2 - devtmpfs udev rw,size=1k\n"
    )
    assert mounted_devices(mounts) == {"sda3"}
