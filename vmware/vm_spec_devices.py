"""The devices of a VM that is built again: `VirtualDeviceSpec`s with the original bus placement.

Controllers, empty disks, network adapters and empty CD drives are made; everything else that the VM
had is a finding that says why it is not. Devices that a host gives every VM by itself are left to
it. Keys in the spec are negative and of its own (a host assigns real ones), but for the IDE
channels, which every VM has under fixed keys.

Invariants: a disk keeps its controller's kind, bus and unit; nothing refers to a file, a host
device or an id of the original. Pure.
Source: design notes sections 1, 4a and 8; vSphere API reference, VirtualDeviceConfigSpec.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pyVmomi import vim

from vmware.captured_vm import (
    CapturedController,
    CapturedDevice,
    CapturedDisk,
    CapturedNic,
    CapturedVm,
)
from vmware.errors import VsphereError
from vmware.findings import Finding, Weight
from vmware.network_choice import ChosenNetwork

_device = vim.vm.device

_SCSI = (
    "ParaVirtualSCSIController",
    "VirtualLsiLogicController",
    "VirtualLsiLogicSASController",
    "VirtualBusLogicController",
)
_CONTROLLERS = (*_SCSI, "VirtualAHCIController", "VirtualNVMEController")
_USB = ("VirtualUSBController", "VirtualUSBXHCIController")
_IDE = "VirtualIDEController"
_NICS = (
    "VirtualVmxnet3",
    "VirtualVmxnet2",
    "VirtualVmxnet",
    "VirtualE1000",
    "VirtualE1000e",
    "VirtualPCNet32",
)
_OF_EVERY_VM = (
    _IDE,
    "VirtualPCIController",
    "VirtualPS2Controller",
    "VirtualSIOController",
    "VirtualKeyboard",
    "VirtualPointingDevice",
    "VirtualVideoCard",
    "VirtualVMCIDevice",
)
_DRIVES = ("VirtualCdrom", "VirtualFloppy")
_FAMILIES = {
    "VirtualAHCIController": "sata",
    "VirtualNVMEController": "nvme",
    _IDE: "ide",
} | dict.fromkeys(_SCSI, "scsi")
_IDE_KEY = 200  # and 201: the channels that every VM has
_FIRST_CONTROLLER, _FIRST_DISK, _FIRST_NIC, _FIRST_OTHER = -100, -1000, -4000, -8000


class MacPolicy(StrEnum):
    KEEP = "keep"
    NEW = "new"


class CannotRebuildError(VsphereError):
    """A disk of the VM hangs on a controller that cannot be made again; restore it as an image."""

    code = "vsphere.cannot-rebuild"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDisk:
    """A disk of the new VM; `address` (`scsi0:1`) is where it will be found."""

    captured: CapturedDisk
    address: str
    lease_address: str  # `ParaVirtualSCSIController0:1`: the same, as an import's lease calls it


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDevices:
    changes: tuple[Any, ...]  # vim.vm.device.VirtualDeviceSpec
    disks: tuple[PlannedDisk, ...]
    nics: tuple[CapturedNic, ...]  # in the order in which they are made
    findings: tuple[Finding, ...]


def plan_devices(
    vm: CapturedVm,
    *,
    disk_keys: frozenset[int],
    networks: Mapping[int, ChosenNetwork],
    mac: MacPolicy,
    keep_disk_uuids: bool,
) -> PlannedDevices:
    """All devices of the new VM.

    Args:
        disk_keys: the captured disks to make; the others are told as left out.
        networks: by the key of the captured adapter, for every adapter of a kind that can be made.

    Raises:
        CannotRebuildError: a disk that is wanted has no place.
    """
    plan = _Plan(vm)
    plan.add_controllers(disk_keys)
    for disk in vm.disks:
        if disk.key in disk_keys:
            plan.add_disk(disk, keep_uuid=keep_disk_uuids)
        else:
            plan.leave_out_disk(disk)
    for nic in vm.nics:
        plan.add_nic(nic, networks, mac)
    for device in vm.other_devices:
        plan.add_other(device.kind, device.label, device.controller_key, device.unit_number)
    return PlannedDevices(
        changes=tuple(plan.changes),
        disks=tuple(plan.disks),
        nics=tuple(plan.nics),
        findings=tuple(plan.findings),
    )


def disk_address(vm: CapturedVm, disk: CapturedDisk) -> str:
    """`scsi0:1`; empty when its controller is not among the captured devices."""
    for controller in vm.controllers:
        if controller.key == disk.controller_key and controller.kind in _FAMILIES:
            family = _FAMILIES[controller.kind]
            return f"{family}{controller.bus_number}:{disk.unit_number}"
    return ""


def _lease_address(vm: CapturedVm, disk: CapturedDisk) -> str:
    for controller in vm.controllers:
        if controller.key == disk.controller_key:
            return f"{controller.kind}{controller.bus_number}:{disk.unit_number}"
    return ""


def backing_of(chosen: ChosenNetwork) -> Any:
    """What connects an adapter to a network."""
    card, network = _device.VirtualEthernetCard, chosen.network
    if network.kind == "distributed":
        port = vim.dvs.PortConnection(
            switchUuid=network.switch_uuid, portgroupKey=network.portgroup_key
        )
        return card.DistributedVirtualPortBackingInfo(port=port)
    if network.kind == "opaque":
        return card.OpaqueNetworkBackingInfo(
            opaqueNetworkId=network.opaque_id, opaqueNetworkType=network.opaque_type
        )
    return card.NetworkBackingInfo(deviceName=network.name)


def connection_of(chosen: ChosenNetwork) -> Any:
    return _device.VirtualDevice.ConnectInfo(
        startConnected=chosen.start_connected, allowGuestControl=True, connected=False
    )


class _Plan:
    def __init__(self, vm: CapturedVm) -> None:
        self._vm = vm
        self._controllers: dict[int, int] = {}  # captured key -> key in the spec
        self.changes: list[Any] = []
        self.disks: list[PlannedDisk] = []
        self.nics: list[CapturedNic] = []
        self.findings: list[Finding] = []

    def add_controllers(self, disk_keys: frozenset[int]) -> None:
        for number, controller in enumerate(self._vm.controllers):
            key = _FIRST_CONTROLLER - number
            if controller.kind == _IDE:
                self._controllers[controller.key] = _IDE_KEY + controller.bus_number
            elif controller.kind in _CONTROLLERS:
                self._controllers[controller.key] = key
                self._add(_made_controller(controller, key))
                self._warn_of_shared_bus(controller)
            elif controller.kind in _USB:
                self._add(getattr(_device, controller.kind)(key=key, busNumber=-1))
            elif controller.kind not in _OF_EVERY_VM:
                self._leave_out(controller.kind, controller.kind)
        for disk in self._vm.disks:
            if disk.key in disk_keys and disk.controller_key not in self._controllers:
                raise CannotRebuildError(f"{disk.label} hangs on a controller that is not known")

    def add_disk(self, disk: CapturedDisk, *, keep_uuid: bool) -> None:
        backing = _device.VirtualDisk.FlatVer2BackingInfo(
            fileName="",  # beside the VM's own files
            diskMode="persistent",
            thinProvisioned=disk.thin,
            eagerlyScrub=disk.eagerly_zeroed and not disk.thin,
        )
        if keep_uuid and disk.uuid:
            backing.uuid = disk.uuid
        made = _device.VirtualDisk(
            key=_FIRST_DISK - len(self.disks),
            controllerKey=self._controllers[disk.controller_key],
            unitNumber=disk.unit_number,
            capacityInKB=disk.capacity_bytes // 1024,
            capacityInBytes=disk.capacity_bytes,
            backing=backing,
        )
        self._add(made, new_file=True)
        self.disks.append(
            PlannedDisk(
                captured=disk,
                address=disk_address(self._vm, disk),
                lease_address=_lease_address(self._vm, disk),
            )
        )
        if "RawDisk" in disk.backing:
            self.findings.append(
                Finding(
                    "rebuild.raw-device",
                    f"{disk.label} was a raw device mapping and becomes an ordinary disk",
                    "none, unless the guest needs the device itself",
                )
            )
        if disk.encrypted:
            self.findings.append(
                Finding(
                    "rebuild.disk-not-encrypted",
                    f"{disk.label} was encrypted and is restored unencrypted",
                    "encrypt it again with a storage policy",
                )
            )

    def leave_out_disk(self, disk: CapturedDisk) -> None:
        self.findings.append(
            Finding(
                "rebuild.disk-left-out",
                f"{disk.label} is not made: the recovery point does not hold it",
                "see why it was left out of the backup, and get its data back otherwise",
            )
        )

    def add_nic(
        self, nic: CapturedNic, networks: Mapping[int, ChosenNetwork], mac: MacPolicy
    ) -> None:
        if nic.kind not in _NICS:
            self._leave_out(nic.kind, nic.label)
            return
        chosen = networks[nic.key]
        card = getattr(_device, nic.kind)(
            key=_FIRST_NIC - len(self.nics),
            backing=backing_of(chosen),
            connectable=connection_of(chosen),
            wakeOnLanEnabled=True,
            addressType="generated",
        )
        if mac is MacPolicy.KEEP and nic.mac:
            card.addressType = nic.address_type or "manual"
            card.macAddress = nic.mac
        self._add(card)
        self.nics.append(nic)

    def add_other(self, kind: str, label: str, controller_key: int, unit: int) -> None:
        if kind in _OF_EVERY_VM:
            return
        if kind != "VirtualCdrom" or controller_key not in self._controllers:
            self._leave_out(kind, label)
            return
        backing = _device.VirtualCdrom.RemotePassthroughBackingInfo(deviceName="", exclusive=False)
        connection = _device.VirtualDevice.ConnectInfo(
            startConnected=False, allowGuestControl=True, connected=False
        )
        drive = _device.VirtualCdrom(
            key=_FIRST_OTHER - len(self.changes),
            controllerKey=self._controllers[controller_key],
            unitNumber=unit,
            backing=backing,
            connectable=connection,
        )
        self._add(drive)

    def _add(self, device: Any, *, new_file: bool = False) -> None:
        change: Any = _device.VirtualDeviceSpec(operation="add", device=device)
        if new_file:
            change.fileOperation = "create"
        self.changes.append(change)

    def _leave_out(self, kind: str, label: str) -> None:
        found = _WHY_NOT.get(kind, _UNKNOWN)
        self.findings.append(replace(found, text=f"{label} is not made: {found.text}"))

    def _warn_of_shared_bus(self, controller: CapturedController) -> None:
        if controller.shared_bus not in ("", "noSharing"):
            self.findings.append(
                Finding(
                    "rebuild.shared-bus",
                    f"{_FAMILIES[controller.kind]}{controller.bus_number} was shared with other VMs"
                    f" ({controller.shared_bus}) and is not any more",
                    "set the bus sharing again if the VM is to be part of its cluster",
                )
            )


def _made_controller(controller: CapturedController, key: int) -> Any:
    made = getattr(_device, controller.kind)(key=key, busNumber=controller.bus_number)
    if controller.kind in _SCSI:
        made.sharedBus = "noSharing"
    return made


def nics_that_can_be_made(nics: Iterable[CapturedNic]) -> tuple[CapturedNic, ...]:
    return tuple(nic for nic in nics if nic.kind in _NICS)


def left_out_devices(vm: CapturedVm) -> tuple[CapturedDevice, ...]:
    """What a VM of another hypervisor has no place for: neither every VM's, nor an empty drive."""
    known = (*_OF_EVERY_VM, *_DRIVES)
    return tuple(device for device in vm.other_devices if device.kind not in known)


