"""Snapshots of a virtual machine: create, remove with its children, revert.

A snapshot freezes every dependent disk at one instant (one QEMU transaction, also for the change
bitmaps) and puts an empty delta on each; independent disks stay as they are. Removing one leaves
files that nobody names any more, which `vm_consolidation` merges; when a file is locked by somebody
else, or a switch says so, they stay and the VM needs consolidation.

Memory is never part of a snapshot here. Source: design notes on vSphere, section 3.
Crash guarantee: the lab does not outlive its hosts' VMs; files always form readable chains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lab.esx.areas import Area
from lab.esx.change_tracking import new_tracking
from lab.esx.delta_files import make_delta, next_delta_path, remove_disk_files
from lab.esx.disk_chain import SNAPSHOT_LEVELS_MAX, open_chain
from lab.esx.errors import FileLockedError, HostError
from lab.esx.file_locks import LockMode
from lab.esx.guest import QuiesceError
from lab.esx.hardware import Disk, VmConfig
from lab.esx.open_disk import OpenDisk
from lab.esx.site import Work
from lab.esx.snapshot_list import vmsn_name
from lab.esx.virtual_machine import VirtualMachine
from lab.esx.vm_consolidation import clean_up
from lab.esx.vm_power import stop_machine
from lab.esx.vm_state import CancelledError, NotSupportedError, Snapshot
from lab.esx.vmdk import DiskFile
from lab.faults import FaultName, FaultSwitches

NAME_CHARS_MAX = 80


class SnapshotError(HostError):
    """A snapshot could not be taken."""

    fault = "SnapshotFault"


class TooManyLevelsError(SnapshotError):
    fault = "TooManySnapshotLevels"


class IncompatibleDeviceError(SnapshotError):
    fault = "SnapshotIncompatibleDeviceInVm"


class MemoryOnIndependentError(SnapshotError):
    fault = "MemorySnapshotOnIndependentDisk"


class ApplicationQuiesceError(QuiesceError):
    fault = "ApplicationQuiesceFault"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRequest:
    name: str
    description: str = ""
    memory: bool = False
    quiesce: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frozen:
    """One disk of a snapshot in the making."""

    disk: Disk
    delta: DiskFile


@dataclass(frozen=True, slots=True, kw_only=True)
class _Switched:
    """A tracked disk whose bitmap changed in the transaction; `old` None: it was not tracked."""

    key: int
    disk: OpenDisk
    new: str
    old: str | None


def create_snapshot(vm: VirtualMachine, request: SnapshotRequest, work: Work) -> Snapshot:
    """Return the new current snapshot; nothing is changed when it fails (but see the switches)."""
    with vm.operation("CreateSnapshot"):
        _refuse(vm, request)
        _wait_when_stuck(vm, FaultName.SNAPSHOT_STUCK, work)
        faults, fields = vm.site.faults, {"vm": vm.vm_id, "vm_name": vm.config.name}
        if faults.take(FaultName.SNAPSHOT_FAILURE, **fields):
            raise SnapshotError("the snapshot could not be taken")
        if request.quiesce and faults.take(FaultName.QUIESCE_FAILURE, **fields):
            raise ApplicationQuiesceError("an application in the guest did not quiesce")
        if request.quiesce and faults.take(FaultName.QUIESCE_HALF_MADE, **fields):
            _take(vm, request, quiesce=False)
            raise ApplicationQuiesceError("an application in the guest did not quiesce")
        # Without running tools the wish is ignored, as on a real host.
        quiesce = request.quiesce and vm.on and vm.guest_info.tools_running
        return _take(vm, request, quiesce=quiesce)


def remove_snapshot(
    vm: VirtualMachine, snapshot_id: int, *, children: bool, consolidate: bool, work: Work
) -> None:
    """Raises FileLockedError only for the switch: real locks leave files to consolidate."""
    with vm.operation("RemoveSnapshot"):
        vm.snapshot(snapshot_id)
        _wait_when_stuck(vm, FaultName.REMOVE_STUCK, work)
        fields = {"vm": vm.vm_id, "vm_name": vm.config.name}
        if vm.site.faults.take(FaultName.REMOVE_FAILURE, **fields):
            raise FileLockedError("a file of the snapshot is locked", file=str(vm.config.folder))
        going = _with_children(vm, snapshot_id) if children else [snapshot_id]
        for number in reversed(going):
            _forget(vm, vm.snapshot(number))
        vm.save_snapshots()
        vm.changed()
        _forget_deltas(vm)
        if not consolidate or vm.site.faults.take(FaultName.CONSOLIDATION_NEEDED, **fields):
            vm.consolidation_needed = True
        else:
            clean_up(vm, work)
        vm.start_tracking_where_due()


def revert_to_snapshot(vm: VirtualMachine, snapshot_id: int, work: Work) -> None:
    """Back to the frozen disks and configuration, powered off; what came after is lost."""
    with vm.operation("RevertToSnapshot"):
        snapshot = vm.snapshot(snapshot_id)
        if vm.on:
            stop_machine(vm)
        datastores = vm.site.datastores
        config = snapshot.config
        left = {disk.path for disk in vm.config.disks}
        for disk in config.disks:
            if disk.mode.independent:
                continue
            frozen = open_chain(datastores, disk.path)
            delta = make_delta(datastores, next_delta_path(datastores, disk.path), frozen.leaf)
            config = config.with_disk(replace(disk, path=delta.path, change_id=""))
        vm.orphan_files |= left - {disk.path for disk in config.disks}
        vm.tracking = {}
        vm.save(replace(config, name=vm.config.name))
        vm.current_snapshot = snapshot_id
        vm.save_snapshots()
        vm.reload_tracking()
        for disk in vm.config.disks:
            vm.reset_tracking(disk)
        clean_up(vm, work)


def rename_snapshot(
    vm: VirtualMachine, snapshot_id: int, name: str | None, description: str | None
) -> None:
    """None leaves it as it is."""
    with vm.operation("RenameSnapshot"):
        old = vm.snapshot(snapshot_id)
        renamed = replace(
            old,
            name=old.name if name is None else name,
            description=old.description if description is None else description,
        )
        vm.snapshots = {**vm.snapshots, snapshot_id: renamed}
        vm.save_snapshots()


def _refuse(vm: VirtualMachine, request: SnapshotRequest) -> None:
    config = vm.config
    vm.refuse_if_appliance()
    if not vm.on:
        vm.reload_tracking()  # somebody may have written to the disks since
    if not request.name or len(request.name) > NAME_CHARS_MAX:
        raise SnapshotError(f"a snapshot's name has 1 to {NAME_CHARS_MAX} characters")
    if config.template:
        raise NotSupportedError("a template cannot have snapshots")
    if request.memory and vm.on:
        if any(disk.mode.independent for disk in config.disks):
            raise MemoryOnIndependentError("a disk is independent")
        raise NotSupportedError("this host takes snapshots without memory only")
    for disk in config.disks:
        if disk.mode.independent:
            continue
        controller = config.controller(disk.controller_key)
        shared_bus = controller is not None and controller.shared_bus != "noSharing"
        if (shared_bus and vm.on) or disk.sharing == "sharingMultiWriter":
            raise IncompatibleDeviceError(f"{disk.label} is shared")
        if len(vm.chain(disk).parents) >= SNAPSHOT_LEVELS_MAX:
            raise TooManyLevelsError(f"{disk.label} has {SNAPSHOT_LEVELS_MAX} levels already")


def _take(vm: VirtualMachine, request: SnapshotRequest, *, quiesce: bool) -> Snapshot:
    frozen: list[_Frozen] = []
    before = vm.config
    try:
        for disk in before.disks:
            if not disk.mode.independent:
                path = next_delta_path(vm.site.datastores, disk.path)
                delta = make_delta(vm.site.datastores, path, vm.chain(disk).leaf)
                frozen.append(_Frozen(disk=disk, delta=delta))
        switched = _freeze_disks(vm, frozen, quiesce=quiesce) if vm.machine else []
    except BaseException:
        for one in frozen:
            remove_disk_files(vm.site.datastores, one.delta)
        raise
    # The deltas are in use from here on.
    change_ids = _account(vm, frozen, _read_bitmaps(vm, switched))
    snapshot = Snapshot(
        id=vm.take_snapshot_id(),
        name=request.name,
        description=request.description,
        created_at=vm.site.now(),
        power=vm.power,
        quiesced=quiesce,
        config=_frozen_config(before, change_ids),
        parent=vm.current_snapshot,
    )
    vm.start_tracking_where_due()  # the stun; this very snapshot does not spoil tracking
    _record(vm, snapshot)
    vm.write_log(f"SnapshotVMX: created snapshot {snapshot.id}")
    return snapshot


def _frozen_config(config: VmConfig, change_ids: dict[int, str]) -> VmConfig:
    return replace(
        config,
        disks=tuple(replace(disk, change_id=change_ids.get(disk.key, "")) for disk in config.disks),
    )


def _freeze_disks(vm: VirtualMachine, frozen: list[_Frozen], *, quiesce: bool) -> list[_Switched]:
    """Put the deltas on top of a running machine's disks, its file systems frozen or not."""
    if not quiesce:
        return _transaction(vm, frozen)
    guest = vm.guest
    assert guest is not None
    guest.freeze()
    try:
        return _transaction(vm, frozen)
    finally:
        try:
            guest.thaw()
        except QuiesceError as error:  # the disks are frozen as they should be
            vm.write_log(f"ToolsBackup: {error}")


