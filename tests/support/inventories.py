"""VMs and disks as the inventory describes them, healthy unless a test says otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vmware.disks import DiskInfo
from vmware.inventory import Connection, Power, VmInfo

_DISK = DiskInfo(
    key=2000,
    label="Hard disk 1",
    controller_key=1000,
    controller_type="ParaVirtualSCSIController",
    controller_family="scsi",
    bus_number=0,
    unit_number=0,
    capacity_bytes=1 << 30,
    file_name="[ds] web/web.vmdk",
    backing_uuid="6000C29a-0000-0000-0000-000000000001",
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
_VM = VmInfo(
    moref="vm-1",
    name="web",
    instance_uuid="50220000-0000-0000-0000-000000000001",
    bios_uuid="42220000-0000-0000-0000-000000000001",
    power=Power.ON,
    connection=Connection.CONNECTED,
    folder_path="DC/vm",
    resource_pool_moref="resgroup-1",
    host_moref="host-1",
    host_name="esx-1",
    cluster_name="",
    datacenter_moref="datacenter-1",
    datacenter_path="DC",
    cbt_enabled=True,
    cbt_supported=True,
    hardware_version=19,
    guest_id="debian12_64Guest",
    guest_full_name="Debian GNU/Linux 12 (64-bit)",
    tools_running=True,
    has_snapshots=False,
    question="",
    template=False,
    encrypted=False,
    fault_tolerant=False,
    consolidation_needed=False,
    vmx_file_name="[ds] web/web.vmx",
    disks=(_DISK,),
    change_version="1",
    unreadable=(),
)


def a_disk(**fields: Any) -> DiskInfo:
    """A healthy disk, but for `fields`; `chain` follows `file_name` unless it is given."""
    if "file_name" in fields:
        fields.setdefault("chain", (fields["file_name"],))
    return replace(_DISK, **fields)


def a_vm(**fields: Any) -> VmInfo:
    """A healthy VM that runs, but for `fields`."""
    return replace(_VM, **fields)
