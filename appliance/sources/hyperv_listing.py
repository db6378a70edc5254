"""What `vm list` shows of a Hyper-V host: every VM, and why one cannot be protected.

Data path: one `list_vms` of `hyperv.inventory`, seen from the product's side.

Thread model: values; `list_vms` blocks and may be called from any thread.
"""

from __future__ import annotations

from appliance.base.reasons import Reason
from appliance.sources.hyperv_errors import hyperv_calls
from appliance.sources.hyperv_host import HypervHost
from appliance.sources.listed_vm import (
    OF_VERIFICATION,
    VERIFICATION_PREFIX,
    ChangeTracking,
    ListedDisk,
    ListedVm,
)
from appliance.sources.vm_identity import VmIdentity
from hyperv import inventory
from hyperv.inventory import Obstacle, Way
from hyperv.marker import Marker
from hyperv.script_types import HostFacts, Vm, VmDisk


def list_vms(host: HypervHost) -> list[ListedVm]:
    """Return all VMs, by name. Raises: as `hyperv_errors`."""
    with hyperv_calls(host.name):
        found = inventory.list_vms(host.session)
    return [_listed(host, vm) for vm in found]


def vm_identity(host: HypervHost, vm: Vm) -> VmIdentity:
    return VmIdentity(server_id=host.vm_server_id, moref=vm.id, instance_uuid=vm.id)


def vm_obstacles(facts: HostFacts, vm: Vm) -> tuple[Reason, ...]:
    """Why the VM cannot be backed up now, as far as the inventory tells; empty: it can."""
    if vm.name.startswith(VERIFICATION_PREFIX) and any(map(Marker.parse, vm.notes.split())):
        return (OF_VERIFICATION,)
    obstacle = inventory.vm_obstacle(facts, vm)
    if obstacle is not None:
        return (relayed(obstacle),)
    if not vm.disks:
        return (Reason("vm.no-disks", "the VM has no disks", "none", warning=False),)
    if all(inventory.disk_obstacle(disk) is not None for disk in vm.disks):
        return (
            Reason(
                "vm.no-coverable-disks",
                "none of its disks can be covered by a checkpoint",
                "see the reason at each disk, or back the VM up from within the guest",
            ),
        )
    return ()


def relayed(obstacle: Obstacle) -> Reason:
    return Reason.relayed(obstacle.code, obstacle.text, obstacle.next_step)


def disk_label(disk: VmDisk) -> str:
    """As people find it in Hyper-V Manager: `SCSI 0:1 data.vhdx`."""
    name = disk.path.rpartition("\\")[2] or "physical disk"
    return f"{disk.controller.upper()} {disk.controller_number}:{disk.location} {name}"


def _listed(host: HypervHost, vm: Vm) -> ListedVm:
    facts = host.facts
    is_tracked = inventory.way_to_freeze(facts, vm) is Way.RECOVERY_CHECKPOINT
    return ListedVm(
        host=host.name,
        moref=vm.id,
        name=vm.name,
        identity=vm_identity(host, vm),
        power=inventory.power(vm),
        folder=vm.folder,
        runs_on=facts.computer_name,
        change_tracking=ChangeTracking.ENABLED if is_tracked else ChangeTracking.UNSUPPORTED,
        disks=tuple(_disk(number, disk) for number, disk in enumerate(vm.disks)),
        obstacles=vm_obstacles(facts, vm),
    )


def _disk(number: int, disk: VmDisk) -> ListedDisk:
    obstacle = inventory.disk_obstacle(disk)
    return ListedDisk(
        key=number,
        label=disk_label(disk),
        size_bytes=disk.size_bytes,
        file_name=disk.path,
        obstacle=relayed(obstacle) if obstacle else None,
    )
