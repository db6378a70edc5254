"""The .vmx of a VM that is registered from an export: written anew from a captured configuration.

Nothing of the original file is copied. What is known by name is written from checked values, and
advanced settings only if `kept_settings` lets them through, so a .vmx of ours names no file, host
device or id of the original. Network adapters start unconnected: who registers the VM connects
them, once it is said to what.

Invariants: one setting per line. A value that holds a control character or a line separator is
refused, `"`, `|` and `#` are written as `|22`, `|7C` and `|23`; names of settings are of a small
alphabet. So nothing that a guest or an operator wrote becomes another line. Pure.
Source: design notes section 5, “.vmx minimum”.
"""

from __future__ import annotations

import re
import unicodedata
import uuid as uuids
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmware.captured_vm import BootKind, CapturedController, CapturedNic, CapturedVm
from vmware.errors import VsphereError
from vmware.kept_settings import kept_settings
from vmware.network_choice import ChosenNetwork
from vmware.vm_spec_devices import MacPolicy, disk_address, nics_that_can_be_made

VMX_BYTES_MAX = 1 << 20
_BOOT_DISKS_MOST = 8

_KEY = re.compile(r"\.?[A-Za-z][A-Za-z0-9_.:-]{0,127}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAC = re.compile(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")
_GUEST_ID = re.compile(r"[A-Za-z0-9_]{1,64}")
_UNSAFE_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
_SCSI = {
    "ParaVirtualSCSIController": "pvscsi",
    "VirtualLsiLogicController": "lsilogic",
    "VirtualLsiLogicSASController": "lsisas1068",
    "VirtualBusLogicController": "buslogic",
}
_OTHERS = {"VirtualAHCIController": "sata", "VirtualNVMEController": "nvme"}
_NICS = {
    "VirtualVmxnet3": "vmxnet3",
    "VirtualVmxnet2": "vmxnet2",
    "VirtualVmxnet": "vmxnet",
    "VirtualE1000": "e1000",
    "VirtualE1000e": "e1000e",
    "VirtualPCNet32": "vlance",
}
_ADDRESS_TYPES = {"manual": "static", "assigned": "vpx", "generated": "generated"}
_GUESTS = {  # whose name in a .vmx does not follow from the API's
    "otherGuest": "other",
    "otherGuest64": "other-64",
    "otherLinuxGuest": "otherlinux",
    "otherLinux64Guest": "otherlinux-64",
}


class VmxError(VsphereError):
    """The captured configuration cannot be written as a .vmx; restore the VM in full instead."""

    code = "vsphere.vmx"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmxChoices:
    name: str  # of the VM
    nvram_file: str | None  # beside the .vmx
    disk_files: Mapping[int, str]  # descriptor beside the .vmx, by the captured disk's key
    networks: Mapping[int, ChosenNetwork]  # by the captured adapter's key
    hardware_most: int  # newest virtual hardware of the host
    bios_uuid: str
    instance_uuid: str | None  # None: vCenter makes one
    mac: MacPolicy
    mark: tuple[str, str]  # a setting that says whose it is


def build_vmx(vm: CapturedVm, choices: VmxChoices) -> bytes:
    """Raises VmxError: it cannot be said in a .vmx, or not safely."""
    version = min(vm.hardware_version or choices.hardware_most, choices.hardware_most)
    settings: dict[str, str] = {
        ".encoding": "UTF-8",
        "config.version": "8",
        "virtualHW.version": str(version),
        "displayName": choices.name,
        "guestOS": guest_name(vm.guest_id),
        "memSize": str(vm.memory_mib),
        "numvcpus": str(vm.cpus),
        "cpuid.coresPerSocket": str(vm.cores_per_socket),
        "firmware": vm.firmware or "bios",
        "uuid.bios": spaced_uuid(choices.bios_uuid),
        "uuid.action": "keep",  # decided above; the host need not ask
        "vmci0.present": "TRUE",
        "hpet0.present": "TRUE",
        "floppy0.present": "FALSE",
    }
    settings |= _bridges()
    if choices.instance_uuid:
        settings["vc.uuid"] = spaced_uuid(choices.instance_uuid)
    if choices.nvram_file is not None:
        settings["nvram"] = _file(choices.nvram_file)
    settings |= _flags(vm)
    nics = nics_that_can_be_made(vm.nics)
    kept = kept_settings(vm.settings, same_nics=len(nics) == len(vm.nics)).kept
    taken = {key.lower() for key in settings}
    settings |= {key: value for key, value in kept if key.lower() not in taken and _plain(value)}
    settings |= _controllers(vm.controllers)
    settings |= _disks(vm, choices.disk_files)
    settings |= _boot_order(vm, choices.disk_files, nics)
    for number, nic in enumerate(nics):
        settings |= _nic(f"ethernet{number}", nic, choices.networks[nic.key], choices.mac)
    settings[choices.mark[0]] = choices.mark[1]
    return _format(settings)


def guest_name(guest_id: str) -> str:
    """`rhel8-64` for `rhel8_64Guest`; the host puts right what it knows better."""
    if guest_id in _GUESTS:
        return _GUESTS[guest_id]
    if not _GUEST_ID.fullmatch(guest_id):
        return "other-64"
    stem = guest_id.removesuffix("Guest")
    for ending in ("_64", "64"):
        if stem.endswith(ending) and stem != ending:
            return f"{stem.removesuffix(ending).replace('_', '-')}-64".lower()
    return stem.replace("_", "-").lower()


