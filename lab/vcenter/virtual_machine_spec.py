"""ConfigSpec → what `lab/esx` takes, with the privileges that each part of it needs.

What the lab does not have (CD drives, TPMs, passthrough, …) is refused, never ignored; settings
that change nothing here (allocation, tools, boot order) are accepted, as they would be.
Source: vSphere Web Services API, VirtualMachineConfigSpec and the privileges of ReconfigVM_Task.
"""

from __future__ import annotations

import re
import uuid as uuids
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from lab.esx.datastore_path import DatastorePath
from lab.esx.hardware import VmConfig
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
from lab.vcenter.names import plain_name
from lab.vcenter.virtual_machine_config import CONTROLLERS, MODES, NICS

_KINDS = {cls: kind for kind, cls in CONTROLLERS.items()}
_NIC_KINDS = {cls: kind for kind, cls in NICS.items()}
_MAC = re.compile(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
_VERSION = re.compile(r"vmx-(\d{1,2})")
_Change = vim.vm.device.VirtualDeviceSpec
_FIXED = (
    vim.vm.device.VirtualPCIController,
    vim.vm.device.VirtualPS2Controller,
    vim.vm.device.VirtualSIOController,
    vim.vm.device.VirtualKeyboard,
    vim.vm.device.VirtualPointingDevice,
    vim.vm.device.VirtualVideoCard,
    vim.vm.device.VirtualVMCIDevice,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NetworkName:
    """A network card's network: a port group's name, and its ids on a distributed switch."""

    name: str
    switch_uuid: str = ""
    portgroup_key: str = ""


NetworkOf = Callable[[Any], NetworkName]


def reconfigure_request(
    spec: Any, config: VmConfig | None, network_of: NetworkOf
) -> ReconfigureRequest:
    """`config` is the present one, None for a machine that is being made. Raises faults."""
    changes = [
        change
        for index, item in enumerate(spec.deviceChange or [])
        for change in _device_change(item, index, config, network_of)
    ]
    return ReconfigureRequest(settings=_settings(spec), devices=tuple(changes))


def privileges_of(spec: Any) -> list[str]:
    """What ReconfigVM_Task needs for this spec."""
    needed: list[str] = []
    config = "VirtualMachine.Config."
    for field, privilege in (
        ("name", "Rename"),
        ("annotation", "Annotation"),
        ("numCPUs", "CPUCount"),
        ("numCoresPerSocket", "CPUCount"),
        ("memoryMB", "Memory"),
        ("changeTrackingEnabled", "ChangeTracking"),
        ("extraConfig", "AdvancedConfig"),
        ("guestId", "Settings"),
        ("firmware", "Settings"),
        ("bootOptions", "Settings"),
        ("flags", "Settings"),
        ("uuid", "Settings"),
        ("instanceUuid", "Settings"),
        ("version", "UpgradeVirtualHardware"),
        ("cpuAllocation", "Resource"),
        ("memoryAllocation", "Resource"),
        ("swapPlacement", "SwapPlacement"),
    ):
        if getattr(spec, field, None) not in (None, []):
            needed.append(config + privilege)
    needed += [config + _device_privilege(item) for item in spec.deviceChange or []]
    return list(dict.fromkeys(needed))


def _device_privilege(item: Any) -> str:
    if not isinstance(item.device, vim.vm.device.VirtualDisk):
        return "EditDevice" if item.operation == "edit" else "AddRemoveDevice"
    if item.operation == "remove":
        return "RemoveDisk"
    if item.operation == "add":
        return "AddNewDisk" if item.fileOperation else "AddExistingDisk"
    return "DiskExtend" if item.device.capacityInKB else "EditDevice"


def _settings(spec: Any) -> Settings:
    extra = {}
    for option in spec.extraConfig or []:
        extra[option.key] = "" if option.value is None else str(option.value)
    boot, flags = spec.bootOptions, spec.flags
    version = _VERSION.fullmatch(spec.version) if spec.version else None
    if spec.version and version is None:
        raise _invalid("spec.version")
    return Settings(
        name=None if spec.name is None else plain_name(spec.name),
        guest_id=spec.guestId or None,
        version=int(version[1]) if version else None,
        uuid=_uuid(spec.uuid, "spec.uuid"),
        instance_uuid=_uuid(spec.instanceUuid, "spec.instanceUuid"),
        cpus=spec.numCPUs,
        cores_per_socket=spec.numCoresPerSocket,
        memory_mib=spec.memoryMB,
        firmware=_firmware(spec.firmware),
        secure_boot=boot.efiSecureBootEnabled if boot else None,
        boot_delay_ms=boot.bootDelay if boot else None,
        annotation=spec.annotation,
        change_tracking=spec.changeTrackingEnabled,
        disk_uuid_enabled=flags.diskUuidEnabled if flags else None,
        swap_placement=_swap_placement(spec.swapPlacement),
        extra=extra,
    )


def _swap_placement(name: str | None) -> str | None:
    if name not in (None, "inherit", "vmDirectory", "hostLocal"):
        raise _invalid("spec.swapPlacement")
    return name


def _firmware(name: str | None) -> str | None:
    if name not in (None, "bios", "efi"):
        raise _invalid("spec.firmware")
    return name


def _uuid(text: str | None, what: str) -> str | None:
    if not text:
        return None
    try:
        return str(uuids.UUID(text))
    except ValueError:
        raise _invalid(what) from None


def _device_change(
    item: Any, index: int, config: VmConfig | None, network_of: NetworkOf
) -> list[DeviceChange]:
    device, operation = item.device, item.operation
    if operation == "remove":
        destroy = item.fileOperation == "destroy"
        if item.fileOperation not in (None, "destroy"):
            raise _bad_device(index, "fileOperation")
        return [RemoveDevice(key=device.key, destroy_files=destroy)]
    if isinstance(device, vim.vm.device.VirtualDisk):
        return [_disk_change(item, index)]
    if isinstance(device, vim.vm.device.VirtualEthernetCard):
        return [_nic_change(item, index, network_of)]
    kind = _KINDS.get(type(device))
    if kind is not None and kind.bus == "ide":
        return []  # every machine has both channels
    if kind is not None and operation == "add":
        return [
            AddController(
                temporary_key=device.key,
                kind=kind,
                bus_number=device.busNumber,
                shared_bus=getattr(device, "sharedBus", None) or "noSharing",
            )
        ]
    if isinstance(device, _FIXED) or (kind is not None and operation == "edit"):
        return []
    raise vim.fault.DeviceUnsupportedForVmPlatform(
        msg=f"The lab has no {type(device).__name__}.", property="device", deviceIndex=index
    )


def _disk_change(item: Any, index: int) -> DeviceChange:
    disk = item.device
    backing = disk.backing
    capacity = disk.capacityInBytes or (disk.capacityInKB or 0) * 1024
    if backing is not None and not isinstance(
        backing,
        vim.vm.device.VirtualDisk.FlatVer2BackingInfo
        | vim.vm.device.VirtualDisk.SeSparseBackingInfo
        | vim.vm.device.VirtualDisk.SparseVer2BackingInfo,
    ):
        raise vim.fault.DeviceUnsupportedForVmPlatform(
            msg="The lab has no such disk backing.", property="backing", deviceIndex=index
        )
    mode = MODES.get(backing.diskMode or "persistent") if backing is not None else None
    if backing is not None and mode is None:
        raise _bad_device(index, "backing.diskMode")
    path = (
        DatastorePath.parse(backing.fileName) if backing is not None and backing.fileName else None
    )
    if item.operation == "edit":
        if item.fileOperation is not None:
            raise _bad_device(index, "fileOperation")
        return EditDisk(key=disk.key, path=path, capacity_bytes=capacity or None, mode=mode)
    if item.operation != "add" or backing is None or item.fileOperation not in (None, "create"):
        raise _bad_device(index, "fileOperation")
    if disk.controllerKey is None:
        raise _bad_device(index, "controllerKey")
    assert mode is not None
    return AddDisk(
        controller_key=disk.controllerKey,
        unit=disk.unitNumber,
        path=path,
        capacity_bytes=capacity,
        create=item.fileOperation == "create",
        mode=mode,
        sharing=getattr(backing, "sharing", None) or "sharingNone",
        thin=bool(getattr(backing, "thinProvisioned", True)),
        uuid=_uuid(backing.uuid, "backing.uuid") or "",
    )


def _nic_change(item: Any, index: int, network_of: NetworkOf) -> DeviceChange:
    nic = item.device
    network = network_of(nic.backing) if nic.backing is not None else None
    mac = nic.macAddress.lower() if nic.macAddress else None
    if mac is not None and not _MAC.fullmatch(mac):
        raise _bad_device(index, "macAddress")
    kind = (nic.addressType or "").lower()
    manual = kind == "manual" or (not kind and mac is not None)
    connect = nic.connectable
    if item.operation == "edit":
        return EditNic(
            key=nic.key,
            network=network.name if network else None,
            mac=mac,
            address_type=("manual" if manual else "generated") if (kind or mac) else None,
            start_connected=connect.startConnected if connect else None,
            connected=connect.connected if connect else None,
            switch_uuid=network.switch_uuid if network else "",
            portgroup_key=network.portgroup_key if network else "",
        )
    if network is None or type(nic) not in _NIC_KINDS:
        raise _bad_device(index, "backing")
    return AddNic(
        kind=_NIC_KINDS[type(nic)],
        network=network.name,
        mac=(mac or "") if manual or mac else "",
        address_type="manual" if manual else "generated",
        start_connected=connect.startConnected if connect else True,
        switch_uuid=network.switch_uuid,
        portgroup_key=network.portgroup_key,
    )


def _bad_device(index: int, what: str) -> BaseException:
    fault: BaseException = vim.fault.InvalidDeviceSpec(
        msg=f"Invalid configuration for device '{index}'.", deviceIndex=index, property=what
    )
    return fault


def _invalid(what: str) -> BaseException:
    fault: BaseException = vmodl.fault.InvalidArgument(
        msg=f"A specified parameter was not correct: {what}", invalidProperty=what
    )
    return fault
