"""ReconfigVM: settings and devices of a virtual machine, with the refusals of a real host.

Devices are changed in the order of the request; the first refusal undoes what this request did
before. Disks are plugged into a running guest when their controller can (SCSI), and never into an
IDE channel. Source: design notes on vSphere, sections 2 "Enable", 4a and 8.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from lab.esx.datastore_path import DatastorePath
from lab.esx.delta_files import remove_disk_files
from lab.esx.disk_chain import DiskChain, open_chain
from lab.esx.errors import HostError
from lab.esx.file_locks import LockMode
from lab.esx.hardware import BUSES, Controller, ControllerKind, Disk, DiskMode, Nic, VmConfig
from lab.esx.reconfigure_request import (
    AddController,
    AddDisk,
    AddNic,
    DeviceChange,
    EditDisk,
    EditNic,
    ReconfigureRequest,
    RemoveDevice,
    Settings,
)
from lab.esx.virtual_machine import VirtualMachine
from lab.esx.vm_library import check_name
from lab.esx.vm_state import PowerState
from lab.esx.vmdk import DiskFile, flat_descriptor
from lab.esx.vmx import new_mac
from lab.faults import FaultName

_NICS_MAX = 10
_DISK_BYTES_MAX = 62 << 40
_OFF_ONLY = ("cpus", "cores_per_socket", "memory_mib", "firmware", "secure_boot", "version",
             "guest_id", "uuid", "instance_uuid", "disk_uuid_enabled")  # fmt: skip


class DeviceSpecError(HostError):
    """A device of the request cannot be; `deviceIndex` says which."""

    fault = "InvalidDeviceSpec"


class ControllerMissingError(DeviceSpecError):
    fault = "InvalidController"


class HotPlugError(DeviceSpecError):
    fault = "DeviceHotPlugNotSupported"


def reconfigure(vm: VirtualMachine, request: ReconfigureRequest) -> None:
    with vm.operation("Reconfigure"):
        _refuse_settings(vm, request.settings)
        with ExitStack() as undo:
            change = _Change(vm, undo)
            for index, device in enumerate(request.devices):
                change.apply(device, index)
            config = _with_settings(vm, change.config, request.settings)
            vm.save(config)
            undo.pop_all()
        for action in change.afterwards:
            action()
        if not vm.on:
            vm.start_tracking_where_due()


def _refuse_settings(vm: VirtualMachine, settings: Settings) -> None:
    if settings.name is not None:
        check_name(settings.name)
    if any(getattr(settings, name) not in (None, getattr(vm.config, name)) for name in _OFF_ONLY):
        vm.refuse_unless(PowerState.OFF)
    for name in ("cpus", "cores_per_socket", "memory_mib"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise DeviceSpecError(f"{name} cannot be {value}")


def _with_settings(vm: VirtualMachine, config: VmConfig, settings: Settings) -> VmConfig:
    values = {
        name: value
        for name in Settings.__slots__
        if name not in ("extra", "change_tracking")
        and (value := getattr(settings, name)) is not None
    }
    extra = {**config.extra, **settings.extra}
    for name in [name for name, value in extra.items() if value == ""]:
        del extra[name]
    wanted = settings.change_tracking
    ignored = wanted and vm.site.faults.take(
        FaultName.CBT_ENABLE_IGNORED, vm=vm.vm_id, vm_name=config.name
    )
    if wanted is not None and not ignored:
        values["change_tracking"] = wanted
    return replace(config, extra=extra, **values)


class _Change:
    """The configuration as it becomes; what it does to the world, it can undo."""

    def __init__(self, vm: VirtualMachine, undo: ExitStack) -> None:
        self.vm = vm
        self.config = vm.config
        self.afterwards: list[Callable[[], None]] = []  # when nothing can fail any more
        self._undo = undo
        self._keys: dict[int, int] = {}

    def apply(self, device: DeviceChange, index: int) -> None:
        try:
            match device:
                case AddController():
                    self._add_controller(device)
                case AddDisk():
                    self._add_disk(device)
                case EditDisk():
                    self._edit_disk(device)
                case AddNic():
                    self._add_nic(device)
                case EditNic():
                    self._edit_nic(device)
                case RemoveDevice():
                    self._remove(device)
        except DeviceSpecError as error:
            error.fields.setdefault("deviceIndex", index)
            raise

    def _add_controller(self, device: AddController) -> None:
        bus = device.kind.bus
        taken = {one.bus_number for one in self.config.controllers if one.kind.bus == bus}
        number = device.bus_number
        if number is None:
            number = min(set(range(BUSES[bus].buses)) - taken, default=-1)
        if number not in range(BUSES[bus].buses) or number in taken:
            raise DeviceSpecError(f"there cannot be another {bus} controller {number}")
        if self.vm.on and not self.vm.can_plug_controllers:
            raise HotPlugError("controllers cannot be added while the machine runs")
        controller = Controller(kind=device.kind, bus_number=number, shared_bus=device.shared_bus)
        self._keys[device.temporary_key] = controller.key
        both = sorted([*self.config.controllers, controller], key=lambda one: one.key)
        extra = dict(self.config.extra)
        if bus == "scsi":
            extra.setdefault(f"{controller.prefix}.pciSlotNumber", str(controller.pci_slot))
        self.config = replace(self.config, controllers=tuple(both), extra=extra)
        self.afterwards.append(lambda: self.vm.controller_added(controller))

    # ------------------------------------------------------------------ disks

    def _add_disk(self, device: AddDisk) -> None:
        controller = self._controller(device.controller_key)
        unit = self._free_unit(controller, device.unit)
        if self.vm.on and controller.kind.bus != "scsi":
            raise HotPlugError(f"a {controller.kind.bus} disk cannot be added to a running machine")
        chain = self._create(device) if device.create else self._existing(device)
        leaf = chain.leaf.descriptor
        disk = Disk(
            key=controller.disk_key(unit),
            controller_key=controller.key,
            unit=unit,
            path=chain.leaf.path,
            capacity_bytes=leaf.capacity_bytes,
            label=self._label(),
            mode=device.mode,
            sharing=device.sharing,
            thin=leaf.thin,
            uuid=leaf.uuid,
        )
        if self.vm.on:
            self._plug(disk, controller, chain)
        disks = sorted([*self.config.disks, disk], key=lambda one: one.key)
        self.config = replace(self.config, disks=tuple(disks))

    def _plug(self, disk: Disk, controller: Controller, chain: DiskChain) -> None:
        vm = self.vm
        temporary = disk.mode is DiskMode.INDEPENDENT_NONPERSISTENT
        before = {lock.path for lock in vm.site.locks.all_locks() if lock.holder == vm.vm_id}
        wanted = chain.locks(LockMode.SHARED if temporary else LockMode.EXCLUSIVE)
        new = [path for path, _ in wanted if path not in before]
        # A parent that another disk of this VM reads stays shared.
        vm.site.locks.acquire(vm.vm_id, wanted)
        self._undo.callback(vm.site.locks.release, vm.vm_id, new)
        vm.plug(disk, controller, chain)
        self._undo.callback(vm.unplug, disk)

    def _controller(self, key: int) -> Controller:
        controller = self.config.controller(self._keys.get(key, key))
        if controller is None:
            raise ControllerMissingError(f"there is no controller {key}", controllerKey=key)
        return controller

    def _free_unit(self, controller: Controller, wanted: int | None) -> int:
        taken = {disk.unit for disk in self.config.disks if disk.controller_key == controller.key}
        if wanted is None or wanted < 0:
            free = [unit for unit in range(controller.units) if controller.has_unit(unit)]
            wanted = next((unit for unit in free if unit not in taken), controller.units)
        if not controller.has_unit(wanted):
            raise DeviceSpecError(f"{controller.prefix} has no unit {wanted} for a disk")
        if wanted in taken:
            raise DeviceSpecError(f"{controller.prefix}:{wanted} is in use")
        return wanted

    def _existing(self, device: AddDisk) -> DiskChain:
        if device.path is None or not device.path.path:
            raise DeviceSpecError("the request names no file")
        if device.path in {disk.path for disk in self.config.disks}:
            raise DeviceSpecError(f"{device.path} is attached already")
        chain = open_chain(self.vm.site.datastores, device.path)
        if device.capacity_bytes not in (0, chain.capacity_bytes):
            raise DeviceSpecError(
                f"{device.path} has {chain.capacity_bytes} bytes, not {device.capacity_bytes}"
            )
        return chain

    def _create(self, device: AddDisk) -> DiskChain:
        capacity = device.capacity_bytes
        if not 0 < capacity <= _DISK_BYTES_MAX or capacity % 512:
            raise DeviceSpecError(f"a disk cannot have {capacity} bytes")
        datastores = self.vm.site.datastores
        path = self._new_path(device.path)
        descriptor = flat_descriptor(
            path.name.removesuffix(".vmdk"), capacity, thin=device.thin, uuid=device.uuid
        )
        made = DiskFile(path=path, descriptor=descriptor)
        files = datastores.files_of(path)
        if datastores.exists(path):
            files.create(path.path)  # raises that it is there
        files.create(made.extent_path.path, capacity)
        self._undo.callback(remove_disk_files, datastores, made)
        datastores.write_text(path, descriptor.text())
        return DiskChain(files=(made,))

    def _new_path(self, wanted: DatastorePath | None) -> DatastorePath:
        datastores = self.vm.site.datastores
        if wanted is not None and wanted.name.endswith(".vmdk"):
            return wanted
        home = self.config.folder
        if wanted is not None and wanted.datastore != home.datastore:
            home = datastores.get(wanted.datastore).path(home.path)
            datastores.make_folders(home)
        number = 0
        while True:
            path = home.child(f"{self.config.file_stem}{f'_{number}' if number else ''}.vmdk")
            if not datastores.exists(path):
                return path
            number += 1

    def _edit_disk(self, device: EditDisk) -> None:
        disk = self._disk(device.key)
        if device.path is not None and device.path != disk.path:
            raise DeviceSpecError("another file needs the disk to be removed and added")
        if device.mode is not None and device.mode is not disk.mode:
            if self.vm.on:
                raise HotPlugError("the mode of a running machine's disk cannot be changed")
            if self.vm.chain(disk).parents:
                raise DeviceSpecError("the mode of a disk with snapshots cannot be changed")
            disk = replace(disk, mode=device.mode)
        if device.capacity_bytes not in (None, disk.capacity_bytes):
            assert device.capacity_bytes is not None
            disk = self._grow(disk, device.capacity_bytes)
        self.config = self.config.with_disk(disk)

    def _grow(self, disk: Disk, capacity_bytes: int) -> Disk:
        chain = self.vm.chain(disk)
        fits = disk.capacity_bytes < capacity_bytes <= _DISK_BYTES_MAX
        if not fits or capacity_bytes % 512 or chain.parents:
            raise DeviceSpecError(f"{disk.label} cannot have {capacity_bytes} bytes")
        datastores, leaf = self.vm.site.datastores, chain.leaf
        grown = replace(leaf.descriptor, capacity_bytes=capacity_bytes)
        datastores.files_of(leaf.path).resize(leaf.extent_path.path, capacity_bytes)
        datastores.write_text(leaf.path, grown.text())
        larger = replace(disk, capacity_bytes=capacity_bytes)
        self.afterwards.append(lambda: self.vm.disk_grown(larger))
        return larger

    def _disk(self, key: int) -> Disk:
        disk = self.config.disk(key)
        if disk is None:
            raise DeviceSpecError(f"there is no disk {key}")
        return disk

    def _label(self) -> str:
        taken = {disk.label for disk in self.config.disks}
        numbers = range(1, len(taken) + 2)
        return next(label for n in numbers if (label := f"Hard disk {n}") not in taken)

    # ------------------------------------------------------------------ network adapters

    def _add_nic(self, device: AddNic) -> None:
        taken = {nic.key for nic in self.config.nics}
        keys = [key for key in range(4000, 4000 + _NICS_MAX) if key not in taken]
        if not keys:
            raise DeviceSpecError("there are ten network adapters already")
        if self.vm.on:
            raise HotPlugError("network adapters cannot be added while the machine runs")
        nic = Nic(
            key=keys[0],
            kind=device.kind,
            network=device.network,
            mac=device.mac or new_mac(),
            label=f"Network adapter {keys[0] - 3999}",
            address_type=device.address_type,
            start_connected=device.start_connected,
            switch_uuid=device.switch_uuid,
            portgroup_key=device.portgroup_key,
        )
        self.config = replace(self.config, nics=(*self.config.nics, nic))

    def _edit_nic(self, device: EditNic) -> None:
        nic = next((one for one in self.config.nics if one.key == device.key), None)
        if nic is None:
            raise DeviceSpecError(f"there is no network adapter {device.key}")
        if device.mac is not None and device.mac != nic.mac and self.vm.on:
            raise HotPlugError("the address of a running machine's adapter cannot be changed")
        names = ("mac", "address_type", "start_connected", "connected")
        values = {name: value for name in names if (value := getattr(device, name)) is not None}
        if device.network is not None:
            values |= {
                "network": device.network,
                "switch_uuid": device.switch_uuid,
                "portgroup_key": device.portgroup_key,
            }
        changed = replace(nic, **values)
        nics = tuple(changed if one.key == nic.key else one for one in self.config.nics)
        self.config = replace(self.config, nics=nics)

    # ------------------------------------------------------------------ removal

    def _remove(self, device: RemoveDevice) -> None:
        config, key = self.config, device.key
        if (disk := config.disk(key)) is not None:
            self._remove_disk(disk, device)
        elif (controller := config.controller(key)) is not None:
            used = any(one.controller_key == key for one in config.disks)
            if used or controller.kind is ControllerKind.IDE or self.vm.on:
                raise DeviceSpecError(f"controller {key} cannot be removed")
            left = tuple(one for one in config.controllers if one.key != key)
            self.config = replace(config, controllers=left)
        elif any(nic.key == key for nic in config.nics):
            if self.vm.on:
                raise HotPlugError("network adapters cannot be removed while the machine runs")
            self.config = replace(config, nics=tuple(n for n in config.nics if n.key != key))
        else:
            raise DeviceSpecError(f"there is no device {key}")

    def _remove_disk(self, disk: Disk, device: RemoveDevice) -> None:
        vm = self.vm
        controller = self._controller(disk.controller_key)
        if vm.on:
            if controller.kind.bus != "scsi":
                raise HotPlugError(f"a {controller.kind.bus} disk cannot be removed now")
            fields = {"vm": vm.vm_id, "vm_name": vm.config.name, "path": str(disk.path)}
            if vm.site.faults.take(FaultName.HOT_REMOVE_FAILURE, **fields):
                raise HotPlugError(f"{disk.label} could not be removed")
        chain = vm.chain(disk)
        if device.destroy_files and chain.parents:
            raise DeviceSpecError(f"{disk.label} has snapshots")

        def finish() -> None:
            if vm.on:
                vm.unplug(disk)
                vm.site.locks.release(vm.vm_id, _unused_locks(vm, chain))
            vm.tracking.pop(disk.key, None)
            if device.destroy_files:
                for path in (*chain.leaf.own_files, chain.leaf.track_path):
                    vm.site.locks.refuse_unless_free(path)
                    vm.site.datastores.delete_if_there(path)

        self.afterwards.append(finish)
        left = tuple(one for one in self.config.disks if one.key != disk.key)
        self.config = replace(self.config, disks=left)


def _unused_locks(vm: VirtualMachine, chain: DiskChain) -> list[DatastorePath]:
    """Files of the chain that no other disk of this VM reads."""
    kept: set[DatastorePath] = set()
    for disk in vm.config.disks:
        kept |= set(vm.chain(disk).paths())
    return [path for path in chain.paths() if path not in kept]