def spaced_uuid(uuid: str) -> str:
    """`56 4d … -… ` as a .vmx has it. Raises VmxError: not a uuid."""
    try:
        raw = uuids.UUID(uuid).bytes
    except ValueError as error:
        raise VmxError(f"not a uuid: {uuid[:64]!r}") from error
    return "-".join(" ".join(f"{byte:02x}" for byte in half) for half in (raw[:8], raw[8:]))


def quoted(value: str) -> str:
    """A value between quotes. Raises VmxError: it holds what no line may hold."""
    if not _plain(value):
        raise VmxError(f"a value that a .vmx cannot hold: {value[:64]!r}")
    return '"' + "".join(f"|{ord(each):02X}" if each in '|"#' else each for each in value) + '"'


def _plain(value: str) -> bool:
    return not any(unicodedata.category(each) in _UNSAFE_CATEGORIES for each in value)


def _format(settings: Mapping[str, str]) -> bytes:
    lines = []
    for key, value in settings.items():
        if not _KEY.fullmatch(key):
            raise VmxError(f"not the name of a setting: {key[:64]!r}")
        lines.append(f"{key} = {quoted(value)}\n")
    text = "".join(lines).encode()
    if len(text) > VMX_BYTES_MAX:
        raise VmxError(f"a .vmx of {len(text)} bytes")
    return text


def _bridges() -> dict[str, str]:
    settings = {"pciBridge0.present": "TRUE"}
    for number in range(4, 8):
        bridge = f"pciBridge{number}"
        settings |= {
            f"{bridge}.present": "TRUE",
            f"{bridge}.virtualDev": "pcieRootPort",
            f"{bridge}.functions": "8",
        }
    return settings


def _flags(vm: CapturedVm) -> dict[str, str]:
    wanted: Iterable[tuple[str, bool | None]] = (
        ("uefi.secureBoot.enabled", vm.firmware == "efi" and vm.secure_boot),
        ("disk.EnableUUID", vm.disk_uuid_enabled),
        ("vcpu.hotadd", vm.cpu_hot_add),
        ("vcpu.hotremove", vm.cpu_hot_remove),
        ("mem.hotadd", vm.memory_hot_add),
        ("vhv.enable", vm.nested_virtualisation),
    )
    return {key: "TRUE" for key, value in wanted if value}


def _controllers(controllers: Iterable[CapturedController]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for controller in controllers:
        if controller.kind in _SCSI:
            bus = f"scsi{controller.bus_number}"
            settings |= {f"{bus}.present": "TRUE", f"{bus}.virtualDev": _SCSI[controller.kind]}
        elif controller.kind in _OTHERS:
            settings[f"{_OTHERS[controller.kind]}{controller.bus_number}.present"] = "TRUE"
    return settings


def _disks(vm: CapturedVm, files: Mapping[int, str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for disk in vm.disks:
        if disk.key not in files:
            continue
        place = disk_address(vm, disk)
        if not place:
            raise VmxError(f"{disk.label} hangs on a controller that is not known")
        kind = "ata-hardDisk" if place.startswith("ide") else "scsi-hardDisk"
        settings |= {
            f"{place}.present": "TRUE",
            f"{place}.deviceType": kind,
            f"{place}.fileName": _file(files[disk.key]),
        }
    return settings


def _boot_order(
    vm: CapturedVm, files: Mapping[int, str], nics: Sequence[CapturedNic]
) -> dict[str, str]:
    """Of a BIOS, where disks have an order (Broadcom KB 326326); EFI keeps its own in the NVRAM."""
    disks = {disk.key: disk_address(vm, disk) for disk in vm.disks if disk.key in files}
    cards = {nic.key: f"ethernet{number}" for number, nic in enumerate(nics)}
    places = [disks[device.device_key] for device in vm.boot_order if device.device_key in disks]
    if vm.firmware == "efi" or not places:
        return {}
    kinds = {BootKind.DISK: "hdd", BootKind.CDROM: "cdrom", BootKind.FLOPPY: "floppy"}
    names = [kinds.get(each.kind) or cards.get(each.device_key, "") for each in vm.boot_order]
    return {
        "bios.bootOrder": ",".join(dict.fromkeys(name for name in names if name)),
        "bios.hddOrder": ",".join(places[:_BOOT_DISKS_MOST]),
    }


def _nic(prefix: str, nic: CapturedNic, chosen: ChosenNetwork, mac: MacPolicy) -> dict[str, str]:
    settings = {
        f"{prefix}.present": "TRUE",
        f"{prefix}.virtualDev": _NICS[nic.kind],
        f"{prefix}.startConnected": "FALSE",
        f"{prefix}.addressType": "generated",
    }
    if chosen.network.kind == "standard":
        settings[f"{prefix}.networkName"] = chosen.network.name
    if mac is MacPolicy.KEEP and _MAC.fullmatch(nic.mac):
        kind = _ADDRESS_TYPES.get(nic.address_type.lower(), "static")
        field = "address" if kind == "static" else "generatedAddress"
        settings |= {f"{prefix}.addressType": kind, f"{prefix}.{field}": nic.mac.lower()}
    return settings


def _file(name: str) -> str:
    if not _FILE.fullmatch(name):
        raise VmxError(f"not a file name of ours: {name[:64]!r}")
    return name
