"""SearchIndex: one entity by uuid, path, datastore path, address or name.

What the caller may not view is not found. An answer of None is "nothing there", never a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pyVmomi import vim

from lab.vcenter.call import Call
from lab.vcenter.folders import Datacenter
from lab.vcenter.hosts import HostSystem
from lab.vcenter.managed_object import LabObject, ManagedEntity, method
from lab.vcenter.virtual_machine import VirtualMachine


class SearchIndex(LabObject):
    vim_type = vim.SearchIndex

    @method("FindByUuid")
    def find_by_uuid(
        self, call: Call, datacenter: Any, uuid: str, vm_search: bool, instance: bool | None
    ) -> Any:
        return _first(self._by_uuid(call, datacenter, uuid, vm_search, instance))

    @method("FindAllByUuid")
    def find_all_by_uuid(
        self, call: Call, datacenter: Any, uuid: str, vm_search: bool, instance: bool | None
    ) -> Any:
        return list(self._by_uuid(call, datacenter, uuid, vm_search, instance))

    def _by_uuid(
        self, call: Call, datacenter: Any, uuid: str, vm_search: bool, instance: bool | None
    ) -> Iterator[Any]:
        wanted = uuid.lower()
        if not vm_search:
            return self._matching(
                call, datacenter, HostSystem, lambda h: h.get("hardware").systemInfo.uuid == wanted
            )
        field = "instanceUuid" if instance else "uuid"
        return self._matching(
            call, datacenter, VirtualMachine, lambda vm: _config(vm, field) == wanted
        )

    @method("FindByDatastorePath")
    def find_by_datastore_path(self, call: Call, datacenter: Any, path: str) -> Any:
        def fits(machine: LabObject) -> bool:
            config = machine.get("config")
            return config is not None and config.files.vmPathName == path

        return _first(self._matching(call, datacenter, VirtualMachine, fits))

    @method("FindByDnsName")
    def find_by_dns_name(self, call: Call, datacenter: Any, name: str, vm_search: bool) -> Any:
        return _first(self._guests(call, datacenter, "hostName", name, vm_search))

    @method("FindAllByDnsName")
    def find_all_by_dns_name(self, call: Call, datacenter: Any, name: str, vm_search: bool) -> Any:
        return list(self._guests(call, datacenter, "hostName", name, vm_search))

    @method("FindByIp")
    def find_by_ip(self, call: Call, datacenter: Any, address: str, vm_search: bool) -> Any:
        return _first(self._guests(call, datacenter, "ipAddress", address, vm_search))

    @method("FindAllByIp")
    def find_all_by_ip(self, call: Call, datacenter: Any, address: str, vm_search: bool) -> Any:
        return list(self._guests(call, datacenter, "ipAddress", address, vm_search))

    def _guests(
        self, call: Call, datacenter: Any, field: str, value: str, vm_search: bool
    ) -> Iterator[Any]:
        if not vm_search:
            return self._matching(call, datacenter, HostSystem, lambda host: _name(host) == value)

        def fits(machine: LabObject) -> bool:
            return getattr(machine.get("guest"), field, None) == value

        return self._matching(call, datacenter, VirtualMachine, fits)

    @method("FindByInventoryPath")
    def find_by_inventory_path(self, call: Call, path: str) -> Any:
        entity: ManagedEntity | None = self.vcenter.root_folder
        for name in path.strip("/").split("/"):
            if entity is None or not name:
                return None
            entity = _child(entity, name)
        return entity.ref if entity is not None and call.may("System.View", entity) else None

    @method("FindChild")
    def find_child(self, call: Call, ref: Any, name: str) -> Any:
        child = _child(call.resolve(ref, ManagedEntity), name)
        return child.ref if child is not None and call.may("System.View", child) else None

    def _matching(
        self,
        call: Call,
        datacenter: Any,
        kind: type[ManagedEntity],
        fits: Callable[[ManagedEntity], bool],
    ) -> Iterator[Any]:
        home = call.resolve(datacenter, Datacenter) if datacenter is not None else None
        for entity in self.vcenter.registry.all(kind):
            if not fits(entity) or not call.may("System.View", entity):
                continue
            if home is None or entity.datacenter() is home:
                yield entity.ref


def _child(entity: ManagedEntity, name: str) -> ManagedEntity | None:
    """Names in paths have their slashes escaped, as in the inventory."""
    return next((c for c in entity.children() if c.name in (name, name.replace("%2f", "/"))), None)


def _first(found: Iterator[Any]) -> Any:
    return next(found, None)


def _name(entity: ManagedEntity) -> str:
    return entity.name


def _config(machine: LabObject, field: str) -> Any:
    config = machine.get("config")
    return getattr(config, field, None) if config is not None else None
