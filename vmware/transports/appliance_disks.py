"""Attaching frozen disks to the appliance VM and taking them off again, one reconfigure at a time.

    record the intent -> attach -> find the guest device, prove it -> … -> the kernel lets go ->
    detach -> gone from the device list -> forget the intent

vCenter refuses reconfigures of one VM at once, and a new device can only be told from others while
nobody else attaches, so all of it is under one lock per process; other processes are met as a taken
slot or a busy VM, and waited for.

Detaching never names a file operation: `destroy` would delete the source's disk. The device is
found by its place and checked by its file first, so another's disk is never taken off.

Crash guarantee: a kill leaves at most a disk attached that an intent names; `orphans.py` takes it
off.
Thread-safe; blocks.

Source: vSphere API reference, ReconfigVM_Task, VirtualDeviceConfigSpec; Broadcom KB 67757.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pyVmomi import vim

from vmware.errors import (
    BusyError,
    DeadlineError,
    InvalidRequestError,
    ObjectGoneError,
    SessionLostError,
    TransportError,
    UnreachableError,
    VsphereError,
)
from vmware.patience import Patience
from vmware.properties import fetch_one
from vmware.running_tasks import TaskKind, settle_lost_reply
from vmware.session import Session
from vmware.tasks import wait_for_task
from vmware.transports.attach_intent import AttachIntent, Record
from vmware.transports.scsi_devices import GuestDevice, ScsiDevices, WantedDevice
from vmware.transports.scsi_slots import AttachedDisk, Slot, attached_disks, disk_at, free_slot

RECONFIGURE_DEADLINE_S = 300.0
APPEAR_WITHIN_S = 60.0

_POLL_S = 0.5
_POLLS_PER_RESCAN = 4
_ATTACH_TRIES = 3
_BUSY_TRIES = 6
_REPLY_LOST = (UnreachableError, SessionLostError)


class DiskMode(Enum):
    READ = "independent_nonpersistent"  # writes of the guest go to a private log, thrown away
    WRITE = "persistent"


class DeviceNotFoundError(TransportError):
    """The attached disk did not show up in the appliance, or could not be told from others. Set
    disk.EnableUUID=TRUE on the appliance VM."""

    code = "vsphere.transport.device-not-found"
    retryable = False


class NoSlotError(TransportError):
    """Every place for a disk on the appliance's SCSI controllers is taken; add a controller."""

    code = "vsphere.transport.no-slot"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDisk:
    """What is attached: the file as `snapshot.config` names it, and how to know it again."""

    file_name: str
    capacity_bytes: int
    backing_uuid: str | None


