"""What a sandbox machine is made of, and the QEMU command line for it. Pure: starts nothing.

Invariants: the machine sees only the disks and the network stated here (`-nodefaults`); the user
network is restricted, so the guest reaches neither the host nor beyond, and the host reaches only
the declared ports, on 127.0.0.1; block nodes are passed as JSON, so no path can add an option;
flushes reach the disk (`cache.no-flush` is never set). Names come from us, never from a guest.
Source: QEMU 7.2 manual, invocation and block device options.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from appliance.base.errors import UsageError
from appliance.sandbox.accelerator import QEMU, Accelerator, cpu_model

_MEMORY_MIB_RANGE = range(32, 1 << 20)
_CPUS_RANGE = range(1, 65)
PLACES_MAX = 64
_FIRST_HOST = 15  # where QEMU's user network begins to give out addresses


class DiskInterface(StrEnum):
    """The controller the guest sees; a restored guest has drivers for what it had before."""

    VIRTIO = "virtio"
    IDE = "ide"
    SATA = "sata"
    NVME = "nvme"
    PVSCSI = "pvscsi"


_DISKS_MAX = {
    DiskInterface.VIRTIO: 16,
    DiskInterface.IDE: 4,
    DiskInterface.SATA: 6,
    DiskInterface.NVME: 16,
    DiskInterface.PVSCSI: 16,
}


class NicModel(StrEnum):
    VIRTIO = "virtio-net-pci"
    E1000 = "e1000"
    VMXNET3 = "vmxnet3"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """A raw image that the machine writes to: give it a copy or an overlay, never an original."""

    path: Path

    def block_node(self) -> dict[str, Any]:
        return {"driver": "file", "filename": str(self.path)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdExport:
    """An export of an NBD server on a Unix socket."""

    socket_path: Path
    export: str = ""
    reconnect_delay_s: int = 0  # how long requests wait for a server that went away; 0: fail

    def block_node(self) -> dict[str, Any]:
        return {
            "driver": "nbd",
            "server": {"type": "unix", "path": str(self.socket_path)},
            "export": self.export,
            "reconnect-delay": self.reconnect_delay_s,
        }


DiskSource = RawFile | NbdExport


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    disks: tuple[DiskSource, ...]  # the first one boots
    memory_mib: int = 512
    cpus: int = 1
    disk_interface: DiskInterface = DiskInterface.VIRTIO
    nic: NicModel = NicModel.VIRTIO
    forwarded_ports: tuple[int, ...] = field(default=())  # of the guest
    accelerator: Accelerator | None = None  # None: the best that works
    place: int = 0  # in an application of several machines: its address is 10.0.2.(15 + place)

    def __post_init__(self) -> None:
        limit = _DISKS_MAX[self.disk_interface]
        if not 1 <= len(self.disks) <= limit:
            raise UsageError(f"{self.disk_interface} takes 1 to {limit} disks")
        if self.memory_mib not in _MEMORY_MIB_RANGE:
            raise UsageError(f"memory of {self.memory_mib} MiB is out of range")
        if self.cpus not in _CPUS_RANGE:
            raise UsageError(f"{self.cpus} processors are out of range")
        if self.place not in range(PLACES_MAX):
            raise UsageError(f"an application has at most {PLACES_MAX} machines")
        if any(port not in range(1, 65536) for port in self.forwarded_ports):
            raise UsageError(f"not a port among {self.forwarded_ports}")


def address_of(place: int) -> str:
    """The address that the user network gives to the guest at `place`."""
    return f"10.0.2.{_FIRST_HOST + place}"


def mac_of(place: int) -> bytes:
    """The hardware address of the guest at `place`: QEMU's own for the first."""
    return bytes((0x52, 0x54, 0x00, 0x12, 0x34, 0x56 + place))


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLink:
    """Descriptors of the two cables into an isolated network (see `network`)."""

    guest_fd: int
    gateway_fd: int


def command_line(
    spec: MachineSpec,
    accelerator: Accelerator,
    *,
    serial_fd: int,
    qmp_fd: int,
    link: NetworkLink | None = None,
) -> list[str]:
    """Return argv; the descriptors are connected stream sockets inherited by QEMU."""
    return [
        *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-name", "holdfast-sandbox"),
        *("-machine", "pc", "-accel", accelerator.value, "-cpu", cpu_model(accelerator)),
        *("-m", str(spec.memory_mib), "-smp", str(spec.cpus), "-boot", "menu=off,strict=on"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-device", "VGA"),
        *("-chardev", f"socket,id=serial0,fd={serial_fd}", "-serial", "chardev:serial0"),
        *("-chardev", f"socket,id=qmp0,fd={qmp_fd}", "-mon", "chardev=qmp0,mode=control"),
        *_network(spec, link),
        *_disks(spec),
    ]


def _network(spec: MachineSpec, link: NetworkLink | None) -> list[str]:
    """Host port 0: the kernel picks a free one; `Machine.forwarded_port` asks QEMU which.

    With a link, NIC and user network are not joined here but by the isolated network.
    """
    forwards = "".join(
        f",hostfwd=tcp:127.0.0.1:0-:{port}" for port in dict.fromkeys(spec.forwarded_ports)
    )
    user = f"restrict=on,ipv6=off,dhcpstart={address_of(spec.place)}{forwards}"
    nic = f"{spec.nic.value},netdev=net0,mac={mac_of(spec.place).hex(':')},romfile="
    if link is None:
        return ["-netdev", f"user,id=net0,{user}", "-device", nic]  # romfile: no network boot
    return [
        *("-netdev", f"user,id=gate0,{user}", "-netdev", "hubport,id=hub0,hubid=0,netdev=gate0"),
        *("-netdev", f"socket,id=gate1,fd={link.gateway_fd}"),
        *("-netdev", "hubport,id=hub1,hubid=0,netdev=gate1"),
        *("-netdev", f"socket,id=net0,fd={link.guest_fd}", "-device", nic),
    ]


def _disks(spec: MachineSpec) -> list[str]:
    arguments = list(_CONTROLLERS.get(spec.disk_interface, ()))
    for number, source in enumerate(spec.disks):
        node = {
            "driver": "raw",
            "node-name": f"disk{number}",
            "discard": "unmap",
            "file": source.block_node(),
        }
        device = _disk_device(spec.disk_interface, number)
        arguments += ["-blockdev", json.dumps(node)]
        arguments += ["-device", f"{device},drive=disk{number},bootindex={number}"]
    return arguments


_CONTROLLERS = {
    DiskInterface.SATA: ("-device", "ich9-ahci,id=ahci"),
    DiskInterface.PVSCSI: ("-device", "pvscsi,id=scsi"),
}


def _disk_device(interface: DiskInterface, number: int) -> str:
    match interface:
        case DiskInterface.VIRTIO:
            return "virtio-blk-pci"
        case DiskInterface.IDE:
            return f"ide-hd,bus=ide.{number // 2},unit={number % 2}"
        case DiskInterface.SATA:
            return f"ide-hd,bus=ahci.{number}"
        case DiskInterface.NVME:
            return f"nvme,serial=holdfast{number}"
        case DiskInterface.PVSCSI:
            return f"scsi-hd,bus=scsi.0,scsi-id={number}"
