"""Virtual disks of a VM as data, and why one cannot be protected.

Read from a device list: pyVmomi's of `snapshot.config` (the frozen state, the one to transfer by)
or XML's of the inventory; both end in the same `DiskInfo`. Pure.
Source: design notes sections 1 to 3; vSphere API reference, VirtualDisk and its backings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

from pyVmomi import VmomiSupport, vim

from vmware.soap_tree import VIM, type_of

_CHAIN_MAX = 64  # vSphere allows 32 levels
_FAMILIES = {
    "VirtualSCSIController": "scsi",
    "VirtualSATAController": "sata",
    "VirtualIDEController": "ide",
    "VirtualNVMEController": "nvme",
    "VirtualNVDIMMController": "nvdimm",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskInfo:
    """One virtual disk. Types carry their WSDL names; what the backing does not say is empty."""

    key: int
    label: str  # “Hard disk 1”
    controller_key: int
    controller_type: str  # `ParaVirtualSCSIController`; empty: the controller is not in the list
    controller_family: str  # scsi, sata, ide, nvme, nvdimm, or empty
    bus_number: int
    unit_number: int
    capacity_bytes: int
    file_name: str  # `[datastore] folder/file.vmdk`, of the leaf
    backing_uuid: str
    disk_mode: str  # `persistent`, `independent_persistent`, …
    sharing: str  # `sharingNone`, `sharingMultiWriter`
    backing_type: str  # `VirtualDiskFlatVer2BackingInfo`
    change_id: str  # empty: changed block tracking is not active for this disk (in this snapshot)
    rdm_compatibility: str  # `physicalMode`, `virtualMode`
    shared_bus: str  # of the controller: `noSharing`, `virtualSharing`, `physicalSharing`
    thin: bool  # allocated as written
    key_id: str  # of the encryption key
    vdisk_id: str  # of a first-class disk
    chain: tuple[str, ...]  # file names, leaf first, base last

    @property
    def address(self) -> str:
        """`scsi0:1`, as .vmx files name it."""
        return f"{self.controller_family}{self.bus_number}:{self.unit_number}"

    @property
    def datastore_name(self) -> str:
        return split_file_name(self.file_name)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why something cannot be protected, and what to do about it."""

    code: str
    text: str
    next_step: str


def split_file_name(file_name: str) -> tuple[str, str]:
    """`[datastore] folder/file` as datastore and path; two empty strings if it is no such name."""
    name, bracket, path = file_name.partition("]")
    if not bracket or not name.startswith("["):
        return "", ""
    return name[1:], path.strip()


def disks_of(devices: Iterable[Any]) -> tuple[DiskInfo, ...]:
    """Of a `config.hardware.device` list of pyVmomi, in its order."""
    present = list(devices)
    controllers = {
        device.key: _Controller(
            type=_wsdl_name(device),
            bus_number=device.busNumber,
            shared_bus=str(getattr(device, "sharedBus", None) or ""),
        )
        for device in present
        if isinstance(device, vim.vm.device.VirtualController)
    }
    return tuple(
        _disk(_of_object(device), controllers)
        for device in present
        if isinstance(device, vim.vm.device.VirtualDisk)
    )


def disks_of_xml(devices: Element | None) -> tuple[DiskInfo, ...]:
    """Of the XML of a `config.hardware.device` list."""
    controllers: dict[int, _Controller] = {}
    disks: list[_Device] = []
    for device in () if devices is None else devices:
        kind = type_of(device)
        if kind == "VirtualDisk" or _is_kind(kind, "VirtualDisk"):
            disks.append(_of_xml(device))
        elif _is_kind(kind, "VirtualController"):
            controllers[_number(device, "key")] = _Controller(
                type=kind,
                bus_number=_number(device, "busNumber"),
                shared_bus=_text(device, "sharedBus"),
            )
    return tuple(_disk(disk, controllers) for disk in disks)


