"""What `vm list` says of a VM: why it, or a disk of it, cannot be protected."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.sources.vm_identity import VmIdentity
from appliance.sources.vsphere_listing import vm_identity, vm_obstacles
from tests.support.inventories import a_disk, a_vm
from vmware.inventory import Connection, Power, Unreadable, VmInfo

DISK = a_disk()
INDEPENDENT = replace(DISK, key=2001, disk_mode="independent_persistent")
VM = a_vm(instance_uuid="5000", disks=(DISK,))
VERIFIED = replace(VM, name="holdfast-verify-0a1b2c3d")


@pytest.mark.parametrize(
    ("vm", "codes"),
    [
        (VM, []),
        (replace(VM, disks=(DISK, INDEPENDENT)), []),
        (replace(VM, disks=(INDEPENDENT,)), ["vm.no-coverable-disks"]),
        (replace(VM, disks=()), ["vm.no-disks"]),
        (replace(VM, template=True, power=Power.OFF), ["vm.template"]),
        (replace(VM, connection=Connection.ORPHANED, disks=()), ["vm.unavailable"]),
        (replace(VM, fault_tolerant=True), ["vm.fault-tolerant"]),
        (replace(VM, question="which?"), ["vm.question"]),
        (replace(VERIFIED, vmx_file_name="[holdfast-0a1b2c3d] v/v.vmx"), ["vm.of-verification"]),
        (replace(VERIFIED, vmx_file_name="[ds1] v/v.vmx"), []),
        (
            replace(VM, disks=(), unreadable=(Unreadable(path="config", fault="NoPermission"),)),
            ["vm.unreadable"],
        ),
    ],
)
def test_a_vm_that_cannot_be_backed_up_says_why(vm: VmInfo, codes: list[str]) -> None:
    """One disk that cannot be covered does not keep the others from being backed up."""
    assert [reason.code for reason in vm_obstacles(vm)] == codes


def test_a_vm_whose_configuration_is_gone_is_known_by_its_moref() -> None:
    """vSphere has no instance uuid for a VM that it cannot look into."""
    identity = vm_identity("vc", replace(VM, instance_uuid=""))
    assert identity == VmIdentity(server_id="vc", moref="vm-1", instance_uuid=None)
    assert vm_identity("vc", VM).key == "vc/5000"
