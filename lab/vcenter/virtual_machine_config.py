"""A machine's configuration as clients see it: VmConfig of `lab/esx` → ConfigInfo and devices.

Pure but for the names it looks up (networks, datastores). Devices that every machine has (PCI,
PS/2, keyboard, video) are fixed. Source: vSphere Web Services API, VirtualMachineConfigInfo,
VirtualDevice; design notes on vSphere, section 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from lab.esx.datastore_path import DatastorePath
from lab.esx.disk_chain import DiskChain
from lab.esx.errors import HostError
from lab.esx.hardware import Controller, ControllerKind, Disk, DiskMode, Nic, VmConfig
from lab.esx.vmdk import DiskFile, ExtentKind

_GUEST_NAMES = {
    "debian12_64Guest": "Debian GNU/Linux 12 (64-bit)",
    "otherLinux64Guest": "Other Linux (64-bit)",
    "otherGuest64": "Other (64-bit)",
}
CONTROLLERS = {
    ControllerKind.PVSCSI: vim.vm.device.ParaVirtualSCSIController,
    ControllerKind.LSI_SAS: vim.vm.device.VirtualLsiLogicSASController,
    ControllerKind.LSI_LOGIC: vim.vm.device.VirtualLsiLogicController,
    ControllerKind.BUS_LOGIC: vim.vm.device.VirtualBusLogicController,
    ControllerKind.SATA: vim.vm.device.VirtualAHCIController,
    ControllerKind.NVME: vim.vm.device.VirtualNVMEController,
    ControllerKind.IDE: vim.vm.device.VirtualIDEController,
}
NICS = {
    "vmxnet3": vim.vm.device.VirtualVmxnet3,
    "vmxnet2": vim.vm.device.VirtualVmxnet2,
    "e1000": vim.vm.device.VirtualE1000,
    "e1000e": vim.vm.device.VirtualE1000e,
    "vlance": vim.vm.device.VirtualPCNet32,
}
_LABELS = {"scsi": "SCSI controller", "sata": "SATA controller", "nvme": "NVME controller",
           "ide": "IDE"}  # fmt: skip
_described: Any = vim.Description
_ADDRESS_TYPES = {"manual": "manual", "generated": "generated", "assigned": "assigned"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookups:
    """How names become references; None for what the inventory does not have."""

    datastore: Callable[[str], Any]
    datastore_url: Callable[[str], str]
    network: Callable[[str], Any]
    chain: Callable[[DatastorePath], DiskChain]


def config_info(config: VmConfig, look: Lookups, *, modified: Any, change_version: str) -> Any:
    extra = [vim.option.OptionValue(key=key, value=value) for key, value in config.extra.items()]
    if config.change_tracking:
        extra.append(vim.option.OptionValue(key="ctkEnabled", value="TRUE"))
        extra += [
            vim.option.OptionValue(key=f"{prefix}.ctkEnabled", value="TRUE")
            for disk in config.disks
            if config.tracked(disk) and (prefix := _disk_prefix(config, disk)) not in config.extra
        ]
    used = {config.vmx_path.datastore, *(disk.path.datastore for disk in config.disks)}
    folder = config.folder
    return vim.vm.ConfigInfo(
        changeVersion=change_version,
        modified=modified,
        name=config.name,
        guestFullName=guest_name(config.guest_id),
        guestId=config.guest_id,
        alternateGuestName="",
        version=f"vmx-{config.version:02d}",
        uuid=config.uuid,
        instanceUuid=config.instance_uuid,
        template=config.template,
        annotation=config.annotation,
        firmware=config.firmware,
        changeTrackingEnabled=config.change_tracking,
        swapPlacement=config.swap_placement,
        memoryHotAddEnabled=False,
        cpuHotAddEnabled=False,
        cpuHotRemoveEnabled=False,
        nestedHVEnabled=False,
        files=vim.vm.FileInfo(
            vmPathName=str(config.vmx_path),
            snapshotDirectory=f"{folder}/" if folder.path else str(folder),
            suspendDirectory=f"{folder}/" if folder.path else str(folder),
            logDirectory=f"{folder}/" if folder.path else str(folder),
        ),
        flags=vim.vm.FlagInfo(
            diskUuidEnabled=config.disk_uuid_enabled,
            snapshotDisabled=False,
            snapshotLocked=False,
            vbsEnabled=False,
            vvtdEnabled=False,
        ),
        defaultPowerOps=vim.vm.DefaultPowerOpInfo(
            powerOffType="soft", suspendType="hard", resetType="soft"
        ),
        hardware=vim.vm.VirtualHardware(
            numCPU=config.cpus,
            numCoresPerSocket=config.cores_per_socket,
            memoryMB=config.memory_mib,
            device=devices(config, look),
        ),
        bootOptions=vim.vm.BootOptions(
            bootDelay=config.boot_delay_ms,
            enterBIOSSetup=False,
            efiSecureBootEnabled=config.secure_boot,
            bootRetryEnabled=False,
        ),
        cpuAllocation=_allocation(),
        memoryAllocation=_allocation(),
        latencySensitivity=vim.LatencySensitivity(level="normal"),
        extraConfig=extra,
        datastoreUrl=[
            vim.vm.ConfigInfo.DatastoreUrlPair(name=name, url=look.datastore_url(name))
            for name in sorted(used)
        ],
    )


def guest_name(guest_id: str) -> str:
    return _GUEST_NAMES.get(guest_id, guest_id)


def devices(config: VmConfig, look: Lookups) -> list[Any]:
    found: list[Any] = list(_fixed_devices())
    found += [_controller(config, one) for one in config.controllers]
    found += [_disk(disk, look) for disk in config.disks]
    found += [_nic(nic, look) for nic in config.nics]
    return found


def _disk_prefix(config: VmConfig, disk: Disk) -> str:
    controller = config.controller(disk.controller_key)
    return f"{controller.prefix}:{disk.unit}" if controller else f"disk{disk.key}"


def _allocation() -> Any:
    return vim.ResourceAllocationInfo(
        reservation=0,
        expandableReservation=False,
        limit=-1,
        shares=vim.SharesInfo(shares=1000, level="normal"),
    )


def _fixed_devices() -> list[Any]:
    described: Any = vim.Description
    return [
        vim.vm.device.VirtualPCIController(
            key=100, busNumber=0, deviceInfo=described(label="PCI controller 0", summary="PCI")
        ),
        vim.vm.device.VirtualPS2Controller(
            key=300, busNumber=0, deviceInfo=described(label="PS2 controller 0", summary="PS2")
        ),
        vim.vm.device.VirtualKeyboard(
            key=600,
            controllerKey=300,
            unitNumber=0,
            deviceInfo=described(label="Keyboard", summary="Keyboard"),
        ),
        vim.vm.device.VirtualPointingDevice(
            key=700,
            controllerKey=300,
            unitNumber=1,
            deviceInfo=described(label="Pointing device", summary="Pointing device; Device"),
            backing=vim.vm.device.VirtualPointingDevice.DeviceBackingInfo(
                deviceName="", useAutoDetect=False, hostPointingDevice="autodetect"
            ),
        ),
        vim.vm.device.VirtualVideoCard(
            key=500,
            controllerKey=100,
            unitNumber=0,
            videoRamSizeInKB=4096,
            deviceInfo=described(label="Video card ", summary="Video card"),
        ),
    ]


def _controller(config: VmConfig, controller: Controller) -> Any:
    bus = controller.kind.bus
    fields: dict[str, Any] = {
        "key": controller.key,
        "busNumber": controller.bus_number,
        "device": [disk.key for disk in config.disks if disk.controller_key == controller.key],
        "deviceInfo": _described(
            label=f"{_LABELS[bus]} {controller.bus_number}", summary=controller.kind.value
        ),
    }
    if bus != "ide":
        fields |= {"controllerKey": 100, "unitNumber": 3 + controller.bus_number}
    if bus == "scsi":
        fields |= {
            "sharedBus": controller.shared_bus,
            "hotAddRemove": True,
            "scsiCtlrUnitNumber": 7,
        }
    made: Any = CONTROLLERS[controller.kind]
    return made(**fields)


def _disk(disk: Disk, look: Lookups) -> Any:
    try:
        files: tuple[DiskFile, ...] = look.chain(disk.path).files
    except HostError:
        files = ()
    return vim.vm.device.VirtualDisk(
        key=disk.key,
        controllerKey=disk.controller_key,
        unitNumber=disk.unit,
        capacityInKB=disk.capacity_bytes >> 10,
        capacityInBytes=disk.capacity_bytes,
        shares=vim.SharesInfo(shares=1000, level="normal"),
        storageIOAllocation=vim.StorageResourceManager.IOAllocationInfo(
            limit=-1, shares=vim.SharesInfo(shares=1000, level="normal"), reservation=0
        ),
        nativeUnmanagedLinkedClone=False,
        deviceInfo=_described(label=disk.label, summary=f"{disk.capacity_bytes >> 10:,} KB"),
        backing=_backing(disk, files, look),
    )


def _backing(disk: Disk, files: tuple[DiskFile, ...], look: Lookups) -> Any:
    """The leaf's backing with its parents behind it; a broken chain shows the leaf alone."""
    backing = None
    for parent in reversed(files[1:]):
        backing = _backing_of(disk, parent.path, parent.descriptor.kind, backing, look)
    kind = files[0].descriptor.kind if files else ExtentKind.FLAT
    leaf = _backing_of(disk, disk.path, kind, backing, look)
    leaf.changeId = disk.change_id or None
    return leaf


