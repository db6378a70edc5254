"""The .vmx file: text of settings, and a virtual machine's configuration as such a text.

What a VmConfig says in fields is written under VMware's names; all other settings of a file stay
as `extra` and go back as they came. Reading follows `encoding`, ignores case of names, and refuses
what a host would refuse: no `config.version`, no `virtualHW.version`, numbers that are none.
Source: design notes on vSphere, section 5 ".vmx minimum".

Invariant: `config_of(settings_of(config))` is the configuration without what only a snapshot has.
"""

from __future__ import annotations

import re
import uuid as uuids
from collections.abc import Callable

from lab.esx.datastore_path import DatastorePath
from lab.esx.errors import HostError
from lab.esx.hardware import BUSES, Controller, ControllerKind, Disk, DiskMode, Nic, VmConfig

VMX_BYTES_MAX = 256 * 1024
_LINE = re.compile(r'([\w.:\-]+)\s*=\s*"([^"]*)"')
_ESCAPED = re.compile(r"\|([0-9A-Fa-f]{2})")
_NIC_KINDS = frozenset({"vmxnet3", "vmxnet2", "e1000", "e1000e", "vlance"})
_NICS_MAX = 10
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_GUESTS = {"otherLinux64Guest": "other-64", "debian12_64Guest": "debian12-64"}
_MODES = {"independent-persistent": DiskMode.INDEPENDENT_PERSISTENT,
          "independent-nonpersistent": DiskMode.INDEPENDENT_NONPERSISTENT,
          "persistent": DiskMode.PERSISTENT}  # fmt: skip
# Settings that VmConfig holds in fields: everything else is `extra`.
_OWN = re.compile(
    r"\.encoding|config\.version|virtualhw\.version|displayname|guestos|memsize|numvcpus"
    r"|cpuid\.corespersocket|firmware|uefi\.secureboot\.enabled|bios\.bootdelay|annotation"
    r"|ctkenabled|disk\.enableuuid|uuid\.bios|vc\.uuid|lab\.guestid|lab\.swapplacement"
    r"|(scsi|sata|nvme|ide)\d(\.(present|virtualdev|sharedbus))"
    r"|(scsi|sata|nvme|ide)\d:\d+\.(present|devicetype|filename|mode|sharing)"
    r"|ethernet\d\.(present|virtualdev|networkname|addresstype|address|generatedaddress"
    r"|startconnected|dvs\.switchid|dvs\.portgroupid)",
    re.IGNORECASE,
)


class InvalidVmxError(HostError):
    """The file is not the configuration of a virtual machine."""

    fault = "InvalidVmConfig"


def parse_vmx(text: str) -> dict[str, str]:
    """Settings by name as written; the last of a name wins. Raises InvalidVmxError."""
    settings: dict[str, str] = {}
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise InvalidVmxError(f"not a setting: {line[:80]!r}")
        settings[match[1]] = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), match[2])
    return settings


def format_vmx(settings: dict[str, str]) -> str:
    lines = [f'{name} = "{_escaped(value)}"' for name, value in settings.items()]
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return "".join(f"|{ord(char):02X}" if char in '|"#\r\n' else char for char in value)


def settings_of(config: VmConfig) -> dict[str, str]:
    settings = {
        ".encoding": "UTF-8",
        "config.version": "8",
        "virtualHW.version": str(config.version),
        "displayName": config.name,
        "guestOS": _GUESTS.get(config.guest_id, config.guest_id.removesuffix("Guest")),
        "lab.guestId": config.guest_id,
        "memSize": str(config.memory_mib),
        "numvcpus": str(config.cpus),
        "cpuid.coresPerSocket": str(config.cores_per_socket),
        "firmware": config.firmware,
        "uuid.bios": spaced(config.uuid),
        "vc.uuid": spaced(config.instance_uuid),
        "ctkEnabled": _bool(config.change_tracking),
        "disk.EnableUUID": _bool(config.disk_uuid_enabled),
    }
    if config.secure_boot:
        settings["uefi.secureBoot.enabled"] = "TRUE"
    if config.boot_delay_ms:
        settings["bios.bootDelay"] = str(config.boot_delay_ms)
    if config.swap_placement != "inherit":
        settings["lab.swapPlacement"] = config.swap_placement
    if config.annotation:
        settings["annotation"] = config.annotation
    for controller in config.controllers:
        settings.update(_controller_settings(controller))
    for disk in config.disks:
        settings.update(_disk_settings(config, disk))
    for nic in config.nics:
        settings.update(_nic_settings(nic))
    settings.update(config.extra)
    return settings


