"""What a folder does with machines: CreateVM_Task and RegisterVM_Task; mixed into Folder.

A datacenter whose machines run has a `library` (`lab/esx`); in one without, machines can only be
looked at. Source: vSphere Web Services API, Folder; design notes on vSphere, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from pyVmomi import vmodl

from lab.esx.datastore_path import DatastorePath
from lab.esx.hardware import Controller, ControllerKind
from lab.esx.vm_library import VmLibrary, check_name, new_config
from lab.esx.vm_reconfigure import reconfigure
from lab.vcenter.call import Call
from lab.vcenter.host_faults import host_faults
from lab.vcenter.managed_object import method
from lab.vcenter.names import plain_name
from lab.vcenter.tasks import TaskControl

if TYPE_CHECKING:
    from lab.vcenter.compute import ResourcePool
    from lab.vcenter.folders import Datacenter, Folder
    from lab.vcenter.hosts import HostSystem
    from lab.vcenter.virtual_machine_engine import EngineMachine

_IDE = tuple(Controller(kind=ControllerKind.IDE, bus_number=number) for number in range(2))


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a new machine goes, and the library that makes it."""

    library: VmLibrary
    home: Datacenter
    pool: ResourcePool
    host: HostSystem


class MachineFolder:
    @method("CreateVM_Task", privilege="VirtualMachine.Inventory.Create")
    def create_machine(self, call: Call, spec: Any, pool: Any, host: Any) -> Any:
        folder = cast("Folder", self)
        placement = place(call, folder, pool, host)

        def work(_task: TaskControl) -> Any:
            return create_machine(folder, placement, spec).ref

        return call.start_task(folder, work)

    @method("RegisterVM_Task", privilege="VirtualMachine.Inventory.Register")
    def register_machine(
        self, call: Call, path: str, name: str | None, template: bool, pool: Any, host: Any
    ) -> Any:
        folder = cast("Folder", self)
        placement = place(call, folder, pool, host)
        with host_faults():
            vmx_path = DatastorePath.parse(path)
            plain = None if name is None else plain_name(name)
            if plain is not None:
                check_name(plain)

        def work(_task: TaskControl) -> Any:
            return register_machine(folder, placement, vmx_path, plain, template=template).ref

        return call.start_task(folder, work)


def place(call: Call, folder: Folder, pool_ref: Any, host_ref: Any) -> Placement:
    """Raises faults for a placement that cannot be."""
    from lab.vcenter.compute import ResourcePool
    from lab.vcenter.folders import Datacenter
    from lab.vcenter.hosts import HostSystem

    home = folder.datacenter()
    if not isinstance(home, Datacenter) or home.library is None or folder.kind != "group-v":
        raise vmodl.fault.NotSupported(msg="No machine can run in this folder.")
    host = call.resolve(host_ref, HostSystem) if host_ref else None
    if pool_ref is not None:
        pool = call.resolve(pool_ref, ResourcePool)
    elif host is not None:
        pool = host.compute.root_pool
    else:
        raise vmodl.fault.InvalidArgument(msg="A pool is needed.", invalidProperty="pool")
    hosts = pool.owner_resource.hosts
    if host is None and hosts:
        host = min(hosts, key=lambda one: len(one.machines()))
    if host is None or host not in hosts or pool.datacenter() is not home:
        raise vmodl.fault.InvalidArgument(
            msg="The host and the pool do not fit.", invalidProperty="host"
        )
    return Placement(home.library, home, pool, host)


def create_machine(folder: Folder, placement: Placement, spec: Any) -> EngineMachine:
    """Make a machine of a ConfigSpec; nothing is left when it fails. Raises faults."""
    from lab.vcenter.virtual_machine_engine import EngineMachine
    from lab.vcenter.virtual_machine_spec import reconfigure_request
    from lab.vcenter.virtual_machine_view import network_name

    library, home = placement.library, placement.home
    with host_faults():
        name = plain_name(spec.name or "")
        check_name(name)
        vmx_path = _new_vmx_path(library, name, spec.files)
        config = new_config(name, vmx_path)
        request = reconfigure_request(spec, None, lambda backing: network_name(home, backing))
        vm_id = folder.vcenter.registry.allocate("vm")
        engine = library.create(vm_id, replace(config, controllers=_IDE))
        try:
            reconfigure(engine, request)
        except BaseException:
            library.destroy(engine)
            raise
    return EngineMachine(engine, library, folder=folder, pool=placement.pool, host=placement.host)


def register_machine(
    folder: Folder,
    placement: Placement,
    vmx_path: DatastorePath,
    name: str | None,
    *,
    template: bool,
) -> EngineMachine:
    """Raises faults."""
    from lab.vcenter.virtual_machine_engine import EngineMachine

    with host_faults():
        vm_id = folder.vcenter.registry.allocate("vm")
        engine = placement.library.register(vm_id, vmx_path, name)
        taken = [vm.config.instance_uuid for vm in placement.library.list() if vm is not engine]
        engine.settle_identity(taken, template=template)
    return EngineMachine(
        engine, placement.library, folder=folder, pool=placement.pool, host=placement.host
    )


def _new_vmx_path(library: VmLibrary, name: str, files: Any) -> DatastorePath:
    """`[ds]` means a folder of the machine's name; a folder, its .vmx in it."""
    if files is None or not files.vmPathName:
        raise vmodl.fault.InvalidArgument(
            msg="The machine has no place.", invalidProperty="configSpec.files.vmPathName"
        )
    path = DatastorePath.parse(files.vmPathName)
    datastores = library.site.datastores
    datastores.get(path.datastore)
    if path.name.endswith(".vmx"):
        return path
    stem = name.replace("/", "_")
    if path.path:
        return path.child(f"{stem}.vmx")
    folder, number = path.child(stem), 0
    while datastores.exists(folder):
        number += 1
        folder = path.child(f"{stem}_{number}")
    return folder.child(f"{stem}.vmx")
