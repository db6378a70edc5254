"""Where on the appliance VM a disk can be attached, and which of its devices is that disk.

Pure: works on a list of virtual devices as `config.hardware.device` gives it. Unit 7 of a SCSI
controller is the controller itself. Keys are whatever the server made them, so nothing is computed
from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

UNITS_PER_CONTROLLER = 16  # PVSCSI may have 64 on newer hosts, which is not relied upon
_RESERVED_UNIT = 7
_DISK: Any = vim.vm.device.VirtualDisk


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    controller_key: int
    bus_number: int
    unit_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedDisk:
    """A disk as it hangs on the appliance VM; `files` are its file and all below it."""

    key: int
    slot: Slot
    files: tuple[str, ...]
    disk_mode: str
    backing_uuid: str | None
    capacity_bytes: int


def free_slot(devices: Iterable[Any]) -> Slot | None:
    """A free unit on the SCSI controller that has most of them; None when all are taken."""
    devices = list(devices)
    best: tuple[int, Slot] | None = None
    for controller in _scsi_controllers(devices):
        if str(controller.sharedBus) != "noSharing":
            continue
        reserved = controller.scsiCtlrUnitNumber
        taken = {device.unitNumber for device in devices if device.controllerKey == controller.key}
        taken |= {_RESERVED_UNIT, reserved if reserved is not None else _RESERVED_UNIT}
        free = [unit for unit in range(UNITS_PER_CONTROLLER) if unit not in taken]
        if free and (best is None or len(free) > best[0]):
            slot = Slot(
                controller_key=controller.key,
                bus_number=controller.busNumber,
                unit_number=free[0],
            )
            best = len(free), slot
    return best[1] if best else None


def attached_disks(present: Iterable[Any]) -> tuple[AttachedDisk, ...]:
    """The disks on SCSI controllers."""
    devices: list[Any] = list(present)
    buses = {c.key: c.busNumber for c in _scsi_controllers(devices)}
    return tuple(
        AttachedDisk(
            key=device.key,
            slot=Slot(
                controller_key=device.controllerKey,
                bus_number=buses[device.controllerKey],
                unit_number=device.unitNumber,
            ),
            files=tuple(_files(device.backing)),
            disk_mode=str(getattr(device.backing, "diskMode", "") or ""),
            backing_uuid=getattr(device.backing, "uuid", None) or None,
            capacity_bytes=device.capacityInBytes or (device.capacityInKB or 0) * 1024,
        )
        for device in devices
        if isinstance(device, _DISK) and device.controllerKey in buses
    )


def disk_at(devices: Iterable[Any], slot: Slot, file_name: str) -> AttachedDisk | None:
    """The disk in exactly this place, if it is (or stands above) exactly this file."""
    for disk in attached_disks(devices):
        if disk.slot == slot and file_name in disk.files:
            return disk
    return None


def _scsi_controllers(devices: Iterable[Any]) -> Iterator[Any]:
    kind = vim.vm.device.VirtualSCSIController
    return iter(sorted((d for d in devices if isinstance(d, kind)), key=lambda d: d.busNumber))


def _files(backing: Any) -> Iterator[str]:
    for _ in range(64):  # a chain has at most 33 files
        if backing is None:
            return
        name = getattr(backing, "fileName", None)
        if name:
            yield str(name)
        backing = getattr(backing, "parent", None)
