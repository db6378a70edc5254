"""RelocateVM: a machine's files move to another datastore, while it runs or not.

Each disk keeps its chain: frozen parents are copied, the leaf of a running machine is mirrored by
its QEMU while the guest writes (so no write is lost), a cold one is copied. Only when everything is
at its target are the .vmx and the locks changed and the old files removed; a failure before that
removes what was made and leaves the machine as it was.
Source: design notes on vSphere, section 5 "Finalise"; QEMU docs/interop/live-block-operations.rst.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from lab.esx.datastore import Datastores
from lab.esx.datastore_path import DatastorePath
from lab.esx.disk_chain import DiskChain, open_chain
from lab.esx.errors import HostError
from lab.esx.file_locks import LockMode
from lab.esx.hardware import Disk, DiskMode, VmConfig
from lab.esx.qcow2 import empty_image
from lab.esx.site import Work
from lab.esx.virtual_machine import VirtualMachine
from lab.esx.vm_power import drop_swap, location_of, make_swap
from lab.esx.vm_state import NotSupportedError
from lab.esx.vmdk import Descriptor, DiskFile, ExtentKind, read_disk_file
from lab.faults import FaultName


class RelocateError(HostError):
    """The machine could not be moved; it is where it was."""

    fault = "FileFault"


class NoLicenceError(HostError):
    """The host is not licensed for this."""

    fault = "NotEnoughLicenses"


@dataclass(frozen=True, slots=True, kw_only=True)
class RelocateRequest:
    """Datastores by name: of the machine's own files, and of disks (by key) that go elsewhere."""

    datastore: str | None
    disks: Mapping[int, str] = field(default_factory=dict)


def relocate(vm: VirtualMachine, request: RelocateRequest, work: Work) -> None:
    with vm.operation("Relocate"):
        _refuse(vm)
        move = _Move(vm, request)
        with ExitStack() as undo:
            move.prepare(undo)
            move.copy_parents(undo)
            fields = {"vm": vm.vm_id, "vm_name": vm.config.name}
            if vm.site.faults.take(FaultName.RELOCATE_FAILURE, **fields):
                raise RelocateError("the copy failed", file=str(vm.config.vmx_path))
            work.progress(20)
            move.move_leaves(undo)
            work.progress(90)
            undo.pop_all()
        move.finish()


def _refuse(vm: VirtualMachine) -> None:
    vm.refuse_if_appliance()
    if vm.consolidation_needed:
        raise NotSupportedError("the machine's disks need consolidation first")
    disks = vm.config.disks
    fields = {"vm": vm.vm_id, "vm_name": vm.config.name}
    if vm.on and vm.site.faults.take(FaultName.NO_LIVE_MOVE, **fields):
        raise NoLicenceError("the licence does not cover Storage vMotion")
    if vm.on and any(disk.mode is DiskMode.INDEPENDENT_NONPERSISTENT for disk in disks):
        raise NotSupportedError("a nonpersistent disk cannot move while the machine runs")
    if any(snapshot.config.vmx_path != vm.config.vmx_path for snapshot in vm.snapshots.values()):
        raise NotSupportedError("the machine's snapshots are of another place")


