"""What `vm list` shows of a vSphere inventory: every VM, and why one cannot be protected.

Data path: one pass of the property collector (`vmware.inventory`), seen from the product's side.
VMs that cannot be looked into (their host is gone) are listed too, with the reason.

Thread model: values; `list_vms` blocks and may be called from any thread.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from appliance.base.reasons import Reason
from appliance.sources.listed_vm import (
    OF_VERIFICATION,
    VERIFICATION_PREFIX,
    ChangeTracking,
    ListedDisk,
    ListedVm,
)
from appliance.sources.vm_identity import VmIdentity
from appliance.sources.vsphere_errors import as_appliance_errors
from appliance.sources.vsphere_host import VsphereHost
from vmware.inventory import DiskInfo, Obstacle, Power, VmInfo, disk_obstacle, vm_obstacle
from vmware.inventory import list_vms as read_inventory

_OF_VERIFICATION = re.compile(r"\[holdfast-[0-9a-f]{8}\] ")  # they run from a session's datastore
_POWER = {
    Power.ON: "on",
    Power.OFF: "off",
    Power.SUSPENDED: "suspended",
    Power.UNKNOWN: "unknown",
}


def list_vms(host: VsphereHost) -> list[ListedVm]:
    """Return all VMs and templates, by name. Raises: as `vsphere_errors`."""
    with as_appliance_errors(host.name):
        found = read_inventory(host.session)
    identities = vm_identities(host.about.server_id, found)
    listed = [_listed(host.name, identities[vm.moref], vm) for vm in found]
    return sorted(listed, key=lambda vm: (vm.name.casefold(), vm.moref))


def vm_identity(server_id: str, vm: VmInfo) -> VmIdentity:
    return VmIdentity(server_id=server_id, moref=vm.moref, instance_uuid=vm.instance_uuid or None)


def vm_identities(server_id: str, vms: Sequence[VmInfo]) -> dict[str, VmIdentity]:
    """Who each VM of a whole inventory is, by moref.

    An ESXi host by itself lets a copied VM keep the original's instance uuid; as long as several
    VMs have one, it does not tell them apart, and each goes by its moref.
    """
    uses = Counter(vm.instance_uuid for vm in vms)
    return {
        vm.moref: vm_identity(
            server_id, vm if uses[vm.instance_uuid] == 1 else replace(vm, instance_uuid="")
        )
        for vm in vms
    }


def vm_obstacles(vm: VmInfo) -> tuple[Reason, ...]:
    """Why the VM cannot be backed up now, as far as the inventory tells; empty: it can."""
    if vm.template:
        return (
            Reason(
                "vm.template",
                "a template cannot have snapshots",
                "none: deploy a VM from it to back that up",
                warning=False,
            ),
        )
    if _OF_VERIFICATION.match(vm.vmx_file_name) and vm.name.startswith(VERIFICATION_PREFIX):
        return (OF_VERIFICATION,)
    obstacle = vm_obstacle(vm)
    if obstacle is not None:
        return (_relayed(obstacle),)
    if vm.unreadable:
        paths = ", ".join(lost.path for lost in vm.unreadable)
        return (
            Reason(
                "vm.unreadable",
                f"the server does not show {paths}",
                "grant System.Read on the VM (`holdfast host test` lists what is missing)",
            ),
        )
    if not vm.disks:
        return (Reason("vm.no-disks", "the VM has no disks", "none", warning=False),)
    if all(_disk_obstacle(disk, vm) is not None for disk in vm.disks):
        return (
            Reason(
                "vm.no-coverable-disks",
                "none of its disks can be covered by a snapshot",
                "see the reason at each disk, or back the VM up from within the guest",
            ),
        )
    return ()


def _listed(host: str, identity: VmIdentity, vm: VmInfo) -> ListedVm:
    tracking = ChangeTracking.ENABLED if vm.cbt_enabled else ChangeTracking.DISABLED
    return ListedVm(
        host=host,
        moref=vm.moref,
        name=vm.name,
        identity=identity,
        power=_POWER[vm.power],
        folder=vm.folder_path,
        runs_on=vm.host_name,
        change_tracking=tracking if vm.cbt_supported else ChangeTracking.UNSUPPORTED,
        disks=tuple(_disk(disk, vm) for disk in vm.disks),
        obstacles=vm_obstacles(vm),
    )


def _disk(disk: DiskInfo, vm: VmInfo) -> ListedDisk:
    obstacle = _disk_obstacle(disk, vm)
    return ListedDisk(
        key=disk.key,
        label=disk.label,
        size_bytes=disk.capacity_bytes,
        file_name=disk.file_name,
        obstacle=_relayed(obstacle) if obstacle else None,
    )


def _disk_obstacle(disk: DiskInfo, vm: VmInfo) -> Obstacle | None:
    return disk_obstacle(disk, vm_off=vm.power is Power.OFF)


def _relayed(obstacle: Obstacle) -> Reason:
    return Reason.relayed(obstacle.code, obstacle.text, obstacle.next_step)