def _controller_settings(controller: Controller) -> dict[str, str]:
    prefix = controller.prefix
    if controller.kind is ControllerKind.IDE:
        return {}
    settings = {f"{prefix}.present": "TRUE"}
    if controller.kind.bus == "scsi":
        settings[f"{prefix}.virtualDev"] = controller.kind.value
        if controller.shared_bus != "noSharing":
            settings[f"{prefix}.sharedBus"] = controller.shared_bus.removesuffix("Sharing")
    return settings


def _disk_settings(config: VmConfig, disk: Disk) -> dict[str, str]:
    controller = config.controller(disk.controller_key)
    assert controller is not None
    prefix = f"{controller.prefix}:{disk.unit}"
    near = disk.path.folder == config.folder
    settings = {
        f"{prefix}.present": "TRUE",
        f"{prefix}.deviceType": "ata-hardDisk" if controller.kind.bus == "ide" else "scsi-hardDisk",
        f"{prefix}.fileName": disk.path.name if near else str(disk.path),
    }
    if disk.mode.independent:
        settings[f"{prefix}.mode"] = disk.mode.value.replace("_", "-")
    if disk.sharing == "sharingMultiWriter":
        settings[f"{prefix}.sharing"] = "multi-writer"
    return settings


def _nic_settings(nic: Nic) -> dict[str, str]:
    prefix = f"ethernet{nic.key - 4000}"
    generated = nic.address_type != "manual"
    settings = {
        f"{prefix}.present": "TRUE",
        f"{prefix}.virtualDev": nic.kind,
        f"{prefix}.networkName": nic.network,
        f"{prefix}.addressType": "generated" if generated else "static",
        f"{prefix}.{'generatedAddress' if generated else 'address'}": nic.mac,
        f"{prefix}.startConnected": _bool(nic.start_connected),
    }
    if nic.switch_uuid:
        settings[f"{prefix}.dvs.switchId"] = nic.switch_uuid
        settings[f"{prefix}.dvs.portgroupId"] = nic.portgroup_key
    return settings


def config_of(
    settings: dict[str, str],
    vmx_path: DatastorePath,
    capacity_of: Callable[[DatastorePath], tuple[int, str, bool]],
) -> VmConfig:
    """Build the configuration; `capacity_of` says (bytes, uuid, thin) of a disk's descriptor.

    Raises:
        InvalidVmxError: the settings are no virtual machine's.
        HostError: what `capacity_of` raises, for a disk that cannot be opened.
    """
    reader = _Reader(settings)
    if not reader.text("config.version"):
        raise InvalidVmxError(f"{vmx_path} has no config.version")
    version = reader.number("virtualHW.version", None, range(3, 23))
    controllers = tuple(reader.controllers())
    memory = reader.number("memSize", 512, range(4, 1 << 24))
    guest = reader.text("guestOS", "other-64")
    found = {short: long for long, short in _GUESTS.items()}.get(guest, f"{guest}Guest")
    return VmConfig(
        name=reader.text("displayName", vmx_path.name.removesuffix(".vmx")),
        vmx_path=vmx_path,
        uuid=reader.uuid("uuid.bios"),
        instance_uuid=reader.uuid("vc.uuid"),
        guest_id=reader.text("lab.guestId", found.replace("-", "_")),
        version=version,
        cpus=reader.number("numvcpus", 1, range(1, 769)),
        cores_per_socket=reader.number("cpuid.coresPerSocket", 1, range(1, 769)),
        memory_mib=memory,
        firmware=reader.text("firmware", "bios"),
        secure_boot=reader.flag("uefi.secureBoot.enabled"),
        boot_delay_ms=reader.number("bios.bootDelay", 0, range(0, 10001)),
        annotation=reader.text("annotation"),
        swap_placement=reader.text("lab.swapPlacement", "inherit"),
        change_tracking=reader.flag("ctkEnabled"),
        disk_uuid_enabled=reader.flag("disk.EnableUUID"),
        controllers=controllers,
        disks=tuple(reader.disks(controllers, vmx_path, capacity_of)),
        nics=tuple(reader.nics()),
        extra={name: value for name, value in settings.items() if not _OWN.fullmatch(name)},
    )


