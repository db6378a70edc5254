"""A VM captured on Hyper-V, as one of vSphere.

Generation 1 becomes BIOS, generation 2 EFI. Nothing in the guest knows VMware's paravirtual
devices, so it gets what it most likely has drivers for: disks of IDE stay on IDE, which is the same
chip (PIIX4) in both; those of SCSI go to AHCI; adapters are e1000e. Nobody says which guest it is
but the template of secure boot, so vSphere is mostly told a general one.

Pure; see `translation`. Source: design notes on Hyper-V, section 11; VMware, “Configuration
Maximums” (vSphere 7 and later), “SCSI, SATA and NVMe storage controller conditions”.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence

from appliance.base.units import MIB, TIB
from appliance.targets.contract import WantedDisk
from appliance.targets.translation import (
    CannotTranslateError,
    ForeignPointError,
    NativeVm,
    placed,
)
from appliance.targets.vsphere_from_hyperv_told import AHCI, IDE, UNKNOWN_GUEST, told
from hyperv import captured_vm as hv
from hyperv.config_capture import Capture
from hyperv.config_capture import CapturedDisk as HypervDisk
from vmware.captured_vm import (
    BootDevice,
    BootKind,
    CapturedController,
    CapturedDevice,
    CapturedDisk,
    CapturedNic,
    CapturedPlacement,
    CapturedVm,
)
from vmware.vm_spec_devices import disk_address

_SECTOR_BYTES = 512
_DISK_MOST_BYTES = 62 * TIB
_IDE_KEY, _AHCI_KEY, _DISK_KEY, _NIC_KEY, _DVD_KEY, _TPM_KEY = 200, 15000, 2000, 4000, 3002, 11000
_AHCI_MOST, _AHCI_UNITS = 4, 30
_CPUS_MOST, _CORES_MOST, _NICS_MOST = 768, 64, 10
_MEMORY_STEP_BYTES, _MEMORY_MOST_BYTES = 4 * MIB, 24 * TIB
_MAC = re.compile(r"(?!0{12})[0-9A-F]{12}")
_GUESTS = {  # by the template that secure boot goes by; both are known to every ESXi 6.5
    "MicrosoftWindows": "windows9Server64Guest",
    "MicrosoftUEFICertificateAuthority": "other3xLinux64Guest",
}


def translate(capture: Capture, disks: Sequence[WantedDisk]) -> NativeVm[CapturedVm]:
    """Raises: CannotTranslateError; ForeignPointError: the document does not say where a disk was.

    The disks of `capture` are those of the point.
    """
    vm = _vm(capture)
    made = dict(zip(_numbers(capture), vm.disks, strict=True))
    for disk in disks:
        if disk.number not in made:
            raise ForeignPointError(f"the point does not say where disk {disk.number} hung")
    return NativeVm(
        vm=vm,
        disks=placed(disks, {number: disk_address(vm, disk) for number, disk in made.items()}),
        is_foreign=True,
        unconnected=frozenset(nic.label for nic in vm.nics if not nic.network_name),
        reasons=tuple(told(capture.vm, vm)),
    )


# Disks


def _ordered(capture: Capture) -> list[HypervDisk]:
    """The one that boots first."""
    first = capture.boot_disk
    return sorted(capture.disks, key=lambda disk: (disk.number != first, *_place(disk)))


def _numbers(capture: Capture) -> list[int]:
    return [disk.number for disk in _ordered(capture)]


def _place(disk: HypervDisk) -> tuple[str, int, int]:
    return disk.controller, disk.controller_number, disk.location


def _disks(capture: Capture) -> tuple[CapturedDisk, ...]:
    ahci = 0
    made = []
    for index, disk in enumerate(_ordered(capture)):
        if disk.logical_sector_bytes != _SECTOR_BYTES or disk.size_bytes > _DISK_MOST_BYTES:
            raise CannotTranslateError(
                f"disk {disk.number} has {disk.size_bytes} bytes in sectors of "
                f"{disk.logical_sector_bytes}; vSphere has sectors of {_SECTOR_BYTES}, and "
                f"{_DISK_MOST_BYTES} bytes at most"
            )
        if disk.controller == "ide":
            controller_key, unit = _IDE_KEY + disk.controller_number, disk.location
        else:
            number, unit = divmod(ahci, _AHCI_UNITS)
            controller_key, ahci = _AHCI_KEY + number, ahci + 1
        made.append(_disk(index, disk, controller_key, unit))
    if ahci > _AHCI_MOST * _AHCI_UNITS:
        raise CannotTranslateError(
            f"{capture.vm.name} has {ahci} disks on SCSI; there are {_AHCI_MOST * _AHCI_UNITS} "
            "places on AHCI controllers"
        )
    return tuple(made)


def _disk(index: int, disk: HypervDisk, controller_key: int, unit: int) -> CapturedDisk:
    return CapturedDisk(
        key=_DISK_KEY + index,
        label=f"Hard disk {index + 1}",
        controller_key=controller_key,
        unit_number=unit,
        capacity_bytes=disk.size_bytes,
        backing="VirtualDisk.FlatVer2BackingInfo",
        datastore="",
        thin=True,
        eagerly_zeroed=False,
        uuid="",
        encrypted=False,
    )


def _controllers(disks: Sequence[CapturedDisk]) -> tuple[CapturedController, ...]:
    """Every VM has both channels of IDE."""
    ahci = {disk.controller_key - _AHCI_KEY for disk in disks if disk.controller_key >= _AHCI_KEY}
    wanted = [(IDE, _IDE_KEY, number) for number in range(2)]
    wanted += [(AHCI, _AHCI_KEY, number) for number in sorted(ahci)]
    return tuple(
        CapturedController(key=key + number, kind=kind, bus_number=number, shared_bus="")
        for kind, key, number in wanted
    )


# The VM


def _vm(capture: Capture) -> CapturedVm:
    vm = capture.vm
    disks = _disks(capture)
    firmware = vm.firmware if vm.generation == 2 else None
    cpus = min(max(vm.processor.count, 1), _CPUS_MOST)
    return CapturedVm(
        name=vm.name,
        hardware_version=0,
        guest_id=_guest(firmware),
        alternate_guest_name="",
        annotation=vm.notes,
        instance_uuid="",
        bios_uuid=_uuid(vm.identity.bios_guid),
        firmware="bios" if vm.generation == 1 else "efi",
        secure_boot=_guest(firmware) != UNKNOWN_GUEST,
        boot_delay_ms=0,
        enter_setup=False,
        boot_retry=False,
        boot_order=tuple(BootDevice(kind=BootKind.DISK, device_key=d.key) for d in disks[:1]),
        cpus=cpus,
        cores_per_socket=max(n for n in range(1, _CORES_MOST + 1) if cpus % n == 0),
        memory_mib=_memory_bytes(vm) // MIB,
        cpu_hot_add=False,
        cpu_hot_remove=False,
        memory_hot_add=False,
        nested_virtualisation=vm.processor.nested,
        cpu_share=None,
        memory_share=None,
        latency_sensitivity="",
        swap_placement="",
        disk_uuid_enabled=True,  # Hyper-V's disks have serial numbers
        virtualisation_security=None,
        io_mmu=None,
        controllers=_controllers(disks),
        disks=disks,
        nics=tuple(_nic(index, one) for index, one in enumerate(vm.adapters[:_NICS_MOST])),
        other_devices=tuple(_other_devices(vm, disks)),
        settings=(),
        encrypted=False,
        template=False,
        vapp=False,
        managed_by="",
        nvram=None,
        tags=(),
        attributes=(),
        placement=CapturedPlacement(
            folder_path="",
            datacenter_path="",
            resource_pool_path="",
            host="",
            cluster="",
            datastore="",
        ),
    )


def _guest(firmware: hv.Firmware | None) -> str:
    if firmware is None or not firmware.secure_boot:
        return UNKNOWN_GUEST
    return _GUESTS.get(firmware.secure_boot_template, UNKNOWN_GUEST)


def _uuid(text: str) -> str:
    """Empty for what is none."""
    try:
        return str(uuid.UUID(text.strip("{}")))
    except ValueError:
        return ""


def _memory_bytes(vm: hv.CapturedVm) -> int:
    steps = -(-max(vm.memory.startup_bytes, 1) // _MEMORY_STEP_BYTES)
    return min(steps * _MEMORY_STEP_BYTES, _MEMORY_MOST_BYTES)


def _nic(index: int, adapter: hv.Adapter) -> CapturedNic:
    digits = adapter.mac.upper()
    pairs = [digits[at : at + 2] for at in range(0, 12, 2)]
    return CapturedNic(
        key=_NIC_KEY + index,
        label=f"Network adapter {index + 1}",
        kind="VirtualE1000e",
        mac=":".join(pairs).lower() if _MAC.fullmatch(digits) else "",
        address_type="manual",
        start_connected=bool(adapter.switch_name),
        network_name=adapter.switch_name,
        network_kind="",
    )


def _other_devices(vm: hv.CapturedVm, disks: Sequence[CapturedDisk]) -> Iterator[CapturedDevice]:
    """A CD drive, from which VMware Tools are installed, and what is told as not made."""
    if not any((disk.controller_key, disk.unit_number) == (_IDE_KEY + 1, 0) for disk in disks):
        yield CapturedDevice(
            key=_DVD_KEY,
            kind="VirtualCdrom",
            label="CD/DVD drive 1",
            controller_key=_IDE_KEY + 1,
            unit_number=0,
        )
    if vm.security.tpm:
        yield CapturedDevice(
            key=_TPM_KEY, kind="VirtualTPM", label="Virtual TPM", controller_key=-1, unit_number=-1
        )
