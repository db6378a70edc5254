"""Everything about a VM but its disks' content, as one JSON document: enough to build it again
elsewhere.

Schema `vsphere-1`, a JSON object: `schema`; `source` (server and host, with builds); `vm` (names
and ids); `config` (vSphere's own configuration, raw, unset values left out; of the snapshot if one
is named, so that it fits the frozen disks); `files` (`vmx` and `nvram`: name, base64); `nics` (with
the names of their networks); `custom_attributes`; `tags`; `placement`; `not_captured`. Invariants:
ids that mean nothing on another vCenter stand beside names that do; every size is bounded; a part
that cannot be had is listed in `not_captured` with a code and a reason, and does not fail the rest.
Blocks; keeps no state.
Source: design notes section 1, “What to record so a VM can be rebuilt elsewhere”.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from pyVmomi import vim
from pyVmomi.VmomiJSONEncoder import VmomiJSONEncoder

from vmware.datastore_files import read_small_file
from vmware.datastore_path import DatastorePath
from vmware.datastores import datastores_of
from vmware.errors import FileFaultError, ObjectGoneError, ProtocolError, VsphereError
from vmware.inventory import VmInfo, read_vm
from vmware.networks import NetworkInfo, read_networks
from vmware.places import Places, Reference
from vmware.properties import Record, Wanted, fetch_one, read_some
from vmware.rest import RestSession
from vmware.session import Session
from vmware.soap_tree import VIM
from vmware.tags import Tag, Tags

SCHEMA = "vsphere-1"

CONFIG_BYTES_MAX = 8 << 20
VMX_BYTES_MAX = 1 << 20
NVRAM_BYTES_MAX = 8 << 20

_Json = dict[str, Any]


def capture(
    session: Session, vm_moref: str, snapshot_moref: str | None, *, tags: Tags | None = None
) -> _Json:
    """The document.

    Args:
        snapshot_moref: whose configuration to take; None: the present one.
        tags: an open view of the tags; None: log in for them, where there are any.

    Raises:
        ObjectGoneError: no such VM or snapshot.
        VsphereError: the configuration itself cannot be read.
    """
    vm = read_vm(session, vm_moref)
    config = _config(session, vm_moref, snapshot_moref)
    run = _Capture(session, vm, config)
    return {
        "schema": SCHEMA,
        "source": run.part("source", run.source),
        "vm": {
            "moref": vm.moref,
            "name": vm.name,
            "instance_uuid": vm.instance_uuid,
            "bios_uuid": vm.bios_uuid,
            "power": vm.power.value,
            "template": vm.template,
            "snapshot": snapshot_moref,
        },
        "config": plain_json(config),
        "files": {"vmx": run.part("vmx", run.vmx), "nvram": run.part("nvram", run.nvram)},
        "nics": run.part("nics", run.nics),
        "custom_attributes": run.part("custom_attributes", run.custom_attributes),
        "tags": run.part("tags", lambda: run.tags(tags)),
        "placement": run.part("placement", run.placement),
        "storage_policies": run.leave_out(
            "storage_policies",
            "config.storage-policies",
            "storage policies are not read; assign them again after a restore",
        ),
        "not_captured": run.not_captured,
    }


def plain_json(value: Any) -> Any:
    """A pyVmomi value as JSON values, its type under `_vimtype`; unset properties are left out.

    Raises:
        ProtocolError: it is larger than `CONFIG_BYTES_MAX`.
    """
    text = json.dumps(value, cls=VmomiJSONEncoder, strip_dynamic=True)
    if len(text) > CONFIG_BYTES_MAX:
        raise ProtocolError(f"a configuration of {len(text)} bytes")
    return _without_unset(json.loads(text))


class _Capture:
    """One run: what it captures from, and what it could not."""

    def __init__(self, session: Session, vm: VmInfo, config: Any) -> None:
        self._session = session
        self._vm = vm
        self._config = config
        self._target = session.object(vim.VirtualMachine, vm.moref)
        self.not_captured: list[_Json] = []

    def part(self, name: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except VsphereError as error:
            return self.leave_out(name, error.code, str(error))

    def leave_out(self, name: str, code: str, text: str) -> Any:
        """What stands for a part that is not there: null."""
        self.not_captured.append({"part": name, "code": code, "text": text})
        return None

    def source(self) -> _Json:
        host = self._session.object(vim.HostSystem, self._vm.host_moref)
        paths = ("config.product.fullName", "config.product.version", "config.product.build")
        product = fetch_one(self._session, "read the host's version", host, paths).values
        about = self._session.about
        return {
            "name": about.name,
            "version": about.version,
            "build": about.build,
            "api_type": about.api_type,
            "instance_uuid": about.instance_uuid,
            "host": {
                "name": self._vm.host_name,
                "product": product.get(paths[0], ""),
                "version": product.get(paths[1], ""),
                "build": product.get(paths[2], ""),
            },
        }

    def vmx(self) -> _Json:
        return self._file(DatastorePath.parse(self._vmx_name()), VMX_BYTES_MAX)

    def nvram(self) -> _Json | None:
        """None for a VM that has none: BIOS, never powered on."""
        name = self._nvram_name()
        if name is None:
            if str(self._config.firmware or "") == "efi":
                raise FileFaultError("the VM names no NVRAM file, and boots by EFI")
            return None
        return self._file(DatastorePath.parse(self._vmx_name()).sibling(name), NVRAM_BYTES_MAX)

    def nics(self) -> list[_Json]:
        cards = [
            device
            for device in self._config.hardware.device
            if isinstance(device, vim.vm.device.VirtualEthernetCard)
        ]
        what = "read the VM's networks"
        used = fetch_one(self._session, what, self._target, ("network",)).values.get("network", ())
        networks = read_networks(self._session, list(used))
        return [_nic(card, networks) for card in cards]

    def custom_attributes(self) -> list[_Json]:
        manager = self._session.content.customFieldsManager
        if manager is None:  # ESXi has none
            return []
        what, path = "read custom attributes", "customValue"
        wanted = [Wanted(kind=type(manager), paths=("field",))]
        known: dict[str, tuple[str, str]] = {}
        for fields in read_some(self._session, what, [manager], wanted, _attribute_fields):
            known |= fields
        found = []
        values = fetch_one(self._session, what, self._target, (path,)).values
        for item in values.get(path, ()):
            name, object_type = known.get(str(item.key), (f"field {item.key}", ""))
            found.append({"name": name, "value": item.value, "object_type": object_type})
        return sorted(found, key=lambda item: str(item["name"]))

    def tags(self, known: Tags | None) -> list[_Json]:
        if not self._session.is_vcenter:
            return []
        if known is not None:
            return [asdict(tag) for tag in self._tags_of(known)]
        with RestSession.connect(self._session) as rest:
            return [asdict(tag) for tag in self._tags_of(Tags(rest))]

    def placement(self) -> _Json:
        vm = self._vm
        places = Places()
        pool = Reference(kind="ResourcePool", moref=vm.resource_pool_moref)
        if pool.moref:  # a template has none
            places.learn(self._session, [pool])
        return {
            "folder_path": vm.folder_path,
            "datacenter_path": vm.datacenter_path,
            "resource_pool_path": places.path(pool.moref),
            "host": vm.host_name,
            "cluster": vm.cluster_name,
            "datastores": [
                {"name": item.name, "kind": item.kind, "url": item.url}
                for item in datastores_of(self._session, vm.moref)
            ],
            "cluster_rules": self._cluster_rules(places),
        }

    def _cluster_rules(self, places: Places) -> list[Any]:
        """DRS rules and HA settings of the cluster that name this VM, raw."""
        cluster = places.above(self._vm.resource_pool_moref, "ClusterComputeResource")
        if cluster is None:
            return []
        target = self._session.object(vim.ClusterComputeResource, cluster.moref)
        path = "configurationEx"
        read = fetch_one(self._session, "read cluster rules", target, (path,)).values.get(path)
        rules = [
            rule
            for rule in getattr(read, "rule", ())
            if self._vm.moref in map(_moref, getattr(rule, "vm", ()))
        ]
        overrides = [
            entry
            for name in ("dasVmConfig", "drsVmConfig")
            for entry in getattr(read, name, ())
            if _moref(entry.key) == self._vm.moref
        ]
        found: list[Any] = plain_json([*rules, *overrides])
        return found

    def _tags_of(self, tags: Tags) -> Sequence[Tag]:
        return tags.of_vms([self._vm.moref])[self._vm.moref]

    def _vmx_name(self) -> str:
        return str(self._config.files.vmPathName or self._vm.vmx_file_name)

    def _nvram_name(self) -> str | None:
        named = [item.value for item in self._config.extraConfig if item.key == "nvram"]
        if named and named[0]:
            return str(named[0])
        path = "layoutEx.file"
        read = fetch_one(self._session, "look for the NVRAM file", self._target, (path,))
        files = [item.name for item in read.values.get(path, ()) if str(item.type) == "nvram"]
        return DatastorePath.parse(files[0]).name if files else None

    def _file(self, path: DatastorePath, max_bytes: int) -> _Json:
        content = read_small_file(self._session, self._vm.datacenter_path, path, max_bytes)
        return {
            "name": str(path),
            "size_bytes": len(content),
            "base64": base64.b64encode(content).decode(),
        }


def _config(session: Session, vm_moref: str, snapshot_moref: str | None) -> Any:
    holder: Any = (
        session.object(vim.VirtualMachine, vm_moref)
        if snapshot_moref is None
        else session.object(vim.vm.Snapshot, snapshot_moref)
    )
    read = fetch_one(session, f"read the configuration of {vm_moref}", holder, ("config",))
    config = read.values.get("config")
    if config is None:
        raise ObjectGoneError(f"{vm_moref} has no configuration now: {dict(read.unreadable)}")
    return config


def _attribute_fields(record: Record) -> dict[str, tuple[str, str]]:
    """Name and type of object (empty: any) by key. As XML: pyVmomi rejects those of any type."""
    return {
        field.findtext(f"{VIM}key", ""): (
            field.findtext(f"{VIM}name", ""),
            field.findtext(f"{VIM}managedObjectType", ""),
        )
        for field in record.values.get("field", ())
    }


def _nic(card: Any, networks: Sequence[NetworkInfo]) -> _Json:
    network = _network_of(card.backing, networks)
    connectable = card.connectable
    return {
        "key": card.key,
        "label": getattr(card.deviceInfo, "label", None) or "",
        "type": card._wsdlName,
        "mac": card.macAddress or "",
        "address_type": card.addressType or "",
        "start_connected": bool(getattr(connectable, "startConnected", True)),
        "backing": card.backing._wsdlName if card.backing is not None else "",
        "network": asdict(network) if network else None,
        "network_name": network.name if network else _device_name(card.backing),
    }


def _network_of(backing: Any, networks: Sequence[NetworkInfo]) -> NetworkInfo | None:
    port = getattr(backing, "port", None)
    opaque = getattr(backing, "opaqueNetworkId", None)
    standard = getattr(backing, "network", None)
    for network in networks:
        if port is not None:
            if network.portgroup_key == port.portgroupKey:
                return network
        elif opaque:
            if network.opaque_id == opaque:
                return network
        elif standard is not None and network.moref == _moref(standard):
            return network
    named = [item for item in networks if item.name == _device_name(backing)]
    return named[0] if len(named) == 1 and port is None and not opaque else None


def _device_name(backing: Any) -> str:
    return str(getattr(backing, "deviceName", None) or "")


def _moref(target: Any) -> str:
    return str(target._GetMoId())


def _without_unset(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_unset(item)
            for key, item in value.items()
            if item is not None and item != []
        }
    return [_without_unset(item) for item in value] if isinstance(value, list) else value
