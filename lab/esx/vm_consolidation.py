"""Merging the files that no snapshot needs any more, with the bytes really moved.

While the VM runs, a file of its chain is merged by its own QEMU (block-commit); all others by a
qemu-storage-daemon. A merge needs both files for this VM alone: when somebody else reads one (a
hot-added disk), it stays, and the VM needs consolidation.
Source: design notes on vSphere, section 3.

Invariants: the files form readable chains after each step; a step that fails changes no content
that anybody reads.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from lab.esx.datastore_path import DatastorePath
from lab.esx.delta_files import adopt, remove_disk_files
from lab.esx.disk_chain import open_chain
from lab.esx.errors import FileLockedError, HostError
from lab.esx.file_locks import LockMode
from lab.esx.hardware import Disk, VmConfig
from lab.esx.open_disk import OpenDisk, throttle_group
from lab.esx.qemu_process import storage_daemon
from lab.esx.site import Work
from lab.esx.snapshot_plan import Delete, Merge, plan_consolidation
from lab.esx.virtual_machine import VirtualMachine
from lab.esx.vmdk import DiskFile, read_disk_file
from lab.faults import FaultName

log = logging.getLogger(__name__)


def consolidate(vm: VirtualMachine, work: Work) -> None:
    """Raises FileLockedError when a file is still in somebody's use."""
    with vm.operation("ConsolidateDisks"):
        fields = {"vm": vm.vm_id, "vm_name": vm.config.name}
        if vm.site.faults.take(FaultName.CONSOLIDATION_LOCKED, **fields):
            raise FileLockedError("a disk of the virtual machine is locked", file="")
        clean_up(vm, work)
        if vm.consolidation_needed:
            raise FileLockedError("a disk of the virtual machine is locked", file="")


def clean_up(vm: VirtualMachine, work: Work) -> None:
    """Merge and delete what can be; say in `consolidation_needed` whether something is left."""
    tree = _file_tree(vm)
    steps = plan_consolidation({path: disk.parent_path for path, disk in tree.items()}, _used(vm))
    left = False
    blocked: set[DatastorePath] = set()
    for place, step in enumerate(steps):
        touched = {step.child, step.into} if isinstance(step, Merge) else {step.path}
        if touched & blocked:
            left = True
            continue
        try:
            if isinstance(step, Merge):
                _merge(vm, step)
            else:
                _delete(vm, step)
        except HostError as error:  # locked, full, …: the files stay, and can be merged later
            log.warning("a file of %s stays to be consolidated: %s", vm.config.name, error)
            vm.write_log(f"ConsolidateDisks: {error}")
            blocked |= touched
            left = True
        work.progress(100 * (place + 1) // len(steps))
    datastores = vm.site.datastores
    vm.orphan_files = frozenset(path for path in vm.orphan_files if datastores.exists(path))
    vm.consolidation_needed = left


def _used(vm: VirtualMachine) -> set[DatastorePath]:
    configs = [vm.config, *(snapshot.config for snapshot in vm.snapshots.values())]
    return {disk.path for config in configs for disk in config.disks}


def _file_tree(vm: VirtualMachine) -> dict[DatastorePath, DiskFile]:
    """Every file of the chains of what is used, and of what was."""
    tree: dict[DatastorePath, DiskFile] = {}
    for path in sorted(_used(vm) | vm.orphan_files):
        try:
            tree |= {disk.path: disk for disk in open_chain(vm.site.datastores, path).files}
        except HostError:
            continue  # a disk that is gone has nothing to merge
    return tree


def _merge(vm: VirtualMachine, step: Merge) -> None:
    datastores, locks = vm.site.datastores, vm.site.locks
    child = read_disk_file(datastores, step.child)
    into = read_disk_file(datastores, step.into)
    disk = _running_disk(vm, step)
    both = [(path, LockMode.EXCLUSIVE) for path in (*child.own_files, *into.own_files)]
    before = {path: locks.locks(path) for path, _ in both}
    locks.acquire(vm.vm_id, both)
    try:
        if disk is not None and vm.machine is not None:
            disk.merge(vm.machine.qmp, step.child, step.into)
        else:
            _merge_cold(vm, step)
    except BaseException:
        mine = [one for held in before.values() for one in held if one.holder == vm.vm_id]
        locks.release(vm.vm_id, [path for path, _ in both])
        locks.acquire(vm.vm_id, [(lock.path, lock.mode) for lock in mine])
        raise
    for path, one in _file_tree(vm).items():
        if one.parent_path == step.child:
            adopt(datastores, path, step.into)
    _rename(vm, step)
    remove_disk_files(datastores, child)
    vm.orphan_files -= {step.child}
    locks.release(vm.vm_id, [path for path, _ in both])
    if vm.machine is not None:
        for held_key, open_disk in vm.machine.disks.items():
            running = vm.config.disk(held_key)
            if running is not None and open_disk is disk:
                disk.renamed_parent(vm.chain(running))
                locks.acquire(vm.vm_id, disk.chain.locks(LockMode.EXCLUSIVE))


def _running_disk(vm: VirtualMachine, step: Merge) -> OpenDisk | None:
    for open_disk in vm.machine.disks.values() if vm.machine is not None else ():
        if step.child in [file.path for file in open_disk.chain.files]:
            return open_disk
    return None


def _merge_cold(vm: VirtualMachine, step: Merge) -> None:
    chain = open_chain(vm.site.datastores, step.child)
    daemon = storage_daemon()
    try:
        daemon.qmp.execute("object-add", throttle_group())
        open_disk = OpenDisk(vm.site.datastores, chain, "merge")
        open_disk.open(daemon.qmp)
        open_disk.merge(daemon.qmp, step.child, step.into)
        open_disk.close(daemon.qmp)
        daemon.qmp.execute("quit")
        daemon.wait(10.0)
    finally:
        daemon.close()


def _delete(vm: VirtualMachine, step: Delete) -> None:
    disk = read_disk_file(vm.site.datastores, step.path)
    for path in disk.own_files:
        vm.site.locks.refuse_unless_free(path)
    remove_disk_files(vm.site.datastores, disk)
    vm.orphan_files -= {step.path}


def _rename(vm: VirtualMachine, step: Merge) -> None:
    """Whoever named the child names the file that has its data now."""

    def renamed(config: VmConfig) -> VmConfig:
        disks: list[Disk] = [
            replace(disk, path=step.into) if disk.path == step.child else disk
            for disk in config.disks
        ]
        return replace(config, disks=tuple(disks))

    vm.save(renamed(vm.config))
    vm.snapshots = {
        number: replace(snapshot, config=renamed(snapshot.config))
        for number, snapshot in vm.snapshots.items()
    }
    for snapshot in vm.snapshots.values():
        vm.save_frozen(snapshot)
    if step.child in vm.orphan_files:
        vm.orphan_files = (vm.orphan_files - {step.child}) | {step.into}