class _Move:
    def __init__(self, vm: VirtualMachine, request: RelocateRequest) -> None:
        self.vm = vm
        self.datastores: Datastores = vm.site.datastores
        old = vm.config
        home = request.datastore or old.vmx_path.datastore
        self.datastores.get(home)
        self._home = home
        self._request = request
        self._paths: dict[DatastorePath, DatastorePath] = {}  # descriptors that move
        self._chains: dict[int, DiskChain] = {}
        self._old_files: list[DatastorePath] = []
        self._new_folders: dict[str, DatastorePath] = {}

    def prepare(self, undo: ExitStack) -> None:
        """Find out what goes where, and make the folders."""
        vm = self.vm
        configs = [vm.config, *(one.config for one in vm.snapshots.values())]
        for config in configs:
            for disk in config.disks:
                target = self._request.disks.get(disk.key, self._request.datastore)
                if target is None:
                    continue
                self.datastores.get(target)
                for file in open_chain(self.datastores, disk.path).files:
                    if file.path.datastore != target and file.path not in self._paths:
                        folder = self._folder(target, undo)
                        self._paths[file.path] = folder.child(file.path.name)
        names = list(self._paths.values())
        if len(set(names)) != len(names):
            raise RelocateError("two disks would have one name", file=str(names[0]))
        if self._home != vm.config.vmx_path.datastore:
            self._folder(self._home, undo)
        for disk in vm.config.disks:
            self._chains[disk.key] = vm.chain(disk)

    def copy_parents(self, undo: ExitStack) -> None:
        """Copy what nobody writes: all frozen files, and every file of a machine that is off."""
        leaves = {disk.path for disk in self.vm.config.disks} if self.vm.on else set()
        for old, new in self._paths.items():
            file = read_disk_file(self.datastores, old)
            extent = new.sibling(file.descriptor.extent_name)
            undo.callback(self._delete, new, extent)
            if old in leaves:
                self._make_empty(file, extent)
            else:
                self.datastores.copy(file.extent_path, extent)
            self.datastores.write_text(new, self._descriptor(file).text())
            self._old_files += file.own_files
            if self.datastores.exists(file.track_path):
                track = new.sibling(file.track_path.name)
                undo.callback(self._delete, track)
                self.datastores.copy(file.track_path, track)
                self._old_files.append(file.track_path)

    def move_leaves(self, undo: ExitStack) -> None:
        """Mirror the disks of a running machine; the last steps cannot fail any more."""
        machine = self.vm.machine
        if machine is None:
            return
        moved: list[int] = []

        def back() -> None:
            for key in moved:
                with contextlib.suppress(HostError):
                    machine.disks[key].mirror(machine.qmp, self._emptied(self._chains[key]))

        undo.callback(back)
        for disk in self.vm.config.disks:
            if disk.path in self._paths:
                target = open_chain(self.datastores, self._paths[disk.path])
                machine.disks[disk.key].mirror(machine.qmp, target)
                moved.append(disk.key)

    def finish(self) -> None:
        """Everything is at its target: rename, lock, forget the old."""
        vm = self.vm
        old = vm.config
        own_files = self._move_own_files(old)
        config = self._renamed(old)
        vm.snapshots = {
            number: replace(snapshot, config=self._renamed(snapshot.config))
            for number, snapshot in vm.snapshots.items()
        }
        vm.orphan_files = frozenset()
        extra = {**config.extra, "uuid.location": location_of(config)}
        if vm.on:
            drop_swap(vm)
        vm.save(replace(config, extra=extra))
        vm.save_snapshots()
        for snapshot in vm.snapshots.values():
            vm.save_frozen(snapshot)
        vm.site.locks.release(vm.vm_id)
        vm.leave_datastores()
        if vm.on:
            with contextlib.suppress(HostError):  # it runs there, seen or not
                vm.enter_datastores({disk.key: vm.chain(disk) for disk in vm.config.disks})
                make_swap(vm)
            wanted = [(vm.config.vmx_path, LockMode.SHARED)]
            for disk in vm.config.disks:
                wanted += vm.chain(disk).locks(LockMode.EXCLUSIVE)
            vm.site.locks.acquire(vm.vm_id, wanted)
        for path in (*self._old_files, *own_files):
            with contextlib.suppress(HostError):
                self.datastores.delete_if_there(path)
        if old.folder != vm.config.folder and old.folder.path:
            with contextlib.suppress(HostError):  # not empty: something else lies there
                self.datastores.files_of(old.folder).delete(old.folder.path)
        if not vm.on:
            vm.reload_tracking()
        vm.write_log(f"Relocated to {vm.config.vmx_path}")

    def _move_own_files(self, old: VmConfig) -> list[DatastorePath]:
        """Copy the machine's small files; return the old ones."""
        if self._home == old.vmx_path.datastore:
            return []
        target = self._new_folders[self._home]
        files = self.datastores.files_of(old.folder)
        moved = []
        for entry in files.list(old.folder.path):
            path = old.folder.child(entry.name)
            small = entry.name.endswith((".nvram", ".log", ".png", ".vmxf"))
            if not entry.is_folder and small:
                self.datastores.copy(path, target.child(entry.name))
                moved.append(path)
            elif entry.name.endswith((".vmx", ".vmsd", ".vmsn")):
                moved.append(path)  # written anew
        return moved

    def _renamed(self, config: VmConfig) -> VmConfig:
        vmx_path = config.vmx_path
        if self._home != vmx_path.datastore:
            vmx_path = self._new_folders[self._home].child(vmx_path.name)
        disks: list[Disk] = [
            replace(disk, path=self._paths.get(disk.path, disk.path)) for disk in config.disks
        ]
        return replace(config, vmx_path=vmx_path, disks=tuple(disks))

    def _descriptor(self, file: DiskFile) -> Descriptor:
        parent = file.parent_path
        if parent is None:
            return file.descriptor
        new, moved = self._paths[file.path], self._paths.get(parent, parent)
        hint = moved.name if moved.folder == new.folder else str(moved)
        return replace(file.descriptor, parent_hint=hint)

    def _make_empty(self, file: DiskFile, extent: DatastorePath) -> None:
        files = self.datastores.files_of(extent)
        capacity = file.descriptor.capacity_bytes
        if file.descriptor.kind is ExtentKind.FLAT:
            files.create(extent.path, capacity)
        else:
            files.replace(extent.path, empty_image(capacity))

    def _emptied(self, chain: DiskChain) -> DiskChain:
        """The old leaf again as a mirror's target."""
        leaf = chain.leaf
        files = self.datastores.files_of(leaf.extent_path)
        if leaf.descriptor.kind is ExtentKind.FLAT:
            files.resize(leaf.extent_path.path, 0)
            files.resize(leaf.extent_path.path, chain.capacity_bytes)
        else:
            files.replace(leaf.extent_path.path, empty_image(chain.capacity_bytes))
        return chain

    def _folder(self, datastore: str, undo: ExitStack) -> DatastorePath:
        if datastore not in self._new_folders:
            wanted = self.datastores.get(datastore).path(self.vm.config.folder.path)
            path, number = wanted, 0
            while self.datastores.exists(path):
                number += 1
                path = DatastorePath(datastore, f"{wanted.path}_{number}")
            self.datastores.make_folders(path)
            undo.callback(self._delete, path)
            self._new_folders[datastore] = path
        return self._new_folders[datastore]

    def _delete(self, *paths: DatastorePath) -> None:
        for path in paths:
            with contextlib.suppress(HostError):
                self.datastores.delete_if_there(path)
