"""How disks of a vSphere VM keep their numbers, and when a change list may be asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.sources.changes import is_mistrusted
from appliance.sources.frozen import DiskIdentity, KnownDisk, KnownState
from appliance.sources.vm_identity import VmIdentity
from appliance.sources.vsphere_disks import numbers
from tests.support.vsphere_disk import disk_info
from vmware.disks import DiskInfo

IDENTITY = VmIdentity(server_id="vc", moref="vm-1", instance_uuid="i-1")


def _now(key: int, unit: int, uuid: str = "") -> DiskInfo:
    return disk_info(1 << 20, key=key, unit_number=unit, backing_uuid=uuid)


def _known(*disks: KnownDisk) -> KnownState:
    return KnownState(run_id="r", instance=IDENTITY.key, disks=disks)


def _disk(number: int, uuid: str, place: str, change_id: str | None = "52/1") -> KnownDisk:
    return KnownDisk(
        number=number,
        label=f"Hard disk {number + 1}",
        size_bytes=1 << 20,
        change_id=change_id,
        identity=DiskIdentity(uuid=uuid, place=place, change_id="52/1"),
    )


def test_a_first_run_numbers_disks_by_their_place() -> None:
    """Whatever order the device list has."""
    disks = [_now(2002, 2), _now(2000, 0), _now(2001, 1)]
    assert numbers(disks, None) == {2000: 0, 2001: 1, 2002: 2}


def test_a_disk_keeps_its_number_when_others_come_and_go() -> None:
    """A new disk never takes the number of one that the parent point has."""
    known = _known(_disk(0, "a", "scsi0:0"), _disk(1, "b", "scsi0:1"))
    disks = [
        _now(2001, 1, "b"),
        _now(2002, 2, "new"),
    ]
    assert numbers(disks, known) == {2001: 1, 2002: 2}


def test_a_moved_disk_is_known_by_its_uuid_and_a_replaced_one_by_its_place() -> None:
    """Disks that swap places keep their numbers; a new file in an old place takes its number."""
    known = _known(_disk(0, "a", "scsi0:0"), _disk(1, "b", "scsi0:1"))
    swapped = [_now(2000, 0, "b"), _now(2001, 1, "a")]
    assert numbers(swapped, known) == {2000: 1, 2001: 0}
    replaced = [_now(2000, 0, "a"), _now(2001, 1, "c")]
    assert numbers(replaced, known) == {2000: 0, 2001: 1}


def test_two_disks_of_one_uuid_are_told_apart_by_their_places() -> None:
    """A cloned disk attached to the same VM shares the uuid."""
    known = _known(_disk(0, "a", "scsi0:0"), _disk(1, "a", "scsi0:1"))
    disks = [_now(2001, 1, "a"), _now(2000, 0, "a")]
    assert numbers(disks, known) == {2000: 0, 2001: 1}


@pytest.mark.parametrize(
    ("believed", "said", "mistrusted"),
    [("52/1", "52/1", False), (None, "52/1", True), (None, None, False)],
)
def test_a_change_id_that_was_said_but_not_believed_is_mistrusted(
    believed: str | None, said: str | None, mistrusted: bool
) -> None:
    """That is how a failed audit is remembered; no change id at all is another matter."""
    disk = _disk(0, "a", "scsi0:0", believed)
    assert disk.identity is not None
    disk = replace(disk, identity=replace(disk.identity, change_id=said))
    assert is_mistrusted(disk) is mistrusted
