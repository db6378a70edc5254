"""VMs and disks as `vmware.inventory` describes them, for tests that need only some fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vmware.inventory import Connection, DiskInfo, Power, VmInfo
from vmware.transports.contract import DiskRequest

FLAT = "VirtualDiskFlatVer2BackingInfo"


def disk_info(capacity_bytes: int, **fields: Any) -> DiskInfo:
    file_name = fields.pop("file_name", "[store 1] web/web.vmdk")
    disk = DiskInfo(
        key=2000,
        label="Hard disk 1",
        controller_key=1000,
        controller_type="ParaVirtualSCSIController",
        controller_family="scsi",
        bus_number=0,
        unit_number=0,
        capacity_bytes=capacity_bytes,
        file_name=file_name,
        backing_uuid="6000C290-0000-0000-0000-000000000001",
        disk_mode="persistent",
        sharing="sharingNone",
        backing_type=FLAT,
        change_id="",
        rdm_compatibility="",
        shared_bus="noSharing",
        thin=False,
        key_id="",
        vdisk_id="",
        chain=(file_name,),
    )
    return replace(disk, **fields)


def vm_info(**fields: Any) -> VmInfo:
    vm = VmInfo(
        moref="vm-1",
        name="web",
        instance_uuid="5029b4a0-0000-0000-0000-000000000001",
        bios_uuid="42290000-0000-0000-0000-000000000001",
        power=Power.ON,
        connection=Connection.CONNECTED,
        folder_path="DC/vm",
        resource_pool_moref="resgroup-1",
        host_moref="host-1",
        host_name="esx1",
        cluster_name="",
        datacenter_moref="datacenter-1",
        datacenter_path="Site/DC",
        cbt_enabled=True,
        cbt_supported=True,
        hardware_version=19,
        guest_id="debian11_64Guest",
        guest_full_name="Debian GNU/Linux 11 (64-bit)",
        tools_running=True,
        has_snapshots=False,
        question="",
        template=False,
        encrypted=False,
        fault_tolerant=False,
        consolidation_needed=False,
        vmx_file_name="[store 1] web/web.vmx",
        disks=(),
        change_version="1",
        unreadable=(),
    )
    return replace(vm, **fields)


def disk_request(session: Any, disk: DiskInfo, **fields: Any) -> DiskRequest:
    vm = fields.pop("vm", None) or vm_info(disks=(disk,))
    return DiskRequest(session=session, vm=vm, snapshot_moref="snapshot-1", disk=disk, **fields)