def _backing_of(
    disk: Disk, path: DatastorePath, kind: ExtentKind, parent: Any, look: Lookups
) -> Any:
    common = {
        "fileName": str(path),
        "datastore": look.datastore(path.datastore),
        "diskMode": disk.mode.value,
        "uuid": disk.uuid,
        "parent": parent,
    }
    return vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        **common,
        split=False,
        writeThrough=False,
        thinProvisioned=disk.thin,
        eagerlyScrub=False,
        contentId=disk.uuid.replace("-", ""),
        digestEnabled=False,
        sharing=disk.sharing,
        deltaDiskFormat="seSparseFormat" if kind is ExtentKind.DELTA else None,
    )


def _nic(nic: Nic, look: Lookups) -> Any:
    backing: Any
    if nic.switch_uuid:
        backing = vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(
            port=vim.dvs.PortConnection(
                switchUuid=nic.switch_uuid, portgroupKey=nic.portgroup_key, portKey=str(nic.key)
            )
        )
    else:
        backing = vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(
            deviceName=nic.network, network=look.network(nic.network), useAutoDetect=False
        )
    made: Any = NICS[nic.kind]
    return made(
        key=nic.key,
        controllerKey=100,
        unitNumber=nic.key - 4000 + 7,
        macAddress=nic.mac,
        addressType=_ADDRESS_TYPES.get(nic.address_type, "assigned"),
        wakeOnLanEnabled=True,
        backing=backing,
        deviceInfo=_described(label=nic.label, summary=nic.network),
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=nic.start_connected,
            allowGuestControl=True,
            connected=nic.connected,
            status="ok",
        ),
    )


MODES = {mode.value: mode for mode in DiskMode}
