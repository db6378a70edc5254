"""A VM captured on vSphere, as one of Hyper-V.

BIOS becomes generation 1, EFI generation 2. The disk that boots comes first: generation 1 looks for
it on IDE only, where most guests find it without a driver of Hyper-V's, so its three IDE places
that no DVD drive has are filled before SCSI; generation 2 has SCSI alone. Adapters become
synthetic; for a guest too old for those, and of generation 1, legacy ones.

Pure; see `translation`. Source: design notes on Hyper-V, section 11; Microsoft, "Maximums for
Hyper-V scalability" (of Windows Server 2016, the oldest that is spoken to in full).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from appliance.base.units import MIB, TIB
from appliance.targets.contract import WantedDisk
from appliance.targets.hyperv_from_vsphere_told import TPM, told
from appliance.targets.matched_disks import matched_disks
from appliance.targets.translation import CannotTranslateError, NativeVm, placed
from hyperv import captured_vm as hv
from hyperv.config_capture import Capture, CapturedDisk
from vmware.captured_vm import BootKind, CapturedNic, CapturedVm
from vmware.captured_vm import CapturedDisk as VsphereDisk
from vmware.vm_spec_devices import disk_address

_Place = tuple[str, int, int]  # controller, its number, location

_IDE_PLACES: tuple[_Place, ...] = (("ide", 0, 0), ("ide", 0, 1), ("ide", 1, 1))
_SCSI_CONTROLLERS, _SCSI_LOCATIONS = 4, 64
_SECTOR_BYTES, _PHYSICAL_SECTOR_BYTES = 512, 4096
_MEMORY_STEP_MIB, _MEMORY_LEAST_MIB = 2, 32
_CPUS_MOST = {1: 64, 2: 240}
_MEMORY_MOST_BYTES = {1: TIB, 2: 12 * TIB}
_SYNTHETIC_MOST, _LEGACY_MOST = 8, 4
_NAME_MOST = 100
_NOT_IN_NAMES = re.compile(r'[\\/:*?"<>|\x00-\x1f\x7f]')  # it becomes a folder's name
_ORDER = ("ide", "scsi", "sata", "nvme")  # in which disks are looked for that no order names
_WITHOUT_VMBUS = re.compile(
    r"(win(NT|2000|XP|Vista|Net|31|95|98|Me)|dos|os2|netware|solaris(?!11)|unixWare|openServer"
    r"|eComStation|freebsdGuest|freebsd64Guest|other(24x|26x)Linux|rhel[2-5]|darwin).*",
    re.IGNORECASE,
)
_WINDOWS_TEMPLATE, _OTHERS_TEMPLATE = "MicrosoftWindows", "MicrosoftUEFICertificateAuthority"


def translate(captured: CapturedVm, disks: Sequence[WantedDisk]) -> NativeVm[Capture]:
    """Raises: CannotTranslateError; UsageError: a disk is not where the document has it."""
    generation = 2 if captured.firmware == "efi" else 1
    places = _disk_places(captured, generation)
    made = [
        _disk(number, disk, places[disk.key])
        for number, disk in matched_disks(captured, tuple(disks)).items()
    ]
    vm = _vm(captured, generation, tuple(places.values()))
    return NativeVm(
        vm=Capture(host="", os_version="", vm=vm, disks=made),
        disks=placed(disks, {disk.number: _name(_place_of(disk)) for disk in made}),
        is_foreign=True,
        reasons=tuple(told(captured, vm)),
    )


# Disks


def _disk_places(captured: CapturedVm, generation: int) -> dict[int, _Place]:
    """By key; also of disks that the point does not hold, so that it never depends on which."""
    ordered = sorted(captured.disks, key=lambda disk: _boot_rank(captured, disk))
    places = tuple(islice(_places(generation), len(ordered)))
    if len(places) < len(ordered):
        raise CannotTranslateError(
            f"{captured.name} has {len(ordered)} disks; a Hyper-V VM has places for {len(places)}"
        )
    return {disk.key: place for disk, place in zip(ordered, places, strict=True)}


def _boot_rank(captured: CapturedVm, disk: VsphereDisk) -> tuple[bool, int, str, int]:
    boots = next((d.device_key for d in captured.boot_order if d.kind is BootKind.DISK), None)
    by_hand = {key.lower(): value for key, value in captured.settings}.get("bios.hddorder", "")
    place = disk_address(captured, disk)
    bus, _, _ = place.partition(":")
    is_first = disk.key == boots if boots is not None else place == by_hand.split(",")[0]
    family = bus.rstrip("0123456789")
    rank = _ORDER.index(family) if family in _ORDER else len(_ORDER)
    return not is_first, rank, bus, disk.unit_number


def _places(generation: int) -> Iterator[_Place]:
    scsi = (
        ("scsi", controller, location)
        for controller in range(_SCSI_CONTROLLERS)
        for location in range(_SCSI_LOCATIONS)
    )
    return chain(_IDE_PLACES, scsi) if generation == 1 else scsi


def _disk(number: int, disk: VsphereDisk, place: _Place) -> CapturedDisk:
    controller, controller_number, location = place
    return CapturedDisk(
        number=number,
        controller=controller,
        controller_number=controller_number,
        location=location,
        path="",
        format="vhdx",
        type="dynamic",
        virtual_disk_id="",
        size_bytes=disk.capacity_bytes,
        logical_sector_bytes=_SECTOR_BYTES,
        physical_sector_bytes=_PHYSICAL_SECTOR_BYTES,
    )


def _place_of(disk: CapturedDisk) -> _Place:
    return disk.controller, disk.controller_number, disk.location


def _name(place: _Place) -> str:
    controller, number, location = place
    return f"{controller}{number}:{location}"


# The VM


def _vm(captured: CapturedVm, generation: int, places: Sequence[_Place]) -> hv.CapturedVm:
    memory_bytes = _memory_bytes(captured, generation)
    scsi = 1 + max((number for kind, number, _ in places if kind == "scsi"), default=0)
    return hv.CapturedVm(
        id=captured.instance_uuid or captured.bios_uuid,
        name=_file_name(captured.name),
        notes=captured.annotation,
        generation=generation,
        version="",
        identity=hv.Identity(
            bios_guid=f"{{{captured.bios_uuid.upper()}}}" if captured.bios_uuid else "",
            bios_serial="",
            board_serial="",
            chassis_serial="",
            chassis_asset_tag="",
        ),
        processor=hv.Processor(
            count=min(max(captured.cpus, 1), _CPUS_MOST[generation]),
            reserve=0,
            limit=100,
            weight=100,
            nested=captured.nested_virtualisation,
            compatibility=False,
        ),
        memory=hv.Memory(
            startup_bytes=memory_bytes,
            minimum_bytes=memory_bytes,
            maximum_bytes=memory_bytes,
            dynamic=False,
            buffer=20,
            weight=50,
        ),
        firmware=_firmware(captured) if generation == 2 else None,
        bios=hv.Bios(startup_order=[2, 1, 3, 0], num_lock=False) if generation == 1 else None,
        security=hv.Security(
            tpm=generation == 2 and any(d.kind == TPM for d in captured.other_devices),
            shielded=False,
            encrypt_state=False,
        ),
        checkpoint_type=3,
        automatic_checkpoints=False,
        start_action=2,
        start_delay_s=0,
        stop_action=3,
        critical_error_action=1,
        clustered=False,
        adapters=_adapters(captured, generation),
        controllers=[
            *(hv.Controller(type="ide", number=n) for n in (range(2) if generation == 1 else ())),
            *(hv.Controller(type="scsi", number=n) for n in range(scsi)),
        ],
        dvds=[hv.Dvd(controller="ide", controller_number=1, location=0, path="")]
        if generation == 1
        else [],
        integration=[],
    )


def _file_name(name: str) -> str:
    """The name, as far as a folder may have it: Windows takes no dot or space at its end."""
    allowed = _NOT_IN_NAMES.sub("-", name).strip()[:_NAME_MOST]
    return allowed.strip(" .").strip() or "vm"


def _memory_bytes(captured: CapturedVm, generation: int) -> int:
    steps = -(-max(captured.memory_mib, _MEMORY_LEAST_MIB) // _MEMORY_STEP_MIB)
    return min(steps * _MEMORY_STEP_MIB * MIB, _MEMORY_MOST_BYTES[generation])


def _firmware(captured: CapturedVm) -> hv.Firmware:
    template = _WINDOWS_TEMPLATE if _is_windows(captured) else _OTHERS_TEMPLATE
    return hv.Firmware(
        secure_boot=captured.secure_boot,
        secure_boot_template=template if captured.secure_boot else "",
        secure_boot_template_id="",
        console_mode=0,
        pause_after_boot_failure=False,
        boot_order=[],
    )


def _is_windows(captured: CapturedVm) -> bool:
    return captured.guest_id.lower().startswith("win")


def _is_legacy(captured: CapturedVm, generation: int) -> bool:
    return generation == 1 and _WITHOUT_VMBUS.fullmatch(captured.guest_id) is not None


def _nics(captured: CapturedVm, generation: int) -> tuple[CapturedNic, ...]:
    most = _LEGACY_MOST if _is_legacy(captured, generation) else _SYNTHETIC_MOST
    return captured.nics[:most]


def _adapters(captured: CapturedVm, generation: int) -> list[hv.Adapter]:
    return [
        hv.Adapter(
            id="",
            name=nic.label,
            legacy=_is_legacy(captured, generation),
            mac=_mac(nic.mac),
            dynamic_mac=not _mac(nic.mac),
            switch_name=nic.network_name if nic.start_connected else "",
            switch_id="",
            connected=nic.start_connected,
            vlan_mode=0,
            vlan_id=0,
            mac_spoofing=False,
            dhcp_guard=False,
            router_guard=False,
            device_naming=False,
            addresses=[],
        )
        for nic in _nics(captured, generation)
    ]


def _mac(text: str) -> str:
    """12 digits; empty for what is no address. One that a server made is kept like any other."""
    digits = text.replace(":", "").replace("-", "").upper()
    return digits if re.fullmatch(r"[0-9A-F]{12}", digits) else ""
