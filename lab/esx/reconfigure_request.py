"""What a reconfiguration asks for, as values: settings to change, and devices one after the other.

Negative keys are the request's own names for devices it adds. Source: vSphere Web Services API,
VirtualMachineConfigSpec, VirtualDeviceConfigSpec.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lab.esx.datastore_path import DatastorePath
from lab.esx.hardware import ControllerKind, DiskMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """None leaves a setting as it is; an empty value in `extra` removes the key."""

    name: str | None = None
    guest_id: str | None = None
    version: int | None = None
    uuid: str | None = None
    instance_uuid: str | None = None
    cpus: int | None = None
    cores_per_socket: int | None = None
    memory_mib: int | None = None
    firmware: str | None = None
    secure_boot: bool | None = None
    boot_delay_ms: int | None = None
    annotation: str | None = None
    change_tracking: bool | None = None
    disk_uuid_enabled: bool | None = None
    swap_placement: str | None = None
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddController:
    temporary_key: int
    kind: ControllerKind
    bus_number: int | None
    shared_bus: str = "noSharing"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddDisk:
    """`create` makes a new disk at `path`, or where the host likes when it names no file."""

    controller_key: int
    unit: int | None
    path: DatastorePath | None
    capacity_bytes: int  # 0: that of the existing disk
    create: bool
    mode: DiskMode = DiskMode.PERSISTENT
    sharing: str = "sharingNone"
    thin: bool = True
    uuid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditDisk:
    key: int
    path: DatastorePath | None = None  # must be the present one
    capacity_bytes: int | None = None
    mode: DiskMode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddNic:
    kind: str
    network: str
    mac: str = ""
    address_type: str = "generated"
    start_connected: bool = True
    switch_uuid: str = ""
    portgroup_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditNic:
    key: int
    network: str | None = None
    mac: str | None = None
    address_type: str | None = None
    start_connected: bool | None = None
    connected: bool | None = None
    switch_uuid: str = ""
    portgroup_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveDevice:
    key: int
    destroy_files: bool = False


DeviceChange = AddController | AddDisk | EditDisk | AddNic | EditNic | RemoveDevice


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconfigureRequest:
    settings: Settings = field(default_factory=Settings)
    devices: tuple[DeviceChange, ...] = ()
