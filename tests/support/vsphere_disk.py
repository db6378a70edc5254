"""VMs and disks as the tests of transports want them: `inventories` on a datastore of theirs."""

from __future__ import annotations

from typing import Any

from tests.support.inventories import a_disk, a_vm
from vmware.inventory import DiskInfo, VmInfo
from vmware.transports.contract import DiskRequest

FLAT = "VirtualDiskFlatVer2BackingInfo"


def disk_info(capacity_bytes: int, **fields: Any) -> DiskInfo:
    fields.setdefault("file_name", "[store 1] web/web.vmdk")
    fields.setdefault("thin", False)
    return a_disk(capacity_bytes=capacity_bytes, **fields)


def vm_info(**fields: Any) -> VmInfo:
    ours = {
        "host_name": "esx1",
        "datacenter_path": "Site/DC",
        "vmx_file_name": "[store 1] web/web.vmx",
        "disks": (),
    }
    return a_vm(**(ours | fields))


def disk_request(session: Any, disk: DiskInfo, **fields: Any) -> DiskRequest:
    vm = fields.pop("vm", None) or vm_info(disks=(disk,))
    return DiskRequest(session=session, vm=vm, snapshot_moref="snapshot-1", disk=disk, **fields)
