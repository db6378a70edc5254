"""A running guest: the configuration of a virtual machine as one QEMU process.

Place: below `vm_power`, above `qemu_process`. Emulated (TCG), because a practice host is mostly a
virtual machine itself; adapters are those VMware offers, so a guest meets the same hardware here
and there. The guest's network is QEMU's own: it reaches nothing, and the ports in the setting
`lab.forward` ("8080,7777") lead to it from a port of 127.0.0.1; without the setting, as in a
machine that was restored, those of the lab's own guests.

Invariants: QEMU stays after the guest has shut down, so that what it tracked can be read; it dies
with its keeper. Thread model: any thread; callbacks come on QEMU's own threads and must not block.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.esx.datastore import Datastores
from lab.esx.disk_chain import DiskChain
from lab.esx.errors import HostError
from lab.esx.hardware import Controller, ControllerKind, Disk, Nic, VmConfig
from lab.esx.open_disk import OpenDisk, throttle_group
from lab.esx.running_machine import RunningMachine, machine_arguments

FORWARD_SETTING = "lab.forward"
_GUEST_PORTS = "80,7777,8080"
_PORTS_MAX = 8
_ADAPTERS = {
    ControllerKind.PVSCSI: "pvscsi",
    ControllerKind.LSI_SAS: "mptsas1068",
    ControllerKind.LSI_LOGIC: "lsi53c895a",
    ControllerKind.SATA: "ich9-ahci",
    ControllerKind.NVME: "nvme",
}
_NICS = {"vmxnet3": "vmxnet3", "e1000": "e1000", "e1000e": "e1000e", "vlance": "pcnet"}
_UNITS = {ControllerKind.PVSCSI: 64, ControllerKind.LSI_SAS: 8, ControllerKind.SATA: 6}


class MachineConfigError(HostError):
    """The configuration is one that this host cannot run."""

    fault = "GenericVmConfigFault"


class Machine(RunningMachine):
    """Starts stopped; `run` lets the guest go."""

    def __init__(
        self,
        config: VmConfig,
        disks: dict[int, DiskChain],
        datastores: Datastores,
        folder: Path,
        *,
        on_line: Callable[[str], None],
        on_event: Callable[[str, dict[str, Any]], None],
        on_end: Callable[[], None],
    ) -> None:
        """`disks` are the chains by device key; `folder` takes the serial log and sockets."""
        _refuse_impossible(config)
        self.config = config
        self.disks = {
            key: OpenDisk(datastores, chain, f"d{key}", stunned=self.stunned)
            for key, chain in disks.items()
        }
        self.socket_path = folder / "map.sock"
        self.has_network = bool(config.nics)
        self._datastores = datastores
        super().__init__(self._command, folder, on_line=on_line, on_event=on_event, on_end=on_end)

    def add_disk(self, disk: Disk, controller: Controller, chain: DiskChain) -> None:
        """Plug a disk into the running guest."""
        open_disk = OpenDisk(self._datastores, chain, f"d{disk.key}", stunned=self.stunned)
        open_disk.open(self.qmp)
        try:
            self.qmp.execute("device_add", _device(disk, controller, open_disk.top))
        except HostError:
            open_disk.close(self.qmp)
            raise
        self.disks[disk.key] = open_disk

    def remove_disk(self, key: int) -> None:
        """Unplug a SCSI disk: QEMU takes it away without asking the guest."""
        mark = self.qmp.event_mark
        self.qmp.execute("device_del", id=f"disk{key}")
        self.qmp.wait_event(
            lambda name, data: name == "DEVICE_DELETED" and data.get("device") == f"disk{key}",
            since=mark,
            timeout_s=20.0,
        )
        self.disks.pop(key).close(self.qmp)

    def _command(self, qmp_fd: int, serial_fd: int) -> list[str]:
        config = self.config
        return [
            *machine_arguments(qmp_fd, serial_fd, memory_mib=config.memory_mib, cpus=config.cpus),
            *("-uuid", config.uuid, "-boot", "menu=off,strict=on", "-device", "VGA"),
            *("-object", json.dumps(throttle_group())),
            *self._disk_arguments(),
            *_nic_arguments(config),
        ]

    def _disk_arguments(self) -> list[str]:
        arguments = []
        for controller in self.config.controllers:
            if controller.kind is not ControllerKind.IDE:
                adapter = {"driver": _ADAPTERS[controller.kind], "id": controller.prefix}
                if controller.kind is ControllerKind.NVME:
                    adapter["serial"] = f"holdfast{controller.bus_number}"
                arguments += ["-device", json.dumps(adapter)]
        for place, disk in enumerate(self.config.disks):
            held_by = self.config.controller(disk.controller_key)
            assert held_by is not None
            open_disk = self.disks[disk.key]
            for node in open_disk.start_nodes():
                arguments += ["-blockdev", json.dumps(node)]
            device = _device(disk, held_by, open_disk.top) | {"bootindex": place}
            arguments += ["-device", json.dumps(device)]
        return arguments


def _refuse_impossible(config: VmConfig) -> None:
    if config.firmware != "bios":
        raise MachineConfigError("this host has no EFI firmware")
    if not 1 <= config.cpus <= 8 or not 16 <= config.memory_mib <= 8192:
        raise MachineConfigError("this host runs guests of up to 8 processors and 8 GiB")
    for controller in config.controllers:
        if controller.kind is ControllerKind.BUS_LOGIC:
            raise MachineConfigError("this host has no BusLogic adapter")
    for disk in config.disks:
        held_by = config.controller(disk.controller_key)
        if held_by is None or disk.unit >= _UNITS.get(held_by.kind, 16):
            raise MachineConfigError(f"{disk.label} is at unit {disk.unit}, too high for this host")
    _forwarded(config)


def _device(disk: Disk, controller: Controller, node: str) -> dict[str, Any]:
    device: dict[str, Any] = {"id": f"disk{disk.key}", "drive": node}
    bus, unit = controller.prefix, disk.unit
    match controller.kind.bus:
        case "scsi":
            device |= {"driver": "scsi-hd", "bus": f"{bus}.0", "scsi-id": unit, "lun": 0}
        case "sata":
            device |= {"driver": "ide-hd", "bus": f"{bus}.{unit}"}
        case "ide":
            device |= {"driver": "ide-hd", "bus": f"ide.{controller.bus_number}", "unit": unit}
        case _:
            return device | {"driver": "nvme-ns", "bus": bus, "nsid": unit + 1}
    return device | {"serial": disk.uuid.replace("-", "")[:20]}


def _nic_arguments(config: VmConfig) -> list[str]:
    arguments = []
    for place, nic in enumerate(config.nics):
        forwards = "".join(
            f",hostfwd=tcp:127.0.0.1:0-:{port}"
            for port in (_forwarded(config) if not place else ())
        )
        arguments += ["-netdev", f"user,id=net{place},restrict=on,ipv6=off{forwards}"]
        arguments += ["-device", json.dumps(_nic(nic, place))]
    return arguments


def _nic(nic: Nic, place: int) -> dict[str, Any]:
    driver = _NICS.get(nic.kind)
    if driver is None:
        raise MachineConfigError(f"this host has no {nic.kind} adapter")
    return {"driver": driver, "netdev": f"net{place}", "mac": nic.mac, "romfile": ""}


def _forwarded(config: VmConfig) -> list[int]:
    text = config.extra.get(FORWARD_SETTING, _GUEST_PORTS)
    numbers = [part.strip() for part in text.split(",") if part.strip()]
    ports = [int(number) for number in numbers if number.isdecimal()]
    valid = all(0 < port < 65536 for port in ports) and len(set(ports)) == len(ports)
    if len(ports) != len(numbers) or not valid or len(ports) > _PORTS_MAX:
        raise MachineConfigError(f"{FORWARD_SETTING} is {text!r}")
    return ports
