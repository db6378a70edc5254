"""Filling a lab with machines that run: a datacenter's library, guests, and the appliance.

    library = give_library(inventory, folder, faults=switches)
    machine = add_guest(inventory, "web", build(GuestKind.TINY), forward=(8080, 7777))
    appliance = add_appliance(inventory, "holdfast", device_root)
    …
    library.close()     # after the vCenter: kills guests, gives back loop devices and locks

The inventory's datastores must be LabDatastores. Blocks on copying the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from lab.esx.appliance_vm import ApplianceVm
from lab.esx.datastore import Datastores
from lab.esx.datastore_path import DatastorePath
from lab.esx.file_locks import FileLocks
from lab.esx.files import LocalFiles
from lab.esx.hardware import Controller, ControllerKind, Disk, VmConfig
from lab.esx.machine import FORWARD_SETTING
from lab.esx.nas_datastore import NasTimings
from lab.esx.reconfigure_request import AddDisk, AddNic, ReconfigureRequest
from lab.esx.site import CHANGED_AREAS_MAX, Site
from lab.esx.virtual_machine import VirtualMachine as Engine
from lab.esx.vm_library import VmLibrary, new_config
from lab.esx.vm_reconfigure import reconfigure
from lab.esx.vmdk import flat_descriptor
from lab.faults import FaultSwitches
from lab.guests import copy_sparse
from lab.vcenter.inventory import Inventory
from lab.vcenter.virtual_machine_engine import EngineMachine

_SMALL_DISK_BYTES = 1 << 20
_IDE = tuple(Controller(kind=ControllerKind.IDE, bus_number=number) for number in range(2))


def give_library(
    inventory: Inventory,
    folder: Path,
    *,
    faults: FaultSwitches | None = None,
    locks: FileLocks | None = None,
    changed_areas_max: int = CHANGED_AREAS_MAX,
    nas: NasTimings | None = None,
    now: Callable[[], datetime] | None = None,
) -> VmLibrary:
    """Let the datacenter's machines run; `folder` (a short path) takes logs and sockets.

    Locks and switches are the vCenter's, which its data plane asks too, unless others are given.
    `now`: the time by the machines' clock, such as that of snapshots.
    """
    vcenter = inventory.datacenter.vcenter
    datastores = Datastores()
    for datastore in inventory.datastores:
        if datastore.store is not None:
            datastores.add(datastore.store)
    site = Site(
        folder=folder,
        datastores=datastores,
        locks=locks or vcenter.file_locks,
        faults=faults or inventory.network.vcenter.switches,
        changed_areas_max=changed_areas_max,
        nas=nas or NasTimings(),
        now=now or _system_time,
    )
    library = VmLibrary(site)
    inventory.datacenter.library = library
    return library


def _system_time() -> datetime:
    return datetime.now(UTC)


def add_guest(
    inventory: Inventory,
    name: str,
    image: Path,
    *,
    datastore: str | None = None,
    controller: ControllerKind = ControllerKind.PVSCSI,
    memory_mib: int = 256,
    forward: tuple[int, ...] = (),
    extra_disks_bytes: tuple[int, ...] = (),
    network: str | None = None,
) -> EngineMachine:
    """A machine, powered off, whose first disk is a copy of a raw image."""
    library = _library(inventory)
    datastores = library.site.datastores
    home = datastores.get(datastore or inventory.datastores[0].name)
    files = home.files
    if not isinstance(files, LocalFiles):
        raise ValueError("guests start on a datastore with a local folder")
    vmx_path = home.path(f"{name}/{name}.vmx")
    disk_path = vmx_path.sibling(f"{name}.vmdk")
    datastores.make_folders(vmx_path.folder)
    descriptor = flat_descriptor(name, image.stat().st_size)
    copy_sparse(image, files.local_path(f"{name}/{descriptor.extent_name}"))
    datastores.write_text(disk_path, descriptor.text())
    adapter = Controller(kind=controller, bus_number=0)
    first = Disk(
        key=adapter.disk_key(0),
        controller_key=adapter.key,
        unit=0,
        path=disk_path,
        capacity_bytes=descriptor.capacity_bytes,
        label="Hard disk 1",
        uuid=descriptor.uuid,
    )
    forwards = {FORWARD_SETTING: ",".join(map(str, forward))} if forward else {}
    config = replace(
        new_config(name, vmx_path),
        memory_mib=memory_mib,
        guest_id="debian12_64Guest",
        controllers=_controllers(adapter),
        disks=(first,),
        disk_uuid_enabled=True,
        extra={**_slots(adapter), **forwards},
    )
    engine = library.create(inventory.network.vcenter.registry.allocate("vm"), config)
    disks = tuple(
        AddDisk(controller_key=adapter.key, unit=None, path=None, capacity_bytes=size, create=True)
        for size in extra_disks_bytes
    )
    nic = AddNic(kind="vmxnet3", network=network or inventory.network.name)
    reconfigure(engine, ReconfigureRequest(devices=(*disks, nic)))
    return _show(inventory, engine, library)


def add_appliance(
    inventory: Inventory,
    name: str,
    device_root: Path,
    *,
    datastore: str | None = None,
    controllers: int = 1,
    disk_uuid_enabled: bool = True,
) -> EngineMachine:
    """The machine whose guest is this one; hot-added disks appear below `device_root`."""
    library = _library(inventory)
    datastores = library.site.datastores
    home = datastores.get(datastore or inventory.datastores[0].name)
    vmx_path: DatastorePath = home.path(f"{name}/{name}.vmx")
    adapters = [
        Controller(kind=ControllerKind.PVSCSI, bus_number=number) for number in range(controllers)
    ]
    config: VmConfig = replace(
        new_config(name, vmx_path),
        guest_id="debian12_64Guest",
        controllers=_controllers(*adapters),
        disk_uuid_enabled=disk_uuid_enabled,
    )
    # Each controller keeps a small disk of its own, as an appliance is installed.
    datastores.make_folders(vmx_path.folder)
    disks: list[Disk] = []
    for adapter in adapters:
        stem = f"{name}_{adapter.bus_number}" if adapter.bus_number else name
        descriptor = flat_descriptor(stem, _SMALL_DISK_BYTES)
        path = vmx_path.sibling(f"{stem}.vmdk")
        datastores.files_of(path).create(f"{name}/{descriptor.extent_name}", _SMALL_DISK_BYTES)
        datastores.write_text(path, descriptor.text())
        disks.append(
            Disk(
                key=adapter.disk_key(0),
                controller_key=adapter.key,
                unit=0,
                path=path,
                capacity_bytes=_SMALL_DISK_BYTES,
                label=f"Hard disk {len(disks) + 1}",
                uuid=descriptor.uuid,
            )
        )
    vm_id = inventory.network.vcenter.registry.allocate("vm")
    made = ApplianceVm(library.site, vm_id, replace(config, disks=tuple(disks)), device_root)
    library.adopt(made)
    return _show(inventory, made, library)


def _library(inventory: Inventory) -> VmLibrary:
    library = inventory.datacenter.library
    if library is None:
        raise ValueError("the datacenter has no library")
    return library


def _controllers(*adapters: Controller) -> tuple[Controller, ...]:
    return tuple(sorted([*_IDE, *adapters], key=lambda one: one.key))


def _slots(adapter: Controller) -> dict[str, str]:
    if adapter.kind.bus != "scsi":
        return {}
    return {f"{adapter.prefix}.pciSlotNumber": str(adapter.pci_slot)}


def _show(inventory: Inventory, engine: Engine, library: VmLibrary) -> EngineMachine:
    hosts = inventory.hosts
    machine = EngineMachine(
        engine,
        library,
        folder=inventory.datacenter.vm_folder,
        pool=inventory.pool,
        host=min(hosts, key=lambda host: len(host.machines())),
    )
    inventory.machines.append(machine)
    return machine
