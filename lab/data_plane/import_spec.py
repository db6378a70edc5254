"""OVF package → VmImportSpec, and the keys by which an import's uploads are known.

`import_files` is used twice: for the file items of CreateImportSpec and for the device URLs of
the lease, which agree because both are made from the ConfigSpec alone.
Source: vSphere Web Services API, OvfManager, HttpNfcLease; design notes on vSphere, section 4c.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pyVmomi import vim

from lab.data_plane.ovf import OvfDisk, OvfError, OvfItem, OvfPackage, ResourceType
from lab.data_plane.ovf_properties import ENVIRONMENT_KEY, GUEST_INFO, environment

_DISK_URI = "ovf:/disk/"
_FILE_URI = "ovf:/file/"
_IDE_KEYS = (200, 201)
_SCSI = {
    "": vim.vm.device.VirtualLsiLogicController,
    "lsilogic": vim.vm.device.VirtualLsiLogicController,
    "lsilogicsas": vim.vm.device.VirtualLsiLogicSASController,
    "virtualscsi": vim.vm.device.ParaVirtualSCSIController,
    "buslogic": vim.vm.device.VirtualBusLogicController,
}
_OTHER = {
    "vmware.sata.ahci": vim.vm.device.VirtualAHCIController,
    "ahci": vim.vm.device.VirtualAHCIController,
    "vmware.nvme.controller": vim.vm.device.VirtualNVMEController,
}
_NICS = {
    "": vim.vm.device.VirtualVmxnet3,
    "vmxnet3": vim.vm.device.VirtualVmxnet3,
    "e1000": vim.vm.device.VirtualE1000,
    "e1000e": vim.vm.device.VirtualE1000e,
}


class FileKind(StrEnum):
    DISK = "disk"
    CD = "cd"
    NVRAM = "nvram"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFile:
    """One upload; `device_key` is the (temporary) key in the ConfigSpec, None for nvram."""

    key: str
    kind: FileKind
    device_key: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecOptions:
    """What the caller of CreateImportSpec chose; networks by their name in the descriptor."""

    name: str
    datastore_name: str
    thin: bool
    eager: bool
    networks: Mapping[str, str]
    properties: Mapping[str, str] = field(default_factory=dict)


def build_config_spec(package: OvfPackage, options: SpecOptions) -> Any:
    """A ConfigSpec with temporary negative keys. Raises OvfError, PropertyMappingError."""
    extra = dict(package.extra_config)
    told = environment(package.properties, options.properties)
    if package.properties and GUEST_INFO in package.transports:
        extra[ENVIRONMENT_KEY] = told
    spec: Any = vim.vm.ConfigSpec(
        name=options.name,
        guestId=package.os_type or "otherGuest",
        version=package.hardware_version or None,
        firmware=package.config.get("firmware"),
        files=vim.vm.FileInfo(vmPathName=f"[{options.datastore_name}]"),
        extraConfig=[vim.option.OptionValue(key=key, value=value) for key, value in extra.items()],
        numCPUs=1,
        memoryMB=128,
    )
    if package.config.get("bootOptions.efiSecureBootEnabled", "").lower() == "true":
        spec.bootOptions = vim.vm.BootOptions(efiSecureBootEnabled=True)
    builder = _Devices(package, options)
    for item in package.items:
        if item.type == ResourceType.CPU:
            spec.numCPUs = item.quantity
        elif item.type == ResourceType.MEMORY:
            spec.memoryMB = item.quantity * item.units_bytes >> 20
        else:
            builder.add(item)
    spec.deviceChange = builder.changes
    return spec


class _Devices:
    def __init__(self, package: OvfPackage, options: SpecOptions) -> None:
        self.changes: list[Any] = []
        self._package = package
        self._options = options
        self._keys: dict[str, int] = {}  # by instance id
        self._controllers: dict[type[Any], int] = {}  # how many of a class

    def add(self, item: OvfItem) -> None:
        if item.type == ResourceType.SCSI:
            self._controller(item, _choose(_SCSI, item), sharedBus="noSharing")
        elif item.type == ResourceType.IDE:
            self._controller(item, vim.vm.device.VirtualIDEController)
        elif item.type == ResourceType.OTHER_STORAGE:
            self._controller(item, _choose(_OTHER, item))
        elif item.type == ResourceType.DISK:
            self._disk(item)
        elif item.type == ResourceType.NETWORK:
            self._network(item)
        elif item.type in (ResourceType.CD, ResourceType.DVD):
            self._cd(item)

    def _append(self, item: OvfItem, device: Any, file_operation: str | None = None) -> None:
        device.key = -(100 + len(self.changes))
        self._keys[item.instance_id] = device.key
        change: Any = vim.vm.device.VirtualDeviceSpec(operation="add", device=device)
        if file_operation is not None:
            change.fileOperation = file_operation
        self.changes.append(change)

    def _controller(self, item: OvfItem, cls: type[Any], **fields: str) -> None:
        count = self._controllers.get(cls, 0)
        self._controllers[cls] = count + 1
        self._append(item, cls(busNumber=count, **fields))

    def _place(self, item: OvfItem) -> dict[str, int]:
        if item.parent not in self._keys:
            raise OvfError("OvfInvalidPackage", f"item {item.instance_id} has no parent")
        unit = int(item.address_on_parent) if item.address_on_parent.isdigit() else 0
        return {"controllerKey": self._keys[item.parent], "unitNumber": unit}

    def _disk(self, item: OvfItem) -> None:
        disk = self._disk_of(item)
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="",
            diskMode="persistent",
            thinProvisioned=self._options.thin,
            eagerlyScrub=self._options.eager or None,
        )
        device = vim.vm.device.VirtualDisk(
            backing=backing,
            capacityInBytes=disk.capacity_bytes,
            capacityInKB=-(-disk.capacity_bytes // 1024),
            **self._place(item),
        )
        self._append(item, device, "create")

    def _disk_of(self, item: OvfItem) -> OvfDisk:
        disk_id = item.host_resource.removeprefix(_DISK_URI).removeprefix("/disk/")
        disk = self._package.disks.get(disk_id)
        if disk is None:
            raise OvfError("OvfInvalidPackage", f"no disk {disk_id}")
        return disk

    def _network(self, item: OvfItem) -> None:
        cls = _choose(_NICS, item)
        name = self._options.networks.get(item.connection, item.connection)
        backing = vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName=name)
        connectable = vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=True, allowGuestControl=True, connected=False
        )
        self._append(item, cls(backing=backing, connectable=connectable, addressType="generated"))

    def _cd(self, item: OvfItem) -> None:
        has_file = item.host_resource.startswith(_FILE_URI)
        if has_file:
            backing: Any = vim.vm.device.VirtualCdrom.IsoBackingInfo(fileName="")
        else:
            backing = vim.vm.device.VirtualCdrom.RemotePassthroughBackingInfo(
                deviceName="", exclusive=False
            )
        device = vim.vm.device.VirtualCdrom(backing=backing, **self._place(item))
        self._append(item, device)


def _choose(table: Mapping[str, type[Any]], item: OvfItem) -> type[Any]:
    cls = table.get(item.sub_type.lower())
    if cls is None:
        raise OvfError("OvfUnsupportedSubType", f"unsupported device {item.sub_type[:80]!r}")
    return cls


def import_files(spec: Any) -> Iterator[ImportFile]:
    """What must be uploaded for a ConfigSpec: its new disks, then ISO images, then nvram."""
    devices = [change.device for change in spec.deviceChange or [] if change.operation == "add"]
    by_key = {device.key: device for device in devices}
    creates = {
        change.device.key for change in spec.deviceChange or [] if change.fileOperation == "create"
    }
    for device in devices:
        if isinstance(device, vim.vm.device.VirtualDisk) and device.key in creates:
            key = _device_name(device, by_key)
            yield ImportFile(key=f"/{spec.name}/{key}", kind=FileKind.DISK, device_key=device.key)
    for device in devices:
        backing = getattr(device, "backing", None)
        if isinstance(backing, vim.vm.device.VirtualCdrom.IsoBackingInfo) and not backing.fileName:
            key = _device_name(device, by_key)
            yield ImportFile(key=f"/{spec.name}/{key}", kind=FileKind.CD, device_key=device.key)
    for option in spec.extraConfig or []:
        if option.key == "nvram" and str(option.value).startswith(_FILE_URI):
            yield ImportFile(key=f"/{spec.name}/nvram", kind=FileKind.NVRAM, device_key=None)


def engine_spec(spec: Any) -> Any:
    """The spec as a host makes the VM of it: uploads are files of the VM's folder by then.

    CD and floppy drives are left out: the lab has none, and a package that brings an ISO image
    is imported all the same.
    """
    made = copy.copy(spec)
    drives = vim.vm.device.VirtualCdrom | vim.vm.device.VirtualFloppy
    made.deviceChange = [c for c in spec.deviceChange or [] if not isinstance(c.device, drives)]
    made.extraConfig = [
        option for option in spec.extraConfig or [] if not str(option.value).startswith(_FILE_URI)
    ]
    return made


def _device_name(device: Any, by_key: Mapping[int, Any]) -> str:
    """Like `ParaVirtualSCSIController0:1`."""
    controller = by_key.get(device.controllerKey)
    if controller is None and device.controllerKey in _IDE_KEYS:  # every VM has them
        return f"VirtualIDEController{device.controllerKey - _IDE_KEYS[0]}:{device.unitNumber or 0}"
    if controller is None:
        return f"Controller{device.controllerKey}:{device.unitNumber or 0}"
    name = type(controller).__name__.rpartition(".")[2]
    return f"{name}{controller.busNumber}:{device.unitNumber or 0}"


def file_items(package: OvfPackage, spec: Any) -> list[Any]:
    """OvfManager.FileItem for every file of the package that an import needs."""
    hrefs = _hrefs(package)
    items = []
    for wanted in import_files(spec):
        file = hrefs.get(wanted.kind, [])
        source = file.pop(0) if file else None
        if source is None:
            continue  # an empty disk is created, nothing is uploaded
        items.append(
            vim.OvfManager.FileItem(
                deviceId=wanted.key,
                path=source.href,
                size=source.size_bytes,
                cimType=ResourceType.DISK if wanted.kind is FileKind.DISK else ResourceType.CD,
                create=wanted.kind is not FileKind.DISK,
            )
        )
    return items


def _hrefs(package: OvfPackage) -> dict[FileKind, list[Any]]:
    """Files in the order in which `import_files` names their devices; None for an empty disk."""
    disks = [
        package.disks[item.host_resource.rpartition("/")[2]].file
        for item in package.items
        if item.type == ResourceType.DISK
    ]
    isos = [
        package.files.get(item.host_resource.removeprefix(_FILE_URI))
        for item in package.items
        if item.type in (ResourceType.CD, ResourceType.DVD)
        and item.host_resource.startswith(_FILE_URI)
    ]
    nvram = package.extra_config.get("nvram", "").removeprefix(_FILE_URI)
    return {
        FileKind.DISK: list(disks),
        FileKind.CD: isos,
        FileKind.NVRAM: [package.files.get(nvram)],
    }
