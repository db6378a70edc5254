"""Folders and datacenters: the tree that holds everything else."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from lab.vcenter.call import Call
from lab.vcenter.managed_object import ManagedEntity, computed, method
from lab.vcenter.names import check_new_name
from lab.vcenter.tasks import TaskControl
from lab.vcenter.virtual_machine_folder import MachineFolder

if TYPE_CHECKING:
    from lab.esx.vm_library import VmLibrary
    from lab.vcenter.lab_vcenter import LabVcenter

CHILD_TYPES: dict[str, list[Any]] = {
    "group-d": [vim.Folder, vim.Datacenter],
    "group-v": [vim.Folder, vim.VirtualMachine, vim.VirtualApp],
    "group-h": [vim.Folder, vim.ComputeResource],
    "group-s": [vim.Folder, vim.Datastore, vim.StoragePod],
    "group-n": [vim.Folder, vim.Network, vim.DistributedVirtualSwitch],
}


class Folder(MachineFolder, ManagedEntity):
    """`kind` is one of the keys of CHILD_TYPES, and begins the folder's id."""

    vim_type = vim.Folder

    def __init__(
        self, vcenter: LabVcenter, name: str, parent: ManagedEntity | None, kind: str
    ) -> None:
        super().__init__(vcenter, name, parent, vcenter.registry.allocate(kind))
        self.kind = kind
        self._children: list[ManagedEntity] = []
        self.set(childType=list(CHILD_TYPES[kind]))

    def children(self) -> list[ManagedEntity]:
        return list(self._children)

    def add(self, child: ManagedEntity) -> None:
        """Take a child in; it leaves the folder it was in."""
        with self.vcenter.registry.lock:
            before = child.parent
            if isinstance(before, Folder) and child in before._children:
                before._children.remove(child)
                before.touch()
            child.parent = self
            self._children.append(child)
            child.touch()
            self.touch()
        self.vcenter.accounts.tree_changed()

    def remove(self, child: ManagedEntity) -> None:
        """Take a child out of the tree; the child itself stays registered."""
        with self.vcenter.registry.lock:
            if child in self._children:
                self._children.remove(child)
                self.touch()

    @computed("childEntity")
    def _child_entity(self, call: Call | None) -> Any:
        return [
            child.ref for child in self._children if call is None or call.may("System.View", child)
        ]

    @method("CreateFolder")
    def create_folder(self, _call: Call, name: str) -> Any:
        with self.vcenter.registry.lock:
            check_new_name(self, name)
            folder = Folder(self.vcenter, name, self, self.kind)
            self.add(folder)
        return folder.ref

    @method("CreateDatacenter")
    def create_datacenter(self, _call: Call, name: str) -> Any:
        if self.kind != "group-d":
            raise vmodl.fault.NotSupported(msg="This folder does not hold datacenters.")
        with self.vcenter.registry.lock:
            check_new_name(self, name)
            datacenter = Datacenter(self.vcenter, name, self)
            self.add(datacenter)
        return datacenter.ref

    @method("MoveIntoFolder_Task", privilege=None)
    def move_into(self, call: Call, refs: list[Any]) -> Any:
        moved = [call.resolve(ref, ManagedEntity) for ref in refs]
        for entity in moved:
            call.require(move_privilege(entity), entity, self)
            if not issubclass(entity.vim_type, tuple(CHILD_TYPES[self.kind])):
                raise vmodl.fault.NotSupported(msg=f"{entity.name} cannot be in this folder.")
            if entity is self or entity in self.ancestors():
                raise vmodl.fault.InvalidArgument(
                    msg="A folder cannot be moved into itself.", invalidProperty="list"
                )

        def work(_task: TaskControl) -> None:
            for entity in moved:
                check_new_name(self, entity.name, renamed=entity)
                self.add(entity)

        return call.start_task(self, work)

    @method("Destroy_Task", privilege="Folder.Delete")
    def destroy(self, call: Call) -> Any:
        if self.parent is None or isinstance(self.parent, Datacenter):
            raise vmodl.fault.NotSupported(msg="This folder belongs to the inventory.")

        def work(_task: TaskControl) -> None:
            if self._children:
                raise vim.fault.ResourceInUse(
                    msg="The folder is not empty.", type=vim.Folder, name=self.name
                )
            drop(self)

        return call.start_task(self, work)


