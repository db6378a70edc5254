"""The settings of a virtual machine of the practice Hyper-V host, as values.

What the guest does not notice (weights, guards, console modes) is kept and told, no more.
Thread model: immutable. Source of the names: design notes on Hyper-V, section 2.1.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, replace
from enum import IntEnum, StrEnum

from lab.hyperv_host.errors import NotFoundError, ParameterError
from lab.hyperv_host.windows_path import WindowsPath

IDE_CONTROLLER_ID = "83F8638B-8DCA-4152-9EDA-2CA8B33039B4"
WINDOWS_TEMPLATE = "MicrosoftWindows"
OTHER_VENDORS_TEMPLATE = "MicrosoftUEFICertificateAuthority"
SECURE_BOOT_TEMPLATES = {
    WINDOWS_TEMPLATE: "1734c6e8-3154-4dda-ba5f-a874cc483422",
    OTHER_VENDORS_TEMPLATE: "272e7447-90a4-4563-a4b9-8e4ab00526ce",
}
_LOCATIONS = {"ide": 2, "scsi": 64}


class VmState(IntEnum):
    RUNNING = 2
    OFF = 3


class ControllerType(StrEnum):
    IDE = "ide"
    SCSI = "scsi"


DVD_SLOT = (ControllerType.IDE, 1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """A virtual hard disk in its slot: a file, or a disk of the host (`disk_number`)."""

    controller: ControllerType
    controller_number: int
    location: int
    path: WindowsPath | None = None
    disk_number: int | None = None

    @property
    def slot(self) -> tuple[ControllerType, int, int]:
        return (self.controller, self.controller_number, self.location)

    @property
    def name(self) -> str:
        """Unique in its VM; short."""
        return f"{self.controller}{self.controller_number}-{self.location}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    adapter_id: str
    name: str
    mac: str  # 12 hex digits, upper case
    dynamic_mac: bool
    legacy: bool = False
    switch: str = ""
    vlan_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    startup_bytes: int
    minimum_bytes: int
    maximum_bytes: int
    dynamic: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    bios_guid: str
    bios_serial: str
    board_serial: str
    chassis_serial: str
    chassis_asset_tag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSettings:
    vm_id: str  # GUID, lower case
    name: str
    folder: WindowsPath
    generation: int
    version: str
    processors: int
    memory: Memory
    identity: Identity
    scsi_ids: tuple[str, ...]  # a GUID, upper case, per SCSI controller
    adapters: tuple[Adapter, ...] = ()
    drives: tuple[Drive, ...] = ()
    notes: str = ""
    nested: bool = False
    secure_boot: bool = False
    secure_boot_template: str = ""
    tpm: bool = False
    boot_first: str = ""  # the name of a drive, generation 2
    checkpoint_type: int = 3
    automatic_checkpoints: bool = False
    vss_service: bool = True
    has_dvd: bool = True  # of generation 1: the drive that a new machine has
    start_action: int = 3
    start_delay_s: int = 0
    stop_action: int = 3

    @property
    def vmcx_path(self) -> WindowsPath:
        return self.folder.joined("Virtual Machines", f"{self.vm_id.upper()}.vmcx")

    @property
    def has_pass_through(self) -> bool:
        return any(drive.disk_number is not None for drive in self.drives)

    def drive(self, controller: str, number: int, location: int) -> Drive:
        """Raises NotFoundError."""
        for drive in self.drives:
            if drive.slot == (controller, number, location):
                return drive
        raise NotFoundError(f"no drive at {controller} {number}:{location}")

    def attachment(self, drive: Drive, owner: str = "") -> str:
        """The InstanceID of a drive's setting; `owner` is a checkpoint's GUID."""
        of = (owner or self.vm_id).upper()
        place = f"{IDE_CONTROLLER_ID}\\{drive.controller_number}"
        if drive.controller is ControllerType.SCSI:
            place = f"{self.scsi_ids[drive.controller_number]}\\0"
        return f"Microsoft:{of}\\{place}\\{drive.location}\\D"

    def adapter_instance(self, adapter: Adapter) -> str:
        """The InstanceID of a network adapter's setting."""
        return f"Microsoft:{self.vm_id.upper()}\\{adapter.adapter_id}"

    def with_drive(self, drive: Drive) -> VmSettings:
        """With one drive more. Raises ParameterError: there is no such slot, or it is taken."""
        if self.generation == 2 and drive.path and drive.path.name.lower().endswith(".vhd"):
            raise ParameterError("A generation 2 machine takes VHDX files only.")
        numbers = len(self.scsi_ids)
        if drive.controller is ControllerType.IDE:
            numbers = 2 if self.generation == 1 else 0
        free = drive.slot not in {one.slot for one in self.drives}
        if self.generation == 1 and self.has_dvd and drive.slot == DVD_SLOT:
            free = False
        inside = 0 <= drive.location < _LOCATIONS[drive.controller]
        if not (0 <= drive.controller_number < numbers and inside and free):
            raise ParameterError(
                f"Failed to add device 'Virtual Hard Disk': {drive.controller} controller"
                f" {drive.controller_number} has no free location {drive.location}."
            )
        return replace(self, drives=(*self.drives, drive))

    def with_secure_boot(self, template: str) -> VmSettings:
        """With Secure Boot by a template; off, if it is empty. Raises ParameterError."""
        if template and self.generation == 1:
            raise ParameterError("The operation is not supported for a generation 1 machine.")
        if template and template not in SECURE_BOOT_TEMPLATES:
            raise ParameterError(f"The Secure Boot template '{template}' was not found.")
        return replace(self, secure_boot=bool(template), secure_boot_template=template)

    def with_drive_replaced(self, drive: Drive) -> VmSettings:
        """The drive in the slot of this one is this one from now on."""
        drives = tuple(drive if one.slot == drive.slot else one for one in self.drives)
        return replace(self, drives=drives)

    def encode(self) -> bytes:
        """What the lab writes as .vmcx: its own format, with every setting."""
        document = {key: value for key, value in asdict(self).items()}
        return b"LABVMCX\0" + json.dumps(document, default=str, indent=1).encode()


def new_identity() -> Identity:
    serial = "-".join(f"{uuid.uuid4().int % 10000:04d}" for _ in range(7))
    return Identity(
        bios_guid=f"{{{str(uuid.uuid4()).upper()}}}",
        bios_serial=serial,
        board_serial=serial,
        chassis_serial=serial,
        chassis_asset_tag=serial,
    )


def new_mac() -> str:
    """In the range that a Hyper-V host gives out."""
    return f"00155D{uuid.uuid4().hex[:6]}".upper()


def new_scsi_ids(count: int) -> tuple[str, ...]:
    return tuple(str(uuid.uuid4()).upper() for _ in range(count))
