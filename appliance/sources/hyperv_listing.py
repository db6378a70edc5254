"""What `vm list` shows of a Hyper-V host: every VM, and why one cannot be protected.

Data path: the VMs of all its nodes (`hyperv_nodes`), seen from the product's side.

Thread model: values; `list_vms` blocks and may be called from any thread.
"""

from __future__ import annotations

from appliance.base.reasons import Reason
from appliance.sources.hyperv_host import HypervHost
from appliance.sources.hyperv_nodes import HypervNodes, UnseenVm
from appliance.sources.listed_vm import (
    OF_VERIFICATION,
    VERIFICATION_PREFIX,
    ChangeTracking,
    ListedDisk,
    ListedVm,
)
from appliance.sources.vm_identity import VmIdentity
from hyperv import inventory
from hyperv.errors import FileError
from hyperv.inventory import Obstacle, Way
from hyperv.marker import Marker
from hyperv.script_types import HostFacts, Vm, VmDisk
from hyperv.shadows import volume_of


def list_vms(host: HypervHost) -> list[ListedVm]:
    """Return all VMs, by name. Raises: as `hyperv_errors`."""
    nodes = HypervNodes(host)
    try:
        survey = nodes.survey()
    finally:
        nodes.close_others()
    return [
        *(_listed(each.host, each.vm) for each in survey.found),
        *(_listed_unseen(host, each) for each in survey.unseen),
    ]


def vm_identity(host: HypervHost, vm_id: str) -> VmIdentity:
    return VmIdentity(server_id=host.vm_server_id, moref=vm_id, instance_uuid=vm_id)


def volume_label(host: str, path: str) -> str:
    """What limits how many read from a volume: the host's name and the volume's; "": nowhere."""
    try:
        return f"{host} {volume_of(path)}".rstrip("\\")
    except FileError:
        return ""


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
        identity=vm_identity(host, vm.id),
        power=inventory.power(vm),
        folder=vm.folder,
        runs_on=facts.computer_name,
        change_tracking=ChangeTracking.ENABLED if is_tracked else ChangeTracking.UNSUPPORTED,
        disks=tuple(_disk(number, disk) for number, disk in enumerate(vm.disks)),
        obstacles=vm_obstacles(facts, vm),
    )


def _listed_unseen(host: HypervHost, unseen: UnseenVm) -> ListedVm:
    return ListedVm(
        host=host.name,
        moref=unseen.vm.vm_id,
        name=unseen.vm.name,
        identity=vm_identity(host, unseen.vm.vm_id),
        power="unknown",
        folder="",
        runs_on=unseen.vm.owner,
        change_tracking=ChangeTracking.UNSUPPORTED,
        disks=(),
        obstacles=(unseen.reason,),
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
