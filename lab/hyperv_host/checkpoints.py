"""Checkpoints: taken in one moment over all disks, and merged away while the guest runs.

A checkpoint freezes every disk's file and puts an empty differencing file over it. Removing it, or
turning it into a reference point, merges that file back; a client that still has the frozen file
open makes the merge fail, the chain stays as it is, and the next operation tries again.

Thread model: each function is one operation of the machine, on the thread of its job.
Source: design notes on Hyper-V, section 3.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from lab.esx.errors import HostError
from lab.faults import FaultName
from lab.hyperv_host.errors import HypervError, InUseError, StateError
from lab.hyperv_host.jobs import Job
from lab.hyperv_host.virtual_machine import (
    CREATING_CHECKPOINT,
    DELETING_CHECKPOINT,
    MERGING,
    Checkpoint,
    HypervVm,
)
from lab.hyperv_host.windows_path import WindowsPath

APPLICATION, CRASH = 1, 2
_MERGE_POLL_S = 0.02


def create_checkpoint(
    vm: HypervVm, *, recovery: bool, consistency: int, job: Job, backup_type: str = "copy"
) -> Checkpoint:
    """Raises HypervError: nothing was frozen, and the machine is as it was."""
    fields = vm.fault_fields
    with vm.operation(), _doing(vm, CREATING_CHECKPOINT):
        if vm.site.faults.take(FaultName.SNAPSHOT_FAILURE, **fields):
            raise HypervError(f"Checkpoint operation for '{vm.settings.name}' failed.")
        if vm.settings.has_pass_through:
            raise HypervError("Checkpoints are not supported for pass-through disks.")
        _stuck(vm, FaultName.SNAPSHOT_STUCK)
        retry_merges(vm)
        now = time.time()
        checkpoint = Checkpoint(
            checkpoint_id=str(uuid.uuid4()).upper(),
            name=f"{vm.settings.name} - ({time.strftime('%m/%d/%Y - %H:%M:%S', time.gmtime(now))})",
            recovery=recovery,
            consistency=consistency,
            created_at=now,
            parent_id=vm.checkpoints[-1].instance_id if vm.checkpoints else "",
        )
        if vm.site.faults.take(FaultName.RCT_RESET, **fields):
            for tracked in vm.tracked.values():
                tracked.tracking.start_over()
        with vm.opened_disks(), quiesced(vm, consistency):
            _freeze(vm, checkpoint)
        if consistency == APPLICATION and vm.guest is not None:
            vm.backups_told.append(backup_type)
        _write_configuration(vm, checkpoint)
        vm.checkpoints.append(checkpoint)
        job.checkpoints.append(checkpoint.instance_id)
        return checkpoint


def remove_checkpoint(vm: HypervVm, checkpoint: Checkpoint) -> None:
    """Forget the checkpoint and merge what was written since.

    Raises:
        HypervError: the checkpoint is still there.
        InUseError: it is gone, its files could not be merged yet.
    """
    with vm.operation(), _doing(vm, DELETING_CHECKPOINT):
        if vm.site.faults.take(FaultName.REMOVE_FAILURE, **vm.fault_fields):
            raise HypervError(f"Failed to delete checkpoint of '{vm.settings.name}'.")
        if checkpoint not in vm.checkpoints:
            raise StateError("the checkpoint is being removed already")
        vm.checkpoints.remove(checkpoint)
        for path in checkpoint.configuration:
            with contextlib.suppress(OSError, HypervError):
                vm.site.volumes.existing(path).unlink()
        vm.unmerged += checkpoint.frozen.items()
        vm.doing = MERGING
        _stuck(vm, FaultName.REMOVE_STUCK)
        retry_merges(vm, must=True)


def retry_merges(vm: HypervVm, *, must: bool = False) -> None:
    """Merge what earlier operations left. Raises InUseError when it must and could not."""
    waiting, vm.unmerged = vm.unmerged, []
    if not waiting:
        return
    failures: list[HypervError] = []
    with vm.opened_disks():
        for name, frozen in waiting:
            if name not in vm.disks or not any(p.same(frozen) for p in vm.disks[name].paths[1:]):
                continue
            try:
                _merge(vm, name, frozen)
            except HypervError as error:
                vm.unmerged.append((name, frozen))
                failures.append(error)
        vm.leaves_changed()
    if failures and must:
        raise failures[0]


def _merge(vm: HypervVm, name: str, frozen: WindowsPath) -> None:
    if vm.site.faults.take(FaultName.MERGE_FAILURE, **vm.fault_fields):
        raise InUseError(f"'{frozen}': The process cannot access the file.")
    disk = vm.disks[name]
    place = next(n for n, path in enumerate(disk.paths) if path.same(frozen))
    child = disk.paths[place - 1]
    vm.release(name)
    try:
        alone = vm.site.holds.hold(frozen, alone=True)
        try:
            disk.merge_into(frozen, vm.site.stopping)
        finally:
            alone()
    finally:
        if vm.machine is not None:
            vm.hold(name)
    for checkpoint in vm.checkpoints:  # whose frozen file was the one that is merged now
        if name in checkpoint.frozen and checkpoint.frozen[name].same(child):
            checkpoint.frozen[name] = frozen


def _freeze(vm: HypervVm, checkpoint: Checkpoint) -> None:
    stun = vm.machine.stunned() if vm.machine is not None else contextlib.nullcontext()
    with stun:
        for name, disk in vm.disks.items():
            frozen = disk.leaf
            stem = frozen.stem.partition("_")[0] if _is_checkpoint_file(frozen) else frozen.stem
            leaf = frozen.folder.joined(f"{stem}_{checkpoint.checkpoint_id}.avhdx")
            vm.release(name)
            checkpoint.moments[name] = disk.freeze(leaf)
            checkpoint.frozen[name] = frozen
            if vm.machine is not None:
                vm.hold(name)
    vm.leaves_changed()


def _is_checkpoint_file(path: WindowsPath) -> bool:
    return path.name.lower().endswith(".avhdx")


@contextmanager
def quiesced(vm: HypervVm, consistency: int) -> Iterator[None]:
    """The guest's file systems stand still, if that is asked for and there is a guest."""
    guest = vm.guest
    if consistency != APPLICATION or guest is None:
        yield
        return
    fault = vm.site.faults.take(FaultName.QUIESCE_FAILURE, **vm.fault_fields)
    if fault or not vm.settings.vss_service or not guest.info.tools_running:
        raise HypervError(
            f"Production checkpoints cannot be created for '{vm.settings.name}'. The VSS writers"
            " of the guest did not answer, or its integration service is not there."
        )
    try:
        guest.freeze()
    except HostError as error:
        raise HypervError(f"Production checkpoints cannot be created: {error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(HostError):
            guest.thaw()


def _write_configuration(vm: HypervVm, checkpoint: Checkpoint) -> None:
    settings = replace(
        vm.settings,
        drives=tuple(
            replace(drive, path=checkpoint.frozen.get(drive.name, drive.path))
            for drive in vm.settings.drives
        ),
    )
    folder = vm.settings.folder.joined("Snapshots")
    vm.site.volumes.place(folder).mkdir(parents=True, exist_ok=True)
    for ending, data in ((".vmcx", settings.encode()), (".vmrs", b"LABVMRS\0")):
        path = folder.joined(f"{checkpoint.checkpoint_id}{ending}")
        vm.site.volumes.place(path).write_bytes(data)
        checkpoint.configuration.append(path)


@contextmanager
def _doing(vm: HypervVm, what: int) -> Iterator[None]:
    vm.doing = what
    try:
        yield
    finally:
        vm.doing = 0


def _stuck(vm: HypervVm, name: FaultName) -> None:
    fault = vm.site.faults.take(name, **vm.fault_fields)
    if fault is None:
        return
    until = time.monotonic() + (fault.amount or float("inf"))
    while time.monotonic() < until:
        if vm.site.stopping():
            raise StateError("the host is going down")
        time.sleep(_MERGE_POLL_S)