def disk_obstacle(disk: DiskInfo, *, vm_off: bool = False) -> Obstacle | None:
    """Why a snapshot cannot cover this disk; None: it can be protected."""
    if disk.rdm_compatibility == "physicalMode":
        return Obstacle(
            code="disk.physical-rdm",
            text=f"{disk.label} is a raw device mapping in physical mode; snapshots leave it out",
            next_step="switch it to virtual mode, or back it up from within the guest",
        )
    if disk.disk_mode.startswith("independent"):
        return Obstacle(
            code="disk.independent",
            text=f"{disk.label} is independent ({disk.disk_mode}); snapshots leave it out",
            next_step="make it dependent (VM off), or back it up from within the guest",
        )
    if disk.sharing == "sharingMultiWriter":
        return Obstacle(
            code="disk.multi-writer",
            text=f"{disk.label} is shared with other VMs (multi-writer)",
            next_step="back it up from within the guest",
        )
    if disk.shared_bus not in ("", "noSharing") and not vm_off:
        return Obstacle(
            code="disk.shared-bus",
            text=f"{disk.label} is on a SCSI bus that is shared ({disk.shared_bus})",
            next_step="back it up from within the guest, or power the VM off first",
        )
    if not disk.file_name:
        return Obstacle(
            code="disk.unknown-backing",
            text=f"{disk.label} is kept in a way that is not known here ({disk.backing_type})",
            next_step="back it up from within the guest",
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Controller:
    type: str
    bus_number: int
    shared_bus: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    """A VirtualDisk, wherever it was read from."""

    key: int
    controller_key: int
    unit_number: int
    label: str
    capacity_bytes: int
    vdisk_id: str
    backing_type: str
    backing: Mapping[str, str]
    chain: tuple[str, ...]


_BACKING_FIELDS = (
    "fileName",
    "uuid",
    "diskMode",
    "sharing",
    "changeId",
    "compatibilityMode",
    "thinProvisioned",
)


def _disk(device: _Device, controllers: Mapping[int, _Controller]) -> DiskInfo:
    controller = controllers.get(device.controller_key)
    backing = device.backing
    return DiskInfo(
        key=device.key,
        label=device.label or f"disk {device.key}",
        controller_key=device.controller_key,
        controller_type=controller.type if controller else "",
        controller_family=_family(controller.type) if controller else "",
        bus_number=controller.bus_number if controller else -1,
        unit_number=device.unit_number,
        capacity_bytes=device.capacity_bytes,
        file_name=backing["fileName"],
        backing_uuid=backing["uuid"],
        disk_mode=backing["diskMode"],
        sharing=backing["sharing"],
        backing_type=device.backing_type,
        change_id=backing["changeId"],
        rdm_compatibility=backing["compatibilityMode"],
        shared_bus=controller.shared_bus if controller else "",
        thin=backing["thinProvisioned"].lower() == "true"
        or device.backing_type == "VirtualDiskSeSparseBackingInfo",
        key_id=backing["keyId"],
        vdisk_id=device.vdisk_id,
        chain=device.chain,
    )


def _of_object(device: Any) -> _Device:
    backing = device.backing
    fields = {name: _plain(getattr(backing, name, None)) for name in _BACKING_FIELDS}
    fields["keyId"] = _plain(getattr(getattr(backing, "keyId", None), "keyId", None))
    chain: list[str] = []
    level = backing
    while level is not None and len(chain) < _CHAIN_MAX:
        chain.append(_plain(getattr(level, "fileName", None)))
        level = getattr(level, "parent", None)
    capacity = device.capacityInBytes
    return _Device(
        key=device.key,
        controller_key=_whole(device.controllerKey),
        unit_number=_whole(device.unitNumber),
        label=_plain(getattr(device.deviceInfo, "label", None)),
        capacity_bytes=(device.capacityInKB or 0) * 1024 if capacity is None else capacity,
        vdisk_id=_plain(getattr(device.vDiskId, "id", None)),
        backing_type=_wsdl_name(backing) if backing is not None else "",
        backing=fields,
        chain=tuple(chain),
    )


def _of_xml(device: Element) -> _Device:
    backing = device.find(f"{VIM}backing")
    fields = {name: "" if backing is None else _text(backing, name) for name in _BACKING_FIELDS}
    fields["keyId"] = "" if backing is None else _text(backing, "keyId", "keyId")
    chain: list[str] = []
    level = backing
    while level is not None and len(chain) < _CHAIN_MAX:
        chain.append(_text(level, "fileName"))
        level = level.find(f"{VIM}parent")
    capacity = _text(device, "capacityInBytes")
    return _Device(
        key=_number(device, "key"),
        controller_key=_number(device, "controllerKey"),
        unit_number=_number(device, "unitNumber"),
        label=_text(device, "deviceInfo", "label"),
        capacity_bytes=int(capacity)
        if capacity
        else max(_number(device, "capacityInKB"), 0) * 1024,
        vdisk_id=_text(device, "vDiskId", "id"),
        backing_type="" if backing is None else type_of(backing),
        backing=fields,
        chain=tuple(chain),
    )


def _text(element: Element, *names: str) -> str:
    return element.findtext("/".join(VIM + name for name in names), "")


def _number(element: Element, name: str) -> int:
    """-1 when unset, which no key, bus or unit is."""
    text = _text(element, name)
    return int(text) if text else -1


def _whole(value: int | None) -> int:
    return -1 if value is None else value


def _plain(value: object) -> str:
    return "" if value is None else str(value)


def _wsdl_name(value: Any) -> str:
    return str(value._wsdlName)


_KINSHIP: dict[tuple[str, str], bool] = {}


def _is_kind(name: str, ancestor: str) -> bool:
    """Whether the WSDL type `name` is or derives from `ancestor`; False for unknown names."""
    if (name, ancestor) not in _KINSHIP:
        try:
            kind = VmomiSupport.GuessWsdlType(name)
        except KeyError:
            return False
        _KINSHIP[name, ancestor] = issubclass(kind, VmomiSupport.GuessWsdlType(ancestor))
    return _KINSHIP[name, ancestor]


def _family(controller_type: str) -> str:
    names: Sequence[tuple[str, str]] = tuple(_FAMILIES.items())
    return next((family for base, family in names if _is_kind(controller_type, base)), "")