def _transaction(vm: VirtualMachine, frozen: list[_Frozen]) -> list[_Switched]:
    """Freeze all disks and change their bitmaps at one instant."""
    machine = vm.machine
    assert machine is not None
    actions = []
    switched: list[_Switched] = []
    prepared: list[tuple[OpenDisk, DiskFile]] = []
    try:
        for one in frozen:
            open_disk = machine.disks[one.disk.key]
            prepared.append((open_disk, one.delta))
            actions += open_disk.snapshot_actions(machine.qmp, one.delta)
            if open_disk.tracked:
                more, new, old = open_disk.switch_bitmap_actions()
                actions += more
                switched.append(_Switched(key=one.disk.key, disk=open_disk, new=new, old=old))
        if actions:
            machine.qmp.execute("transaction", actions=actions)
    except HostError as error:
        for open_disk, delta in prepared:
            open_disk.snapshot_failed(machine.qmp, delta)
        raise SnapshotError(f"the disks could not be frozen: {error}") from error
    for open_disk, delta in prepared:
        open_disk.snapshot_taken(delta)
    return switched


def _read_bitmaps(vm: VirtualMachine, switched: list[_Switched]) -> dict[int, list[Area] | None]:
    """What the old bitmaps held by disk; None for one that cannot be read."""
    machine = vm.machine
    written: dict[int, list[Area] | None] = {}
    for one in switched:
        assert machine is not None
        try:
            written[one.key] = one.disk.bitmap_switched(
                machine.qmp, one.new, one.old, machine.socket_path
            )
        except HostError as error:
            vm.write_log(f"DISKLIB-CTK   : {error}")
            written[one.key] = None
    return written