class ApplianceDisks:
    """The disks of the VM that we run in; one per process and appliance."""

    def __init__(self, *, device_root: Path = Path("/"), patience: Patience | None = None) -> None:
        self._devices = ScsiDevices(device_root)
        self._patience = (patience or Patience()).unstoppable()
        self._lock = threading.Lock()

    @property
    def devices(self) -> ScsiDevices:
        return self._devices

    def attached(self, session: Session, appliance_moref: str) -> tuple[AttachedDisk, ...]:
        """The disks on the SCSI controllers now, the appliance's own among them."""
        return attached_disks(_hardware(session, appliance_moref))

    def has_slot(self, session: Session, appliance_moref: str) -> bool:
        """Raises VsphereError."""
        return free_slot(_hardware(session, appliance_moref)) is not None

    def attach(
        self,
        session: Session,
        appliance_moref: str,
        source: SourceDisk,
        mode: DiskMode,
        *,
        run_id: str,
        record: Record,
    ) -> Attachment:
        """Attach and find the device.

        Raises: NoSlotError, DeviceNotFoundError, other VsphereErrors; the disk is off again then,
        or the intent stays recorded.
        """
        with self._lock:
            before = self._devices.addresses()
            intent, forget = self._reconfigured_in(
                session, appliance_moref, source, mode, run_id, record
            )
            try:
                device = self._find(session, intent, source, before)
            except BaseException:
                self._take_off(session, intent)
                forget()
                raise
        return Attachment(self, session, intent, forget, device)

    def take_off(self, session: Session, intent: AttachIntent) -> None:
        """Detach what an earlier process attached, if it still hangs there. Idempotent.

        Raises: VsphereError: it still hangs there.
        """
        with self._lock:
            disk = self._hangs(session, intent)
            if disk is not None:
                wanted = WantedDevice(
                    unit_number=disk.slot.unit_number,
                    size_bytes=disk.capacity_bytes,
                    uuid=disk.backing_uuid,
                    pci_slot=_pci_slot(session, intent),
                )
                found = self._devices.find(wanted, frozenset())
                if len(found) == 1:
                    self._devices.forget(found[0])
                self._take_off(session, intent)

    def detach(self, session: Session, intent: AttachIntent, device: GuestDevice) -> None:
        """Let the kernel forget the device, then take the disk off. Idempotent.

        Raises: VsphereError: it still hangs there.
        """
        with self._lock:
            self._devices.forget(device)
            self._take_off(session, intent)

    def _reconfigured_in(
        self,
        session: Session,
        appliance_moref: str,
        source: SourceDisk,
        mode: DiskMode,
        run_id: str,
        record: Record,
    ) -> tuple[AttachIntent, Callable[[], None]]:
        for tries_left in reversed(range(_ATTACH_TRIES)):
            slot = free_slot(_hardware(session, appliance_moref))
            if slot is None:
                raise NoSlotError(f"no free SCSI place on {appliance_moref}")
            intent = AttachIntent(
                run_id=run_id,
                appliance_moref=appliance_moref,
                slot=slot,
                file_name=source.file_name,
            )
            forget = record(intent)
            try:
                self._add(session, intent, source, mode)
            except VsphereError as error:
                self._settle(session, intent, error)  # if that fails too, the intent stays
                if self._hangs(session, intent):
                    return intent, forget  # the reply was lost, or the fault came too late
                forget()
                lost_race = isinstance(error, InvalidRequestError) and tries_left
                if not (lost_race and _is_taken(_hardware(session, appliance_moref), slot)):
                    raise
            else:
                return intent, forget
        raise NoSlotError(f"others are always quicker on {appliance_moref}")

    def _add(
        self, session: Session, intent: AttachIntent, source: SourceDisk, mode: DiskMode
    ) -> None:
        disk = vim.vm.device.VirtualDisk(
            key=-1,
            controllerKey=intent.slot.controller_key,
            unitNumber=intent.slot.unit_number,
            capacityInKB=source.capacity_bytes // 1024,
            capacityInBytes=source.capacity_bytes,  # it may be no whole number of KiB
            backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName=source.file_name, diskMode=mode.value
            ),
        )
        self._reconfigure(session, intent, "add", disk, f"attach {source.file_name}")

    def _take_off(self, session: Session, intent: AttachIntent) -> None:
        """Returns when it is gone from the device list. Raises VsphereError."""
        what = f"detach {intent.file_name}"
        try:
            for _ in range(_BUSY_TRIES):
                disk = self._hangs(session, intent)
                if disk is None:
                    return
                device = vim.vm.device.VirtualDisk(
                    key=disk.key,
                    controllerKey=disk.slot.controller_key,
                    unitNumber=disk.slot.unit_number,
                    capacityInKB=disk.capacity_bytes // 1024,
                    capacityInBytes=disk.capacity_bytes,
                )
                try:
                    self._reconfigure(session, intent, "remove", device, what)
                except _REPLY_LOST as error:
                    self._settle(session, intent, error)
        except ObjectGoneError:
            return  # the appliance VM itself
        raise BusyError(f"{what}: it still hangs on {intent.appliance_moref}")

    def _reconfigure(
        self, session: Session, intent: AttachIntent, operation: str, disk: Any, what: str
    ) -> None:
        vm = session.object(vim.VirtualMachine, intent.appliance_moref)
        change = vim.vm.device.VirtualDeviceSpec(operation=operation, device=disk)
        spec = vim.vm.ConfigSpec(deviceChange=[change])

        def run() -> None:
            task = session.call(what, vm.ReconfigVM_Task, spec)
            try:
                wait_for_task(session, task, what=what, deadline_s=RECONFIGURE_DEADLINE_S)
            except ObjectGoneError as error:  # or a file that is gone: a look at the VM tells
                raise UnreachableError(f"{what}: the task told no result: {error}") from error

        self._patience.retry(run, on=(BusyError,), tries=_BUSY_TRIES)

    def _settle(self, session: Session, intent: AttachIntent, error: VsphereError) -> None:
        """After a failed reconfigure: wait until the device list tells what became of it."""
        if isinstance(error, (*_REPLY_LOST, DeadlineError)):
            settle_lost_reply(
                session,
                intent.appliance_moref,
                TaskKind.RECONFIGURE,
                self._patience,
                deadline_s=RECONFIGURE_DEADLINE_S,
            )

    def _hangs(self, session: Session, intent: AttachIntent) -> AttachedDisk | None:
        return disk_at(_hardware(session, intent.appliance_moref), intent.slot, intent.file_name)

    def _find(
        self, session: Session, intent: AttachIntent, source: SourceDisk, before: frozenset[str]
    ) -> GuestDevice:
        wanted = WantedDevice(
            unit_number=intent.slot.unit_number,
            size_bytes=source.capacity_bytes,
            uuid=source.backing_uuid,
            pci_slot=_pci_slot(session, intent),
        )
        found: list[GuestDevice] = []
        for number in range(int(APPEAR_WITHIN_S / _POLL_S)):
            found = self._devices.find(wanted, before)
            if len(found) == 1:
                return found[0]
            if number % _POLLS_PER_RESCAN == 0:
                self._devices.rescan()
            self._patience.wait(_POLL_S)
        names = ", ".join(device.name for device in found)
        raise DeviceNotFoundError(
            f"{source.file_name} hangs on the appliance, but "
            + (f"{names} all look like it" if found else "no device of its size and uuid came")
        )


class Attachment:
    """An attached disk; `release` gives it back."""

    def __init__(
        self,
        disks: ApplianceDisks,
        session: Session,
        intent: AttachIntent,
        forget: Callable[[], None],
        device: GuestDevice,
    ) -> None:
        self._disks = disks
        self._session = session
        self._intent = intent
        self._forget = forget
        self.device = device

    def release(self) -> None:
        """Take the disk off; nothing may have the device open. Raises VsphereError."""
        self._disks.detach(self._session, self._intent, self.device)
        self._forget()


def _hardware(session: Session, moref: str) -> list[Any]:
    vm = session.object(vim.VirtualMachine, moref)
    read = fetch_one(session, "look at the appliance VM", vm, ("config.hardware.device",)).values
    return list(read.get("config.hardware.device") or [])


def _is_taken(devices: list[Any], slot: Slot) -> bool:
    return any(disk.slot == slot for disk in attached_disks(devices))


def _pci_slot(session: Session, intent: AttachIntent) -> int | None:
    """The PCI slot of the controller, as the VM's settings name it."""
    vm = session.object(vim.VirtualMachine, intent.appliance_moref)
    read = fetch_one(session, "look at the appliance VM", vm, ("config.extraConfig",)).values
    wanted = f"scsi{intent.slot.bus_number}.pcislotnumber"
    for option in read.get("config.extraConfig") or []:
        if str(option.key).lower() == wanted and str(option.value).isdigit():
            return int(option.value)
    return None
