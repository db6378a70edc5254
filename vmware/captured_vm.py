"""A captured configuration document (`config_capture`) as values, for building the VM again.

Invariants: only what is known by name is taken over, with its type checked and its size bounded; a
document may be old, from another vCenter, or from a server that captured less. Devices that are not
understood are kept by kind and label, so that a restore can say what it leaves out. Pure.
Source: design notes section 1; vSphere API reference, VirtualMachineConfigInfo.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from vmware.captured_part import CapturedPart, DocumentError
from vmware.config_capture import NVRAM_BYTES_MAX, SCHEMA

_DEVICES_MAX = 1024
_SETTINGS_MAX = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedController:
    key: int
    kind: str  # `ParaVirtualSCSIController`: the VMODL name
    bus_number: int
    shared_bus: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedDisk:
    key: int
    label: str
    controller_key: int
    unit_number: int
    capacity_bytes: int
    backing: str  # `VirtualDisk.FlatVer2BackingInfo`
    datastore: str  # empty: not known
    thin: bool
    eagerly_zeroed: bool
    uuid: str
    encrypted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedNic:
    key: int
    label: str
    kind: str  # `VirtualVmxnet3`
    mac: str
    address_type: str
    start_connected: bool
    network_name: str  # empty: it was not to be found out
    network_kind: str  # of `NetworkInfo`; empty: not known

    @property
    def names(self) -> tuple[str, ...]:
        """By which an operator may speak of it or of its network."""
        return tuple(name for name in (self.network_name, self.label, self.mac) if name)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedDevice:
    """Any other device. `controller_key` and `unit_number` are -1 where it has none."""

    key: int
    kind: str
    label: str
    controller_key: int
    unit_number: int


class BootKind(StrEnum):
    DISK = "BootableDiskDevice"
    NIC = "BootableEthernetDevice"
    CDROM = "BootableCdromDevice"
    FLOPPY = "BootableFloppyDevice"


@dataclass(frozen=True, slots=True, kw_only=True)
class BootDevice:
    kind: BootKind
    device_key: int  # of disks and NICs


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedShare:
    """Part of a processor or memory allocation; -1 for no limit, empty level: not captured."""

    reservation: int
    limit: int
    level: str
    shares: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedTag:
    category: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedAttribute:
    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedPlacement:
    """Names only; each may be empty."""

    folder_path: str
    datacenter_path: str
    resource_pool_path: str
    host: str
    cluster: str
    datastore: str  # of the VM's own files


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedVm:
    name: str
    hardware_version: int  # 19 of `vmx-19`; 0: not known
    guest_id: str
    alternate_guest_name: str
    annotation: str
    instance_uuid: str
    bios_uuid: str
    firmware: str  # `bios`, `efi`, or empty
    secure_boot: bool
    boot_delay_ms: int
    enter_setup: bool
    boot_retry: bool
    boot_order: tuple[BootDevice, ...]
    cpus: int
    cores_per_socket: int
    memory_mib: int
    cpu_hot_add: bool
    cpu_hot_remove: bool
    memory_hot_add: bool
    nested_virtualisation: bool
    cpu_share: CapturedShare | None
    memory_share: CapturedShare | None
    latency_sensitivity: str
    swap_placement: str
    disk_uuid_enabled: bool | None  # None: left to the host
    virtualisation_security: bool | None  # `vbsEnabled`
    io_mmu: bool | None  # `vvtdEnabled`
    controllers: tuple[CapturedController, ...]
    disks: tuple[CapturedDisk, ...]
    nics: tuple[CapturedNic, ...]
    other_devices: tuple[CapturedDevice, ...]
    settings: tuple[tuple[str, str], ...]  # `extraConfig`, in its order
    encrypted: bool
    template: bool
    vapp: bool
    managed_by: str
    nvram: bytes | None
    tags: tuple[CapturedTag, ...]
    attributes: tuple[CapturedAttribute, ...]
    placement: CapturedPlacement

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """Raises DocumentError: it is no such document, or absurd."""
        whole = CapturedPart(document, "the document")
        if whole.text("schema") != SCHEMA:
            raise DocumentError(f"a captured configuration of schema {whole.text('schema')!r}")
        config = whole.part("config")
        hardware = config.part("hardware")
        flags, boot = config.part("flags"), config.part("bootOptions")
        version = config.text("version").removeprefix("vmx-")
        home = config.part("files").text("vmPathName")
        devices = [_Device(part) for part in hardware.parts("device", _DEVICES_MAX)]
        return cls(
            name=whole.part("vm").text("name") or config.text("name"),
            hardware_version=int(version) if version.isdecimal() and len(version) < 4 else 0,
            guest_id=config.text("guestId"),
            alternate_guest_name=config.text("alternateGuestName"),
            annotation=config.text("annotation"),
            instance_uuid=config.text("instanceUuid"),
            bios_uuid=config.text("uuid"),
            firmware=config.text("firmware"),
            secure_boot=bool(boot.flag("efiSecureBootEnabled")),
            boot_delay_ms=boot.whole("bootDelay", 0),
            enter_setup=bool(boot.flag("enterBIOSSetup")),
            boot_retry=bool(boot.flag("bootRetryEnabled")),
            boot_order=tuple(_boot_order(boot)),
            cpus=hardware.whole("numCPU", 1),
            cores_per_socket=hardware.whole("numCoresPerSocket", 1),
            memory_mib=hardware.whole("memoryMB", 0),
            cpu_hot_add=bool(config.flag("cpuHotAddEnabled")),
            cpu_hot_remove=bool(config.flag("cpuHotRemoveEnabled")),
            memory_hot_add=bool(config.flag("memoryHotAddEnabled")),
            nested_virtualisation=bool(config.flag("nestedHVEnabled")),
            cpu_share=_share(config.part("cpuAllocation")),
            memory_share=_share(config.part("memoryAllocation")),
            latency_sensitivity=config.part("latencySensitivity").text("level"),
            swap_placement=config.text("swapPlacement"),
            disk_uuid_enabled=flags.flag("diskUuidEnabled"),
            virtualisation_security=flags.flag("vbsEnabled"),
            io_mmu=flags.flag("vvtdEnabled"),
            controllers=tuple(device.controller() for device in devices if device.is_controller),
            disks=tuple(device.disk() for device in devices if device.is_disk),
            nics=_nics(whole, devices),
            other_devices=tuple(device.other() for device in devices if device.is_other),
            settings=tuple(_settings(config)),
            encrypted=config.has("keyId"),
            template=bool(config.flag("template")),
            vapp=config.has("vAppConfig"),
            managed_by=config.part("managedBy").text("extensionKey"),
            nvram=_nvram(whole.part("files").part("nvram")),
            tags=tuple(
                CapturedTag(category=part.part("category").text("name"), name=part.text("name"))
                for part in whole.parts("tags", _SETTINGS_MAX)
            ),
            attributes=tuple(
                CapturedAttribute(name=part.text("name"), value=part.text("value"))
                for part in whole.parts("custom_attributes", _SETTINGS_MAX)
            ),
            placement=_placement(whole.part("placement"), home),
        )


class _Device:
    """One entry of `config.hardware.device`."""

    def __init__(self, part: CapturedPart) -> None:
        self._part = part
        self._kind = part.kind.removeprefix("vim.vm.device.")
        self.is_disk = self._kind == "VirtualDisk"
        self.is_controller = part.has("busNumber")
        self.is_nic = part.has("macAddress") or part.has("addressType")
        self.is_other = not (self.is_disk or self.is_controller or self.is_nic)

    def controller(self) -> CapturedController:
        return CapturedController(
            key=self._part.whole("key", -1),
            kind=self._kind,
            bus_number=self._part.whole("busNumber", 0),
            shared_bus=self._part.text("sharedBus"),
        )

    def disk(self) -> CapturedDisk:
        part = self._part
        backing = part.part("backing")
        name = backing.text("fileName")
        return CapturedDisk(
            key=part.whole("key", -1),
            label=self._label,
            controller_key=part.whole("controllerKey", -1),
            unit_number=part.whole("unitNumber", -1),
            capacity_bytes=part.whole("capacityInBytes", 0) or part.whole("capacityInKB", 0) * 1024,
            backing=backing.kind.removeprefix("vim.vm.device."),
            datastore=_datastore(name),
            thin=bool(backing.flag("thinProvisioned")) or "SeSparse" in backing.kind,
            eagerly_zeroed=bool(backing.flag("eagerlyScrub")),
            uuid=backing.text("uuid"),
            encrypted=backing.has("keyId"),
        )

    def nic(self) -> CapturedNic:
        part = self._part
        return CapturedNic(
            key=part.whole("key", -1),
            label=self._label,
            kind=self._kind,
            mac=part.text("macAddress"),
            address_type=part.text("addressType"),
            start_connected=part.part("connectable").flag("startConnected") is not False,
            network_name=part.part("backing").text("deviceName"),
            network_kind="",
        )

    def other(self) -> CapturedDevice:
        return CapturedDevice(
            key=self._part.whole("key", -1),
            kind=self._kind,
            label=self._label,
            controller_key=self._part.whole("controllerKey", -1),
            unit_number=self._part.whole("unitNumber", -1),
        )

    @property
    def _label(self) -> str:
        return self._part.part("deviceInfo").text("label") or self._kind


def _nics(whole: CapturedPart, devices: Sequence[_Device]) -> tuple[CapturedNic, ...]:
    """With the names of their networks, where those were captured."""
    named = {nic.key: nic for nic in map(_nic, whole.parts("nics", _DEVICES_MAX))}
    present = [device.nic() for device in devices if device.is_nic]
    return tuple(named.get(nic.key, nic) for nic in present)


def _nic(part: CapturedPart) -> CapturedNic:
    return CapturedNic(
        key=part.whole("key", -1),
        label=part.text("label"),
        kind=part.text("type"),
        mac=part.text("mac"),
        address_type=part.text("address_type"),
        start_connected=part.flag("start_connected") is not False,
        network_name=part.text("network_name"),
        network_kind=part.part("network").text("kind"),
    )


def _boot_order(boot: CapturedPart) -> list[BootDevice]:
    found = []
    for part in boot.parts("bootOrder", _DEVICES_MAX):
        kind = part.kind.removeprefix("vim.vm.BootOptions.")
        if kind in tuple(BootKind):
            found.append(BootDevice(kind=BootKind(kind), device_key=part.whole("deviceKey", -1)))
    return found


def _share(part: CapturedPart) -> CapturedShare | None:
    if not part.has("reservation") and not part.has("limit"):
        return None
    shares = part.part("shares")
    return CapturedShare(
        reservation=part.whole("reservation", 0),
        limit=part.whole("limit", -1),
        level=shares.text("level"),
        shares=shares.whole("shares", 0),
    )


def _settings(config: CapturedPart) -> list[tuple[str, str]]:
    return [
        (part.text("key"), part.plain("value"))
        for part in config.parts("extraConfig", _SETTINGS_MAX)
        if part.text("key")
    ]


def _nvram(part: CapturedPart) -> bytes | None:
    encoded = part.text("base64", most=NVRAM_BYTES_MAX * 2)
    if not encoded:
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise DocumentError(f"the captured NVRAM is not base64: {error}") from error


def _placement(part: CapturedPart, vmx_name: str) -> CapturedPlacement:
    return CapturedPlacement(
        folder_path=part.text("folder_path"),
        datacenter_path=part.text("datacenter_path"),
        resource_pool_path=part.text("resource_pool_path"),
        host=part.text("host"),
        cluster=part.text("cluster"),
        datastore=_datastore(vmx_name),
    )


def _datastore(file_name: str) -> str:
    """The `ds` of `[ds] folder/file`."""
    name, bracket, _ = file_name.partition("]")
    return name[1:] if bracket and name.startswith("[") else ""
