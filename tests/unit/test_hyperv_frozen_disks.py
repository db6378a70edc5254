"""Which disks of a frozen Hyper-V VM are read, and what is said of the others."""

from __future__ import annotations

from appliance.sources.hyperv_frozen_disks import covered_disks, readable_disks
from hyperv.script_types import CheckpointDisk, Vm, VmDisk
from tests.support.hyperv_disk_values import disk_file


def vm_disk(location: int, *, pass_through: bool = False) -> VmDisk:
    return VmDisk.model_construct(
        attachment=f"Microsoft:VM\\C\\0\\{location}\\D",
        controller="scsi",
        controller_number=0,
        location=location,
        pass_through=pass_through,
        shared=False,
        format="vhdx",
        path=f"D:\\VM\\{location}.vhdx",
    )


def frozen(location: int, error: str = "") -> CheckpointDisk:
    file = disk_file(f"D:\\VM\\{location}.vhdx").model_copy(update={"error": error})
    return CheckpointDisk(
        attachment=f"Microsoft:CHECKPOINT\\C\\0\\{location}\\L",
        virtual_disk_id="",
        controller="scsi",
        controller_number=0,
        location=location,
        chain=[file],
    )


def test_every_disk_of_the_vm_is_read_or_said_to_be_skipped_once() -> None:
    """Also one that the host left out of the checkpoint, as it may."""
    disks = [vm_disk(0), vm_disk(1, pass_through=True), vm_disk(2), vm_disk(3)]
    vm = Vm.model_construct(disks=disks)
    covered, skipped = covered_disks(vm)
    assert [disk.location for disk in covered] == [0, 2, 3]
    readable, more = readable_disks([frozen(0), frozen(2, "damaged")], vm)
    assert [disk.location for disk in readable] == [0]
    assert [(disk.label, disk.reason.code) for disk in (*skipped, *more)] == [
        ("SCSI 0:1 1.vhdx", "disk.pass-through"),
        ("SCSI 0:2 2.vhdx", "disk.unreadable"),
        ("SCSI 0:3 3.vhdx", "disk.not-in-checkpoint"),
    ]
    assert all(disk.reason.warning for disk in more)