_PASSTHROUGH = Finding(
    "rebuild.passthrough",
    "it is a device of one host",
    "add a device of the new host in the vSphere client",
)
_HOST_SIDE = Finding(
    "rebuild.host-device",
    "it is backed by something on the old host",
    "add it again in the vSphere client if the guest needs it",
)
_LITTLE_LOSS = replace(_HOST_SIDE, weight=Weight.NOTE)
_UNKNOWN = Finding(
    "rebuild.device",
    "such a device cannot be made from a backup",
    "add it again in the vSphere client if the guest needs it",
)
_WHY_NOT: dict[str, Finding] = {
    "VirtualTPM": Finding(
        "rebuild.tpm",
        "the secrets in a virtual TPM cannot be read from outside",
        "add a new TPM, and have the recovery keys of the guest's disks (BitLocker) at hand",
    ),
    "VirtualPCIPassthrough": _PASSTHROUGH,
    "VirtualSriovEthernetCard": _PASSTHROUGH,
    "VirtualUSB": _PASSTHROUGH,
    "VirtualSCSIPassthrough": _PASSTHROUGH,
    "VirtualSerialPort": _HOST_SIDE,
    "VirtualParallelPort": _HOST_SIDE,
    "VirtualFloppy": _LITTLE_LOSS,
    "VirtualCdrom": _LITTLE_LOSS,
    "VirtualHdAudioCard": _LITTLE_LOSS,
    "VirtualSoundBlaster16": _LITTLE_LOSS,
    "VirtualEnsoniq1371": _LITTLE_LOSS,
}
