"""A VM made from a captured configuration, with disks that the host has already.

    find_marked -> new_vm -> attach (per disk) -> set_power … import_disk, unmark, or remove

What is made carries the marker in its notes until `unmark`; only what carries it is removed. A step
whose end is not known is looked at before it is done again.
Thread model: functions; they block. Source: scripts `new_vm`, `attach_disk`, `set_power`,
`set_notes`, `move_storage`, `import_disk`, `remove_vm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from hyperv.captured_vm import CapturedVm
from hyperv.errors import HypervError
from hyperv.host_session import HostSession
from hyperv.inventory import list_vms, read_vm
from hyperv.marker import without_markers
from hyperv.patience import Patience
from hyperv.script_types import Answer, Vm
from hyperv.vm_configuration import memory_parameters, secure_boot_parameters

MOVE_DEADLINE_S = 24 * 3600.0
_POWER_DEADLINE_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAdapter:
    name: str
    switch_name: str  # empty: not connected
    mac: str  # empty: of the host's choice
    legacy: bool
    vlan_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDisk:
    path: str
    controller: str
    controller_number: int
    location: int
    boot_first: bool
    disk_number: int = -1  # of a disk of the host, for pass-through; `path` is empty then

    @property
    def place(self) -> str:
        return f"{self.controller}{self.controller_number}:{self.location}"


class _Switch(Answer):
    id: str
    name: str
    type: str


class _Switches(Answer):
    switches: list[_Switch] = Field(max_length=4096)


class _Made(Answer):
    id: str


class _Attached(Answer):
    attachment: str


class _Power(Answer):
    state: int


class _Moved(Answer):
    folder: str
    disk_paths: list[str]


class _Imported(Answer):
    copied: bool


class _Removed(Answer):
    found: bool
    disk_paths: list[str]


def list_switches(host: HostSession, patience: Patience) -> list[str]:
    """The names of the host's virtual switches. Raises HypervError."""
    found = host.call("list_switches", {}, _Switches, patience=patience)
    return [switch.name for switch in found.switches]


def find_marked(host: HostSession, marker: str, patience: Patience) -> Vm | None:
    """The VM that carries the marker. Raises HypervError."""
    return next((vm for vm in list_vms(host, patience) if marker in vm.notes), None)


def new_vm(
    host: HostSession,
    captured: CapturedVm,
    *,
    marker: str,
    name: str,
    folder: str,
    adapters: Sequence[NewAdapter],
    keep_identity: bool,
    patience: Patience,
) -> str:
    """Make it, without disks and powered off; return its id. Raises HypervError."""
    scsi = sum(each.type == "scsi" for each in captured.controllers)
    parameters = {
        "marker": marker,
        "name": name,
        "folder": folder,
        "generation": captured.generation,
        "version": "",
        "processors": captured.processor.count,
        "nested": captured.processor.nested,
        "memory": memory_parameters(captured),
        **secure_boot_parameters(captured),
        "tpm": captured.security.tpm,
        "scsi_controllers": min(max(scsi, 1), 4),
        "adapters": [
            {
                "name": adapter.name,
                "switch_name": adapter.switch_name,
                "mac": adapter.mac,
                "legacy": adapter.legacy,
                "vlan_id": adapter.vlan_id,
            }
            for adapter in adapters
        ],
        "identity": captured.identity.model_dump() if keep_identity else None,
    }
    return host.call("new_vm", parameters, _Made, patience=patience).id


def attach(
    host: HostSession, vm_id: str, marker: str, disks: Sequence[NewDisk], patience: Patience
) -> None:
    """Attach what is not attached yet. Raises HypervError."""
    taken = {disk.place for disk in read_vm(host, vm_id, patience).disks}
    for disk in disks:
        if disk.place in taken:
            continue
        parameters = {
            "vm_id": vm_id,
            "marker": marker,
            "controller": disk.controller,
            "controller_number": disk.controller_number,
            "location": disk.location,
            "path": disk.path,
            "disk_number": disk.disk_number,
            "boot_first": disk.boot_first,
        }
        host.call("attach_disk", parameters, _Attached, patience=patience)


def set_power(
    host: HostSession,
    vm_id: str,
    power: str,
    patience: Patience,
    *,
    deadline_s: float = _POWER_DEADLINE_S,
) -> None:
    """`power`: on, off (at once) or shutdown. In the wanted state already: nothing happens.

    Raises: DeadlineError: it may still go on; HypervError.
    """
    host.call(
        "set_power",
        {"vm_id": vm_id, "power": power},
        _Power,
        deadline_s=deadline_s,
        patience=patience,
    )


def move(host: HostSession, vm_id: str, folder: str, patience: Patience) -> None:
    """Move all its files to a folder, while it runs. Raises HypervError."""
    host.call(
        "move_storage",
        {"vm_id": vm_id, "folder": folder},
        _Moved,
        deadline_s=MOVE_DEADLINE_S,
        patience=patience,
    )


def import_disk(
    host: HostSession,
    vm_id: str,
    marker: str,
    disk: NewDisk,
    *,
    serial: str,
    patience: Patience,
) -> None:
    """Copy what the VM, which is off, has as pass-through into the file `disk.path`, and attach
    that in its place. A file of that name is made anew, unless it is attached.

    Raises HypervError: the VM has what it had.
    """
    host.call(
        "import_disk",
        {
            "vm_id": vm_id,
            "marker": marker,
            "controller": disk.controller,
            "controller_number": disk.controller_number,
            "location": disk.location,
            "serial": serial,
            "path": disk.path,
        },
        _Imported,
        deadline_s=MOVE_DEADLINE_S,
        patience=patience,
    )


def unmark(host: HostSession, vm: Vm, marker: str, notes: str, patience: Patience) -> None:
    """Make it a VM like any other, with the notes of the original. Raises HypervError.

    Where the original was itself a VM of ours as it was captured, its mark does not come back: this
    one is nobody's to find or to remove.
    """
    if marker not in vm.notes:
        return
    parameters = {
        "vm_id": vm.id,
        "marker": marker,
        "name": vm.name,
        "notes": without_markers(notes),
    }
    try:
        host.call("set_notes", parameters, _Made, patience=patience)
    except HypervError:
        if marker in read_vm(host, vm.id, patience).notes:  # else only the answer was lost
            raise


def remove(host: HostSession, vm_id: str, marker: str, patience: Patience) -> None:
    """Stop and remove it; its disk files stay. Raises HypervError."""
    parameters = {"vm_id": vm_id, "marker": marker}
    host.call("remove_vm", parameters, _Removed, patience=patience)
