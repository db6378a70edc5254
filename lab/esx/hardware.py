"""What a virtual machine is made of: its configuration as values, with VMware's device keys.

Keys and units are VMware's: SCSI controllers 1000 + bus and their disks 2000 + 16 * bus + unit,
IDE 200 and 3000, SATA 15000 and 16000, NVMe 31000 and 32000, network adapters 4000 and up. Unit 7
of a SCSI bus is the controller itself. Source: vSphere Web Services API, VirtualDevice; design
notes on vSphere, section 4a. Values; no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from lab.esx.datastore_path import DatastorePath

SCSI_CONTROLLER_UNIT = 7


class ControllerKind(StrEnum):
    """Values are the spelling of `virtualDev` in a .vmx, or the bus's name where it has none."""

    PVSCSI = "pvscsi"
    LSI_SAS = "lsisas1068"
    LSI_LOGIC = "lsilogic"
    BUS_LOGIC = "buslogic"
    SATA = "sata"
    NVME = "nvme"
    IDE = "ide"

    @property
    def bus(self) -> str:
        return self.value if self in _OTHER_BUSES else "scsi"


_OTHER_BUSES = (ControllerKind.SATA, ControllerKind.NVME, ControllerKind.IDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BusLayout:
    """First keys, how many buses there may be, and units of each."""

    controller_key: int
    disk_key: int
    key_stride: int
    buses: int
    units: int


BUSES = {
    "ide": BusLayout(controller_key=200, disk_key=3000, key_stride=2, buses=2, units=2),
    "scsi": BusLayout(controller_key=1000, disk_key=2000, key_stride=16, buses=4, units=16),
    "sata": BusLayout(controller_key=15000, disk_key=16000, key_stride=30, buses=4, units=30),
    "nvme": BusLayout(controller_key=31000, disk_key=32000, key_stride=15, buses=4, units=15),
}
_PVSCSI_UNITS = 65  # targets 0 to 64 without unit 7
_PVSCSI_HIGH_KEY = 131072  # of the units that have no key in the old scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    kind: ControllerKind
    bus_number: int
    shared_bus: str = "noSharing"

    @property
    def key(self) -> int:
        return BUSES[self.kind.bus].controller_key + self.bus_number

    @property
    def units(self) -> int:
        if self.kind is ControllerKind.PVSCSI:
            return _PVSCSI_UNITS
        return BUSES[self.kind.bus].units

    @property
    def prefix(self) -> str:
        """Of its settings in a .vmx: `scsi0`."""
        return f"{self.kind.bus}{self.bus_number}"

    @property
    def pci_slot(self) -> int:
        """What VMware assigns to SCSI adapters: `scsiN.pciSlotNumber`."""
        return 160 + self.bus_number

    def has_unit(self, unit: int) -> bool:
        return 0 <= unit < self.units and not (
            self.kind.bus == "scsi" and unit == SCSI_CONTROLLER_UNIT
        )

    def disk_key(self, unit: int) -> int:
        layout = BUSES[self.kind.bus]
        if unit >= layout.key_stride:
            return _PVSCSI_HIGH_KEY + self.bus_number * _PVSCSI_UNITS + unit
        return layout.disk_key + layout.key_stride * self.bus_number + unit


class DiskMode(StrEnum):
    PERSISTENT = "persistent"
    INDEPENDENT_PERSISTENT = "independent_persistent"
    INDEPENDENT_NONPERSISTENT = "independent_nonpersistent"

    @property
    def independent(self) -> bool:
        return self is not DiskMode.PERSISTENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """`path` is the descriptor of the leaf; `change_id` is only set in a snapshot's copy."""

    key: int
    controller_key: int
    unit: int
    path: DatastorePath
    capacity_bytes: int
    label: str
    mode: DiskMode = DiskMode.PERSISTENT
    sharing: str = "sharingNone"
    thin: bool = True
    uuid: str = ""
    change_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """`network` is a port group's name; one of a distributed switch has its ids as well."""

    key: int
    kind: str  # vmxnet3, e1000, e1000e
    network: str
    mac: str
    label: str
    address_type: str = "generated"
    start_connected: bool = True
    connected: bool = True
    switch_uuid: str = ""
    portgroup_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmConfig:
    name: str
    vmx_path: DatastorePath
    uuid: str
    instance_uuid: str
    guest_id: str = "otherLinux64Guest"
    version: int = 19
    cpus: int = 1
    cores_per_socket: int = 1
    memory_mib: int = 512
    firmware: str = "bios"
    secure_boot: bool = False
    boot_delay_ms: int = 0
    annotation: str = ""
    change_tracking: bool = False
    disk_uuid_enabled: bool = False
    template: bool = False
    swap_placement: str = "inherit"
    controllers: tuple[Controller, ...] = ()
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    extra: dict[str, str] = field(default_factory=dict)  # never changed in place

    @property
    def folder(self) -> DatastorePath:
        return self.vmx_path.folder

    @property
    def file_stem(self) -> str:
        return self.vmx_path.name.removesuffix(".vmx")

    @property
    def nvram_path(self) -> DatastorePath:
        return self.folder.child(self.extra.get("nvram", f"{self.file_stem}.nvram"))

    def controller(self, key: int) -> Controller | None:
        return next((one for one in self.controllers if one.key == key), None)

    def disk(self, key: int) -> Disk | None:
        return next((disk for disk in self.disks if disk.key == key), None)

    def tracked(self, disk: Disk) -> bool:
        """Whether changes of this disk are to be tracked: the VM's flag and the disk's own."""
        controller = self.controller(disk.controller_key)
        if controller is None or not self.change_tracking or disk.mode.independent:
            return False
        own = self.extra.get(f"{controller.prefix}:{disk.unit}.ctkEnabled", "TRUE")
        return own.upper() == "TRUE" and disk.sharing != "sharingMultiWriter"

    def with_disk(self, changed: Disk) -> VmConfig:
        """Replace the disk of the same key."""
        disks = tuple(changed if disk.key == changed.key else disk for disk in self.disks)
        return replace(self, disks=disks)
