"""A running guest of the practice Hyper-V host: settings and live disks as one QEMU process.

QEMU has none of the devices that a VMBus guest sees, so a SCSI controller is a paravirtual one
that the firmware and a guest of the lab have a driver for, and a synthetic adapter is virtio's.
Disks at IDE slots are on such a controller, too: on Hyper-V, guests and its BIOS reach them over
VMBus as well, and an emulated IDE would ask for each sector by itself. A machine of generation 2
has UEFI, which starts what its Secure Boot template trusts; its variables lie in the machine's
folder. Disks are reached over NBD from this process, which keeps the VHDX files.

The first adapter on a switch other than a private one has the ports of the lab's guests forwarded
to ports of 127.0.0.1; on a private switch, or on none, it reaches nothing and nobody.

Thread model: as RunningMachine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from appliance.exports.nbd import NbdExport, NbdServer
from lab.esx.running_machine import RunningMachine, machine_arguments
from lab.esx.uefi import BootTrust, uefi_arguments, uefi_machine
from lab.hyperv_host.iscsi import WholeDisk
from lab.hyperv_host.live_disk import LiveDisk
from lab.hyperv_host.vm_settings import (
    OTHER_VENDORS_TEMPLATE,
    WINDOWS_TEMPLATE,
    Adapter,
    ControllerType,
    Drive,
    VmSettings,
)

_GUEST_PORTS = (80, 7777, 8080)
_IDE = "ide"  # the controller of both channels
_UEFI_MEMORY_MIB = 256
_TRUST = {
    WINDOWS_TEMPLATE: BootTrust.WINDOWS_ONLY,
    OTHER_VENDORS_TEMPLATE: BootTrust.OTHER_VENDORS,
}


class HypervMachine(RunningMachine):
    """Owns nothing of the disks but the way to them; starts stopped."""

    def __init__(
        self,
        settings: VmSettings,
        disks: Mapping[str, LiveDisk],
        whole: Mapping[str, WholeDisk],
        folder: Path,
        *,
        reachable_switches: frozenset[str],
        on_line: Callable[[str], None],
        on_event: Callable[[str, dict[str, Any]], None],
        on_end: Callable[[], None],
    ) -> None:
        """`disks` and `whole` by the name of their drive; `folder`'s path must be short."""
        self._settings = settings
        self._firmware = (
            [] if settings.generation == 1 else uefi_arguments(_trust(settings), folder)
        )
        self._disks = disks
        self._whole = whole
        self._reachable = reachable_switches
        self._socket = folder / "disks.sock"
        self.has_network = any(one.switch in reachable_switches for one in settings.adapters)
        exports = [NbdExport(name=n, disk=d, read_only=False) for n, d in disks.items()]
        self._server = NbdServer(exports, address=self._socket) if exports else None
        if self._server is not None:
            self._server.start()
        try:
            super().__init__(
                self._command, folder, on_line=on_line, on_event=on_event, on_end=on_end
            )
        except BaseException:
            self._stop_server()
            raise

    def close(self) -> None:
        super().close()
        self._stop_server()

    def _stop_server(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _command(self, qmp_fd: int, serial_fd: int) -> list[str]:
        settings = self._settings
        second = settings.generation == 2
        memory_mib = max(_UEFI_MEMORY_MIB if second else 32, settings.memory.startup_bytes >> 20)
        return [
            *machine_arguments(
                qmp_fd,
                serial_fd,
                memory_mib=memory_mib,
                cpus=min(settings.processors, 8),
                kind=uefi_machine(_trust(settings)) if second else "pc",
            ),
            *self._firmware,
            *("-uuid", settings.identity.bios_guid.strip("{}"), "-device", "VGA"),
            *("-boot", "menu=off,strict=on"),
            *self._disk_arguments(),
            *self._adapter_arguments(),
        ]

    def _disk_arguments(self) -> list[str]:
        arguments = []
        scsi = [f"scsi{number}" for number in range(len(self._settings.scsi_ids))]
        second = self._settings.generation == 2
        driver = "virtio-scsi-pci" if second else "pvscsi"
        for controller in scsi if second else (_IDE, *scsi):
            arguments += ["-device", json.dumps({"driver": driver, "id": controller})]
        for place, drive in enumerate(_boot_order(self._settings)):
            whole = self._whole.get(drive.name)
            node = {
                "driver": "nbd",
                "node-name": drive.name,
                "server": {"type": "unix", "path": str(whole.socket if whole else self._socket)},
                "export": whole.export if whole else drive.name,
                "discard": "unmap",
            }
            sector = 512 if whole else self._disks[drive.name].logical_sector_bytes
            device = _device(drive) | {"bootindex": place, "logical_block_size": sector}
            arguments += ["-blockdev", json.dumps(node), "-device", json.dumps(device)]
        return arguments

    def _adapter_arguments(self) -> list[str]:
        arguments = []
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:0-:{port}" for port in _GUEST_PORTS)
        for place, adapter in enumerate(self._settings.adapters):
            reachable = adapter.switch in self._reachable
            forwarded, forwards = (forwards, "") if reachable else ("", forwards)
            arguments += ["-netdev", f"user,id=net{place},restrict=on,ipv6=off{forwarded}"]
            arguments += ["-device", json.dumps(_network_device(adapter, place))]
        return arguments


def _boot_order(settings: VmSettings) -> list[Drive]:
    """Generation 1: IDE before SCSI, as its BIOS looks for a disk; 2: what the settings say."""
    first = settings.boot_first
    return sorted(
        settings.drives,
        key=lambda drive: (drive.name != first, drive.controller != "ide", drive.slot),
    )


def _trust(settings: VmSettings) -> BootTrust:
    return _TRUST[settings.secure_boot_template] if settings.secure_boot else BootTrust.ANYTHING


def _device(drive: Drive) -> dict[str, Any]:
    device: dict[str, Any] = {"id": f"disk-{drive.name}", "drive": drive.name}
    bus, unit = f"scsi{drive.controller_number}.0", drive.location
    if drive.controller is ControllerType.IDE:
        bus, unit = f"{_IDE}.0", 2 * drive.controller_number + drive.location
    return device | {"driver": "scsi-hd", "bus": bus, "scsi-id": unit, "lun": 0}


def _network_device(adapter: Adapter, place: int) -> dict[str, Any]:
    mac = ":".join(adapter.mac[at : at + 2] for at in range(0, 12, 2))
    driver = "tulip" if adapter.legacy else "virtio-net-pci"
    device: dict[str, Any] = {"driver": driver, "netdev": f"net{place}", "mac": mac}
    return device if adapter.legacy else device | {"romfile": ""}
