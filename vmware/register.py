"""A VM made from files that lie on a datastore: registered, marked, and made fit to start.

    register_vm -> prepare_start (networks, swap, tracking) -> power.power_on

A registered VM is found again by the path of its .vmx, so registering is idempotent and a lost
reply is settled by looking. The mark is an advanced setting in the .vmx, which goes with the VM
wherever its files go: `is_marked` is asked before anything is done to a VM that may be ours.
Thread model: functions; they block.
Source: design notes section 5; vSphere API reference, Folder.RegisterVM_Task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyVmomi import vim

from vmware.captured_vm import CapturedVm
from vmware.datastore_path import DatastorePath
from vmware.errors import (
    ObjectGoneError,
    ProtocolError,
    RefusedError,
    SessionLostError,
    UnreachableError,
    VsphereError,
)
from vmware.findings import Finding, Weight
from vmware.marker import escape_name
from vmware.network_choice import ChosenNetwork
from vmware.new_vm import reconfigure_vm
from vmware.patience import Patience
from vmware.properties import fetch_one
from vmware.running_tasks import GRACE_S, TaskKind, settle_on
from vmware.session import Session
from vmware.tasks import wait_for_task
from vmware.vm_spec import add_optional
from vmware.vm_spec_devices import backing_of, connection_of, nics_that_can_be_made

REGISTER_DEADLINE_S = 300.0
MARK_KEY = "holdfast.session"


def register_vm(
    session: Session,
    vmx: DatastorePath,
    *,
    name: str,
    folder_moref: str,
    pool_moref: str,
    host_moref: str,
    datacenter_moref: str,
    patience: Patience | None = None,
) -> str:
    """The moref of the VM of this .vmx; one that is registered already is returned.

    Raises: VsphereError.
    """
    found = find_registered(session, vmx, datacenter_moref)
    if found is not None:
        return found
    patience = patience or Patience()
    what = f"register {vmx}"
    folder = session.object(vim.Folder, folder_moref)
    pool = session.object(vim.ResourcePool, pool_moref)
    host = session.object(vim.HostSystem, host_moref)
    try:
        spelled = escape_name(name)
        task = session.call(what, folder.RegisterVM_Task, str(vmx), spelled, False, pool, host)
        made = wait_for_task(
            session,
            task,
            what=what,
            deadline_s=REGISTER_DEADLINE_S,
            cancelled=patience.cancelled,
        )
    except VsphereError as error:
        calm = patience.unstoppable()
        if isinstance(error, UnreachableError | SessionLostError):
            calm.pause(GRACE_S)
        settle_registration(session, folder_moref, calm)
        found = find_registered(session, vmx, datacenter_moref)
        if found is None:
            raise
        return found
    return str(made._GetMoId())


def find_registered(session: Session, vmx: DatastorePath, datacenter_moref: str) -> str | None:
    """The moref of the VM of this .vmx. Raises VsphereError."""
    index = session.content.searchIndex
    datacenter = session.object(vim.Datacenter, datacenter_moref)
    found = session.read(f"look for {vmx}", index.FindByDatastorePath, datacenter, str(vmx))
    return None if found is None else str(found._GetMoId())


def is_marked(session: Session, vm_moref: str, mark: str) -> bool:
    """Whether the VM carries exactly this mark; a VM that is gone does not. Raises VsphereError."""
    vm = session.object(vim.VirtualMachine, vm_moref)
    try:
        read = fetch_one(session, f"look at {vm_moref}", vm, ("config.extraConfig",)).values
    except ObjectGoneError:
        return False
    return any(
        option.key == MARK_KEY and option.value == mark
        for option in read.get("config.extraConfig") or ()
    )


def prepare_start(
    session: Session, vm_moref: str, captured: CapturedVm, networks: Mapping[int, ChosenNetwork]
) -> tuple[Finding, ...]:
    """Connect the adapters, keep swap off the datastore, drop foreign media.

    The VM is off; its .vmx starts no change tracking. Idempotent.

    Raises: ProtocolError: the host made other adapters of the .vmx than were written; VsphereError.
    """
    vm = session.object(vim.VirtualMachine, vm_moref)
    what = f"prepare {vm_moref}"
    path = "config.hardware.device"
    devices: Sequence[Any] = fetch_one(session, what, vm, (path,)).values.get(path) or ()
    spec = vim.vm.ConfigSpec(
        swapPlacement="hostLocal",
        annotation=captured.annotation,
        deviceChange=[*_network_changes(devices, captured, networks), *_media_changes(devices)],
    )
    if captured.guest_id:
        spec.guestId = captured.guest_id
    add_optional(spec, captured)
    spec.firmware = None  # stands in the .vmx
    spec.swapPlacement = "hostLocal"
    findings = _without_reservations(spec)
    reconfigure_vm(session, vm_moref, spec, what=what)
    return findings


def settle_moved(session: Session, vm_moref: str, captured: CapturedVm) -> None:
    """The VM has left: take off the mark, and what was only for its time on the export.

    Idempotent. Raises VsphereError.
    """
    placement = captured.swap_placement
    spec = vim.vm.ConfigSpec(
        swapPlacement=placement if placement in ("vmDirectory", "hostLocal") else "inherit",
        extraConfig=[
            vim.option.OptionValue(key=key, value="") for key in (MARK_KEY, "uuid.action")
        ],
    )
    reconfigure_vm(session, vm_moref, spec, what=f"finish {vm_moref}")


def settle_registration(session: Session, folder_moref: str, patience: Patience) -> None:
    """Wait for registrations in this folder that killed or cancelled processes had asked for.

    Raises: DeadlineError, VsphereError.
    """
    folder = session.object(vim.Folder, folder_moref)
    settle_on(session, folder, TaskKind.REGISTER_VM, patience, deadline_s=REGISTER_DEADLINE_S)


def _network_changes(
    devices: Iterable[Any], captured: CapturedVm, networks: Mapping[int, ChosenNetwork]
) -> list[Any]:
    cards = [one for one in devices if isinstance(one, vim.vm.device.VirtualEthernetCard)]
    wanted = nics_that_can_be_made(captured.nics)
    if len(cards) != len(wanted):
        raise ProtocolError(f"{len(wanted)} adapters were written, the host shows {len(cards)}")
    changes = []
    for card, nic in zip(sorted(cards, key=lambda one: one.key), wanted, strict=True):
        chosen = networks[nic.key]
        card.backing = backing_of(chosen)
        card.connectable = connection_of(chosen)
        changes.append(vim.vm.device.VirtualDeviceSpec(operation="edit", device=card))
    return changes


def _media_changes(devices: Iterable[Any]) -> list[Any]:
    """Drives that the host added by itself must not wait for files or devices of its own."""
    foreign = (vim.vm.device.VirtualCdrom, vim.vm.device.VirtualFloppy)
    return [
        vim.vm.device.VirtualDeviceSpec(operation="remove", device=one)
        for one in devices
        if isinstance(one, foreign)
    ]


def _without_reservations(spec: Any) -> tuple[Finding, ...]:
    """A host that is short of memory must not refuse to start what it could run."""
    found = []
    for share, what in ((spec.cpuAllocation, "processor"), (spec.memoryAllocation, "memory")):
        if share is not None and share.reservation:
            share.reservation = 0
            found.append(
                Finding(
                    "instant.reservation",
                    f"the VM's {what} reservation is not set",
                    "set it again once the VM is where it shall stay",
                    Weight.NOTE,
                )
            )
    return tuple(found)


def refuse_strangers(session: Session, vm_moref: str, mark: str) -> None:
    """Raises RefusedError: the VM does not carry the mark; nothing may be done to it."""
    if not is_marked(session, vm_moref, mark):
        raise RefusedError(f"{vm_moref} does not carry the mark of this session")
