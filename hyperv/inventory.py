"""What a Hyper-V host has: VMs with their disks, and why one cannot be backed up.

Data path: `list_vms` -> `Vm` values, judged here by pure functions; the appliance shows them and
decides. Facts about the host decide which way a VM is frozen (`way_to_freeze`).

Thread model: values and functions; calls block. Source: design notes sections 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from hyperv.errors import GoneError
from hyperv.host_session import TRIES, HostSession
from hyperv.patience import Patience
from hyperv.script_types import Cluster, HostFacts, Vm, VmDisk, Vms, VmState
from hyperv.windows_path import is_unc

RUNNING: Final = 2
OFF: Final = 3
SAVED: Final = 6
PAUSED: Final = 9
_CRITICAL = range(32783, 32795)
_REPLICAS = frozenset({2, 3, 4})  # ReplicationMode: replica, test replica, extended replica
_VSS_OK = frozenset({2, 3})
_RECOVERY_CHECKPOINT_VERSION = (6, 2)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why something cannot be backed up, and what would change that."""

    code: str
    text: str
    next_step: str


class Way(Enum):
    """How a VM is brought to a consistent point in time."""

    RECOVERY_CHECKPOINT = "recovery-checkpoint"
    SHADOW_COPY = "shadow-copy"


def host_facts(
    host: HostSession, patience: Patience | None = None, *, tries: int = TRIES
) -> HostFacts:
    """Raises HypervError."""
    return host.call("host_facts", {}, HostFacts, patience=patience, tries=tries)


def list_vms(host: HostSession, patience: Patience | None = None) -> list[Vm]:
    """Return all VMs of this host, by name. Raises HypervError."""
    found = host.call("list_vms", {"vm_id": ""}, Vms, patience=patience).vms
    return sorted(found, key=lambda vm: (vm.name.casefold(), vm.id))


def read_vm(host: HostSession, vm_id: str, patience: Patience | None = None) -> Vm:
    """Raises: GoneError: it is not on this host (any more); HypervError."""
    found = host.call("list_vms", {"vm_id": vm_id}, Vms, patience=patience).vms
    if len(found) != 1 or found[0].id != vm_id:
        raise GoneError(f"{host.address}: no VM {vm_id}")
    return found[0]


def vm_state(host: HostSession, vm_id: str, patience: Patience | None = None) -> VmState:
    """Raises: GoneError, HypervError."""
    return host.call("vm_state", {"vm_id": vm_id}, VmState, patience=patience)


def cluster(host: HostSession, patience: Patience | None = None) -> Cluster:
    """Return the cluster of this host; its name is empty if there is none. Raises HypervError."""
    return host.call("list_cluster", {}, Cluster, patience=patience)


def way_to_freeze(facts: HostFacts, vm: Vm) -> Way:
    if facts.reference_points and _version(vm.version) >= _RECOVERY_CHECKPOINT_VERSION:
        return Way.RECOVERY_CHECKPOINT
    return Way.SHADOW_COPY


def power(vm: Vm) -> str:
    """on, off, suspended or unknown."""
    known = {RUNNING: "on", OFF: "off", SAVED: "suspended", PAUSED: "suspended"}
    return known.get(vm.state, "unknown")


def vm_obstacle(facts: HostFacts, vm: Vm) -> Obstacle | None:
    """Why the VM cannot be backed up now, as far as the inventory tells; None: it can."""
    if vm.replication_mode in _REPLICAS:
        return Obstacle(
            "vm.replica",
            "the VM is a replica; its disks change whenever replication applies a log",
            "back up the primary VM instead",
        )
    if vm.state in _CRITICAL:
        return Obstacle(
            "vm.critical",
            f"the VM is in a critical state ({vm.state}): its storage does not answer",
            "bring the storage back, then try again",
        )
    if way_to_freeze(facts, vm) is Way.SHADOW_COPY:
        return _shadow_obstacle(facts, vm)
    return None


def _shadow_obstacle(facts: HostFacts, vm: Vm) -> Obstacle | None:
    if not facts.diskshadow:
        return Obstacle(
            "vm.no-shadow-copies",
            "this host has neither reference points for the VM nor diskshadow",
            "update the VM's configuration version (Update-VMVersion), or move it to a server",
        )
    if vm.state == RUNNING and vm.vss_status not in _VSS_OK:
        return Obstacle(
            "vm.would-be-paused",
            "without the VSS integration service a shadow copy would save, so pause, the VM",
            "turn the backup integration service on and install it in the guest",
        )
    return None


def disk_obstacle(disk: VmDisk) -> Obstacle | None:
    """Why the disk is left out of backups; None: it is not."""
    if disk.pass_through:
        return Obstacle(
            "disk.pass-through",
            "a physical disk of the host is passed through; no checkpoint covers it",
            "convert it to a VHDX, or back it up from within the guest",
        )
    if disk.shared or disk.format == "vhdset":
        return Obstacle(
            "disk.shared",
            "the disk is shared between VMs; a checkpoint of one VM does not cover it",
            "back it up from within the guest cluster",
        )
    if is_unc(disk.path):
        return Obstacle(
            "disk.on-file-server",
            "the disk lies on an SMB file server, which the appliance cannot read through the host",
            "move the disk to a volume of the host or cluster",
        )
    return None


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    return tuple(int(part) for part in parts if part.isdecimal())