def _account(
    vm: VirtualMachine, frozen: list[_Frozen], written: dict[int, list[Area] | None]
) -> dict[int, str]:
    """The deltas are the disks now: configuration, locks, tracking. Return the change ids."""
    machine = vm.machine
    config = vm.config
    for one in frozen:
        config = config.with_disk(replace(one.disk, path=one.delta.path))
    if machine is not None:
        for one in frozen:
            chain = machine.disks[one.disk.key].chain
            vm.site.locks.acquire(vm.vm_id, chain.locks(LockMode.EXCLUSIVE))
    vm.save(config)
    ids = {}
    for one in frozen:
        key = one.disk.key
        tracking, areas = vm.tracking.get(key), written.get(key, [])
        if tracking is None or (machine is not None and key not in written):
            continue
        if areas is None:  # what was written is not known: older ids are void
            areas, tracking = [], new_tracking(one.disk.capacity_bytes).opened()
        tracking = tracking.closed_epoch(areas)
        disk = config.disk(key)
        assert disk is not None
        vm.store_tracking(disk, tracking)
        ids[key] = _shown_change_id(vm, key, str(tracking.change_id))
    return {key: shown for key, shown in ids.items() if shown}


def _shown_change_id(vm: VirtualMachine, key: int, change_id: str) -> str:
    fields: dict[str, str | int] = {"vm": vm.vm_id, "vm_name": vm.config.name, "disk": key}
    faults: FaultSwitches = vm.site.faults
    if faults.take(FaultName.CBT_NO_CHANGE_ID, **fields):
        return ""
    if faults.take(FaultName.CBT_FOREIGN_CHANGE_ID, **fields):
        head, slash, number = change_id.rpartition("/")
        return f"52 00{head[5:]}{slash}{number}" if head[3:5] != "00" else f"52 ff{head[5:]}/1"
    return change_id


def _record(vm: VirtualMachine, snapshot: Snapshot) -> None:
    vm.save_frozen(snapshot)
    vm.snapshots = {**vm.snapshots, snapshot.id: snapshot}
    vm.current_snapshot = snapshot.id
    vm.save_snapshots()


def _forget(vm: VirtualMachine, snapshot: Snapshot) -> None:
    """Take it out of the tree; its children become its parent's."""
    vm.orphan_files |= {disk.path for disk in snapshot.config.disks if not disk.mode.independent}
    vm.snapshots = {
        number: replace(one, parent=snapshot.parent) if one.parent == snapshot.id else one
        for number, one in vm.snapshots.items()
        if number != snapshot.id
    }
    if vm.current_snapshot == snapshot.id:
        vm.current_snapshot = snapshot.parent
    name = vmsn_name(snapshot.config, snapshot.id)
    vm.site.datastores.delete_if_there(vm.config.folder.child(name))


def _forget_deltas(vm: VirtualMachine) -> None:
    """Bad tracking loses what was written while the snapshot existed."""
    for key, tracking in list(vm.tracking.items()):
        if tracking.misses_deltas and (disk := vm.config.disk(key)) is not None:
            if vm.machine is not None and (open_disk := vm.machine.disks.get(key)) is not None:
                open_disk.clear_tracking(vm.machine.qmp)
            vm.store_tracking(disk, tracking.delta_removed())


def _with_children(vm: VirtualMachine, snapshot_id: int) -> list[int]:
    found = [snapshot_id]
    for number in found:  # grows while it is walked
        found += [one.id for one in vm.snapshots.values() if one.parent == number]
    return found


def _wait_when_stuck(vm: VirtualMachine, name: FaultName, work: Work) -> None:
    fault = vm.site.faults.take(name, vm=vm.vm_id, vm_name=vm.config.name)
    if fault is None:
        return
    while not work.wait_cancelled(fault.amount or 3600.0):
        if fault.amount:
            return
    raise CancelledError("the task was cancelled")
