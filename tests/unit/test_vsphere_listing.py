"""What `vm list` says of a VM: why it, or a disk of it, cannot be protected."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.sources.vm_identity import VmIdentity
from appliance.sources.vsphere_listing import vm_identity, vm_obstacles
from vmware.inventory import Connection, DiskInfo, Power, Unreadable, VmInfo

DISK = DiskInfo(
    key=2000,
    label="Hard disk 1",
    controller_key=1000,
    controller_type="ParaVirtualSCSIController",
    controller_family="scsi",
    bus_number=0,
    unit_number=0,
    capacity_bytes=1 << 30,
    file_name="[ds] web/web.vmdk",
    backing_uuid="6000C29",
    disk_mode="persistent",
    sharing="sharingNone",
    backing_type="VirtualDiskFlatVer2BackingInfo",
    change_id="",
    rdm_compatibility="",
    shared_bus="noSharing",
    thin=True,
    key_id="",
    vdisk_id="",
    chain=("[ds] web/web.vmdk",),
)
INDEPENDENT = replace(DISK, key=2001, disk_mode="independent_persistent")
VM = VmInfo(
    moref="vm-1",
    name="web",
    instance_uuid="5000",
    bios_uuid="4200",
    power=Power.ON,
    connection=Connection.CONNECTED,
    folder_path="DC/vm",
    resource_pool_moref="",
    host_moref="host-1",
    host_name="esx1",
    cluster_name="",
    datacenter_moref="dc-1",
    datacenter_path="DC",
    cbt_enabled=True,
    cbt_supported=True,
    hardware_version=19,
    guest_id="debian11_64Guest",
    guest_full_name="Debian",
    tools_running=True,
    has_snapshots=False,
    question="",
    template=False,
    encrypted=False,
    fault_tolerant=False,
    consolidation_needed=False,
    vmx_file_name="[ds] web/web.vmx",
    disks=(DISK,),
    change_version="1",
    unreadable=(),
)


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