def move_privilege(entity: ManagedEntity) -> str:
    kinds = {
        vim.VirtualMachine: "VirtualMachine.Inventory.Move",
        vim.Datastore: "Datastore.Move",
        vim.Network: "Network.Move",
        vim.ClusterComputeResource: "Host.Inventory.MoveCluster",
    }
    for kind, privilege in kinds.items():
        if issubclass(entity.vim_type, kind):
            return privilege
    return "Folder.Move"


def drop(entity: ManagedEntity) -> None:
    """Take an entity out of its folder and the inventory."""
    if isinstance(entity.parent, Folder):
        entity.parent.remove(entity)
    entity.unregister()


class Datacenter(ManagedEntity):
    vim_type = vim.Datacenter
    moid_prefix = "datacenter"

    def __init__(self, vcenter: LabVcenter, name: str, parent: Folder) -> None:
        super().__init__(vcenter, name, parent)
        self.library: VmLibrary | None = None  # with it, machines of this datacenter run
        self.mounting = threading.Lock()  # one change of what hosts have mounted at a time
        self.vm_folder = Folder(vcenter, "vm", self, "group-v")
        self.host_folder = Folder(vcenter, "host", self, "group-h")
        self.datastore_folder = Folder(vcenter, "datastore", self, "group-s")
        self.network_folder = Folder(vcenter, "network", self, "group-n")
        self.set(
            vmFolder=self.vm_folder.ref,
            hostFolder=self.host_folder.ref,
            datastoreFolder=self.datastore_folder.ref,
            networkFolder=self.network_folder.ref,
            configuration=vim.Datacenter.ConfigInfo(),
        )

    def children(self) -> list[ManagedEntity]:
        return [self.vm_folder, self.host_folder, self.datastore_folder, self.network_folder]

    def rename_privilege(self) -> str:
        return "Datacenter.Rename"

    def below(self, folder: Folder, kind: type[ManagedEntity]) -> list[ManagedEntity]:
        """Every entity of a class in a folder and the folders in it."""
        found: list[ManagedEntity] = []
        for child in folder.children():
            if isinstance(child, Folder):
                found.extend(self.below(child, kind))
            elif isinstance(child, kind):
                found.append(child)
        return found

    @computed("datastore")
    def _datastore(self, _call: Call | None) -> Any:
        return [thing.ref for thing in self.below(self.datastore_folder, ManagedEntity)]

    @computed("network")
    def _network(self, _call: Call | None) -> Any:
        return [
            thing.ref
            for thing in self.below(self.network_folder, ManagedEntity)
            if issubclass(thing.vim_type, vim.Network)
        ]

    @method("PowerOnMultiVM_Task")
    def power_on_many(self, call: Call, refs: list[Any], _option: list[Any]) -> Any:
        from lab.vcenter.virtual_machine import VirtualMachine

        machines = [call.resolve(ref, VirtualMachine) for ref in refs]

        def work(_task: TaskControl) -> Any:
            attempts = []
            for machine in machines:
                task = machine.start_power_on(call)
                attempts.append(vim.cluster.AttemptedVmInfo(vm=machine.ref, task=task))
            return vim.cluster.PowerOnVmResult(attempted=attempts)

        return call.start_task(self, work)

    @method("Destroy_Task", privilege="Datacenter.Delete")
    def destroy(self, call: Call) -> Any:
        def work(_task: TaskControl) -> None:
            if any(folder.children() for folder in self.children()):
                raise vim.fault.ResourceInUse(
                    msg="The datacenter is not empty.", type=vim.Datacenter, name=self.name
                )
            for folder in self.children():
                folder.unregister()
            drop(self)

        return call.start_task(self, work)
