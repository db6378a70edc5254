"""Disks of Hyper-V VMs are known by Virtual Disk ID and place, never by position in a list."""

from __future__ import annotations

import pytest

from appliance.sources.disk_numbers import PlacedDisk, disk_numbers
from appliance.sources.frozen import DiskIdentity, KnownDisk, KnownState
from hyperv.reference_points import rct_id_of
from hyperv.script_types import CheckpointDisk, ReferencePoint, ReferencePointDisk
from tests.support.hyperv_disk_values import disk_file


def frozen(disk_id: str, unit: int) -> CheckpointDisk:
    return CheckpointDisk(
        attachment=f"Microsoft:CHECKPOINT\\CTRL\\0\\{unit}\\L",
        virtual_disk_id=disk_id,
        controller="scsi",
        controller_number=0,
        location=unit,
        chain=[disk_file("D:\\a.vhdx", disk_id=disk_id)],
    )


def point(*disks: tuple[str, int, str]) -> ReferencePoint:
    """Of (Virtual Disk ID, unit, change tracking id)."""
    return ReferencePoint(
        id="rp",
        vm_id="vm",
        type=2,
        consistency=1,
        disks=[
            ReferencePointDisk(
                attachment=f"Microsoft:VM\\ctrl\\0\\{unit}\\D",
                rct_id=rct_id,
                path="",
                virtual_disk_id=disk_id,
            )
            for disk_id, unit, rct_id in disks
        ],
    )


@pytest.mark.parametrize(
    ("disks", "found"),
    [
        ([("a", 0, "r1"), ("b", 1, "r2")], "r2"),
        ([("b", 5, "r2"), ("a", 1, "r1")], "r2"),  # it hangs elsewhere now
        ([("", 0, "r1"), ("", 1, "r2")], "r2"),  # the point does not say which disk it is
        ([("b", 0, "r1"), ("b", 1, "r2")], "r2"),  # copies of one disk
        ([("b", 0, "r1"), ("b", 2, "r3")], ""),  # and none of them at this place
        ([("a", 1, "r1")], ""),  # another disk at this place
        ([], ""),
    ],
)
def test_a_disk_is_found_in_a_reference_point(
    disks: list[tuple[str, int, str]], found: str
) -> None:
    """Or nothing is asked, and all of it is read."""
    assert rct_id_of(point(*disks), frozen("b", 1)) == found


def known(*disks: tuple[int, str, str]) -> KnownState:
    return KnownState(
        run_id="r",
        instance="i",
        disks=tuple(
            KnownDisk(
                number=number,
                label="",
                size_bytes=1,
                change_id=None,
                identity=DiskIdentity(uuid=uuid, place=place),
            )
            for number, uuid, place in disks
        ),
    )


def test_a_disk_keeps_its_number_wherever_it_hangs() -> None:
    """By id and place, then id, then place; new ones take what was never used."""
    earlier = known((0, "a", "scsi0:0"), (1, "b", "scsi0:1"), (2, "", "scsi0:2"))
    now = [
        PlacedDisk(uuid="b", place="scsi0:0"),
        PlacedDisk(uuid="a", place="scsi1:0"),
        PlacedDisk(uuid="new", place="scsi0:2"),
        PlacedDisk(uuid="x", place="scsi0:9"),
    ]
    assert disk_numbers(now, earlier) == [1, 0, 2, 3]
    assert disk_numbers(now, None) == [0, 1, 2, 3]


def test_copies_of_one_disk_are_told_apart_by_their_place() -> None:
    """A VHDX that was copied has the same Virtual Disk ID."""
    earlier = known((0, "a", "scsi0:0"), (1, "a", "scsi0:1"))
    now = [PlacedDisk(uuid="a", place="scsi0:1"), PlacedDisk(uuid="a", place="scsi0:0")]
    assert disk_numbers(now, earlier) == [1, 0]