class _Reader:
    def __init__(self, settings: dict[str, str]) -> None:
        self._values = {name.lower(): value for name, value in settings.items()}

    def text(self, name: str, default: str = "") -> str:
        return self._values.get(name.lower(), default)

    def flag(self, name: str) -> bool:
        return self.text(name).upper() == "TRUE"

    def number(self, name: str, default: int | None, allowed: range) -> int:
        text = self.text(name)
        if not text and default is not None:
            return default
        if not text.isdecimal() or int(text) not in allowed:
            raise InvalidVmxError(f"{name} is {text!r}", property=name)
        return int(text)

    def uuid(self, name: str) -> str:
        digits = self.text(name).replace(" ", "").replace("-", "")
        if not digits:
            return str(uuids.uuid4())
        try:
            return str(uuids.UUID(digits))
        except ValueError as error:
            raise InvalidVmxError(f"{name} is {digits!r}", property=name) from error

    def controllers(self) -> list[Controller]:
        found = [Controller(kind=ControllerKind.IDE, bus_number=number) for number in range(2)]
        for bus, layout in BUSES.items():
            for number in range(layout.buses):
                prefix = f"{bus}{number}"
                if bus == "ide" or not self.flag(f"{prefix}.present"):
                    continue
                name = self.text(f"{prefix}.virtualDev", "lsilogic") if bus == "scsi" else bus
                try:
                    kind = ControllerKind(name)
                except ValueError as error:
                    raise InvalidVmxError(f"{prefix} is a {name}", property=prefix) from error
                shared = self.text(f"{prefix}.sharedBus", "none").removesuffix("Sharing")
                sharing = {"physical": "physicalSharing", "virtual": "virtualSharing"}
                found.append(
                    Controller(
                        kind=kind, bus_number=number, shared_bus=sharing.get(shared, "noSharing")
                    )
                )
        return found

    def disks(
        self,
        controllers: tuple[Controller, ...],
        vmx_path: DatastorePath,
        capacity_of: Callable[[DatastorePath], tuple[int, str, bool]],
    ) -> list[Disk]:
        disks: list[Disk] = []
        for controller in controllers:
            for unit in filter(controller.has_unit, range(controller.units)):
                prefix = f"{controller.prefix}:{unit}"
                is_disk = self.text(f"{prefix}.deviceType", "disk").lower().endswith("disk")
                if not self.flag(f"{prefix}.present") or not is_disk:
                    continue
                path = vmx_path.folder.resolve(self.text(f"{prefix}.fileName"))
                capacity, uuid, thin = capacity_of(path)
                multi = self.text(f"{prefix}.sharing") == "multi-writer"
                disks.append(
                    Disk(
                        key=controller.disk_key(unit),
                        controller_key=controller.key,
                        unit=unit,
                        path=path,
                        capacity_bytes=capacity,
                        label=f"Hard disk {len(disks) + 1}",
                        mode=self._mode(prefix),
                        sharing="sharingMultiWriter" if multi else "sharingNone",
                        thin=thin,
                        uuid=uuid,
                    )
                )
        return disks

    def _mode(self, prefix: str) -> DiskMode:
        text = self.text(f"{prefix}.mode", "persistent")
        if text not in _MODES:
            raise InvalidVmxError(f"{prefix}.mode is {text!r}", property=prefix)
        return _MODES[text]

    def nics(self) -> list[Nic]:
        nics = []
        for number in range(_NICS_MAX):
            prefix = f"ethernet{number}"
            if not self.flag(f"{prefix}.present"):
                continue
            kind = self.text(f"{prefix}.virtualDev", "e1000")
            manual = self.text(f"{prefix}.addressType") == "static"
            mac = self.text(f"{prefix}.{'address' if manual else 'generatedAddress'}").lower()
            if kind not in _NIC_KINDS or (mac and not _MAC.fullmatch(mac)):
                raise InvalidVmxError(f"{prefix} is a {kind} with {mac!r}", property=prefix)
            nics.append(
                Nic(
                    key=4000 + number,
                    kind=kind,
                    network=self.text(f"{prefix}.networkName", "VM Network"),
                    mac=mac or new_mac(),
                    label=f"Network adapter {number + 1}",
                    address_type="manual" if manual else "generated",
                    start_connected=self.text(f"{prefix}.startConnected", "TRUE").upper() == "TRUE",
                    switch_uuid=self.text(f"{prefix}.dvs.switchId"),
                    portgroup_key=self.text(f"{prefix}.dvs.portgroupId"),
                )
            )
        return nics


def new_mac() -> str:
    """In VMware's range of generated addresses."""
    tail = uuids.uuid4().bytes[:3]
    return "00:0c:29:" + ":".join(f"{byte:02x}" for byte in tail)


def spaced(uuid: str) -> str:
    data = uuids.UUID(uuid).bytes
    return "-".join(" ".join(f"{byte:02x}" for byte in half) for half in (data[:8], data[8:]))


def _bool(value: bool) -> str:
    return "TRUE" if value else "FALSE"
