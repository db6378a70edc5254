"""A virtual machine of the practice Hyper-V host: its files, its power, its disks in use.

Disks are open while the machine runs, or for as long as an operation needs them; a file that was
written behind the host's back in between loses its change tracking, as RCT does.

Invariants: one operation at a time; QEMU ends before its disks are closed; a running machine holds
its files (`file_holds`). Thread model: any thread; what QEMU reports is handled on threads of its
own, which wait for the operation that is under way.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from lab.esx.errors import HostError
from lab.esx.guest import Guest
from lab.esx.vm_state import Heartbeat
from lab.faults import FaultName
from lab.hyperv_host.errors import HypervError, StateError
from lab.hyperv_host.file_holds import Release
from lab.hyperv_host.iscsi import WholeDisk
from lab.hyperv_host.live_disk import LiveDisk
from lab.hyperv_host.machine import HypervMachine
from lab.hyperv_host.rct import ResilientTracking
from lab.hyperv_host.site import HostSite
from lab.hyperv_host.vm_settings import Drive, VmSettings, VmState
from lab.hyperv_host.windows_path import WindowsPath

log = logging.getLogger(__name__)

_SHUTDOWN_S = 60.0
OK, CREATING_CHECKPOINT, DELETING_CHECKPOINT, MERGING = 2, 32768, 32770, 32772
MIGRATING = 32774
_HEARTBEATS = {Heartbeat.GRAY: 2, Heartbeat.GREEN: 5, Heartbeat.RED: 4}


@dataclass(slots=True)
class TrackedDisk:
    """The change tracking of a drive, and the state of its file that it is true for."""

    tracking: ResilientTracking
    path: WindowsPath
    write_guid: str


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """`frozen` and `moments` by the name of a drive."""

    checkpoint_id: str  # GUID, upper case
    name: str
    recovery: bool
    consistency: int  # 1 application, 2 crash
    created_at: float
    parent_id: str
    frozen: dict[str, WindowsPath] = field(default_factory=dict)
    moments: dict[str, int] = field(default_factory=dict)
    configuration: list[WindowsPath] = field(default_factory=list)

    @property
    def instance_id(self) -> str:
        return f"Microsoft:{self.checkpoint_id}"


class HypervVm:
    def __init__(self, site: HostSite, settings: VmSettings) -> None:
        self.site = site
        self.settings = settings
        self.state = VmState.OFF
        self.doing = 0  # OperationalStatus[1], 0 for nothing
        self.checkpoints: list[Checkpoint] = []  # oldest first
        self.unmerged: list[tuple[str, WindowsPath]] = []  # (drive, frozen file) left by a merge
        self.machine: HypervMachine | None = None
        self.guest: Guest | None = None
        self.disks: dict[str, LiveDisk] = {}
        self.whole: dict[str, WholeDisk] = {}  # pass-through, while the machine runs
        self.tracked: dict[str, TrackedDisk] = {}
        self.started_at = 0.0
        self.backups_told: list[str] = []  # copy or full, as the guest's writers heard of them
        self._operation = threading.RLock()
        self._holds: dict[str, list[Release]] = {}
        self._folder = site.run_folder / settings.vm_id[:8]
        self._folder.mkdir(parents=True, exist_ok=True)
        self.write_configuration()

    @contextmanager
    def operation(self) -> Iterator[None]:
        with self._operation:
            yield

    @property
    def fault_fields(self) -> dict[str, str]:
        return {"vm": self.settings.vm_id, "vm_name": self.settings.name}

    @property
    def heartbeat(self) -> int:
        """VMHeartbeatStatus."""
        guest = self.guest
        return _HEARTBEATS[guest.info.heartbeat] if guest is not None else 0

    @property
    def addresses(self) -> list[str]:
        guest = self.guest
        return [guest.info.ip_address] if guest is not None and guest.info.ip_address else []

    @property
    def guest_name(self) -> str:
        guest = self.guest
        return guest.info.host_name if guest is not None else ""

    def update(self, settings: VmSettings) -> None:
        self.settings = settings
        self.write_configuration()

    def write_configuration(self) -> None:
        """The .vmcx and .vmrs of the machine, in the lab's own format."""
        for ending, data in ((".vmcx", self.settings.encode()), (".vmrs", b"LABVMRS\0")):
            path = self.settings.vmcx_path
            place = self.site.volumes.place(path.folder.joined(path.stem + ending))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)

    # ------------------------------------------------------------------ power

    def start(self) -> None:
        """Raises StateError, HypervError."""
        with self.operation():
            if self.state is VmState.RUNNING:
                return
            if self.site.faults.take(FaultName.POWER_ON_FAILURE, **self.fault_fields):
                raise HypervError(f"'{self.settings.name}' failed to start.")
            self._open_disks()
            try:
                self._take_holds()
                self._take_whole()
                self._run()
            except BaseException:
                self._close_disks()
                raise
            self.state, self.started_at = VmState.RUNNING, time.monotonic()

    def turn_off(self) -> None:
        with self.operation():
            machine, guest = self.machine, self.guest
            if machine is None:
                return
            self.machine = self.guest = None
            if guest is not None:
                guest.close()
            machine.end()
            self._close_disks()
            self.state = VmState.OFF

    def shut_down(self) -> None:
        """Ask the guest. Raises StateError: it did not go in time."""
        machine = self.machine
        if machine is None:
            return
        machine.press_power_button()
        deadline = time.monotonic() + _SHUTDOWN_S
        while self.machine is machine:
            if time.monotonic() > deadline:
                raise StateError(f"'{self.settings.name}' could not be shut down by the guest.")
            time.sleep(0.05)

    def _run(self) -> None:
        guest = Guest(
            lambda: None,
            silent=bool(self.site.faults.take(FaultName.TOOLS_SILENT, **self.fault_fields)),
            heartbeat_s=self.site.heartbeat_s,
        )
        try:
            machine = HypervMachine(
                self.settings,
                self.disks,
                self.whole,
                self._folder,
                reachable_switches=self.site.reachable_switches,
                on_line=guest.hear,
                on_event=lambda name, data: self._event(guest, name, data),
                on_end=lambda: self._spawn(guest),
            )
        except HostError as error:
            raise HypervError(f"'{self.settings.name}' failed to start. {error}") from error
        self.machine, self.guest = machine, guest
        try:
            guest.start(machine)
            machine.run()
        except BaseException:
            self.machine = self.guest = None
            guest.close()
            machine.close()
            raise

    def _event(self, guest: Guest, name: str, data: dict[str, Any]) -> None:
        """On QEMU's reader thread: nothing here may wait."""
        if name == "SHUTDOWN" and data.get("guest"):
            self._spawn(guest)
        elif name == "RESET":
            guest.restarted()

    def _spawn(self, guest: Guest) -> None:
        threading.Thread(
            target=self._ended, args=(guest,), name="lab-hv-power", daemon=True
        ).start()

    def _ended(self, guest: Guest) -> None:
        """The guest shut down, or QEMU ended by itself."""
        with self.operation():
            if self.guest is guest:
                if self.machine is not None and not self.machine.running:
                    log.warning(
                        "the QEMU of %s ended: %s", self.settings.name, self.machine.end_text
                    )
                self.turn_off()

    # ------------------------------------------------------------------ disks

    @contextmanager
    def opened_disks(self) -> Iterator[dict[str, LiveDisk]]:
        """The disks by drive: those of the running machine, or opened for the block."""
        with self.operation():
            if self.machine is not None:
                yield self.disks
                return
            self._open_disks()
            try:
                yield self.disks
            finally:
                self._close_disks()

    def _open_disks(self) -> None:
        opened: dict[str, LiveDisk] = {}
        try:
            for drive in self.settings.drives:
                if drive.path is not None:
                    opened[drive.name] = self._open_disk(drive, drive.path)
        except BaseException:
            for disk in opened.values():
                disk.close()
            raise
        self.disks = opened

    def _open_disk(self, drive: Drive, path: WindowsPath) -> LiveDisk:
        known = self.tracked.get(drive.name)
        disk = LiveDisk(self.site.volumes, path, ResilientTracking(0))
        disk.tracking.size_bytes = disk.size_bytes
        if known and known.path.same(path) and known.write_guid == disk.leaf_write_guid:
            disk.tracking = known.tracking
        self.tracked[drive.name] = TrackedDisk(disk.tracking, path, disk.leaf_write_guid)
        return disk

    def _take_whole(self) -> None:
        for drive in self.settings.drives:
            if drive.disk_number is not None:
                self.whole[drive.name] = self.site.whole_disk(drive.disk_number)

    def _close_disks(self) -> None:
        whole, self.whole = self.whole, {}
        for taken in whole.values():
            taken.release()
        disks, self.disks = self.disks, {}
        for name, disk in disks.items():
            try:
                disk.close()
            except OSError as error:  # its storage is gone
                log.warning("a disk of %s was not closed: %s", self.settings.name, error)
            self.tracked[name] = TrackedDisk(disk.tracking, disk.leaf, disk.leaf_write_guid)
            self.release(name)

    def leaves_changed(self) -> None:
        """The settings name the files that the disks write to now."""
        drives = tuple(
            replace(drive, path=self.disks[drive.name].leaf) if drive.name in self.disks else drive
            for drive in self.settings.drives
        )
        self.update(replace(self.settings, drives=drives))

    # ------------------------------------------------------------------ holds

    def _take_holds(self) -> None:
        for name in self.disks:
            self.hold(name)

    def hold(self, name: str) -> None:
        """Hold the files of a drive as they are now. Raises InUseError."""
        self.release(name)
        paths, releases = self.disks[name].paths, []
        busy = len(paths) > 1 and self.site.faults.take(
            FaultName.SMB_FILE_BUSY, **self.fault_fields, path=str(paths[1])
        )
        try:
            for place, path in enumerate(paths):
                if path.share:
                    continue  # held by who has it open
                releases.append(self.site.holds.hold(path, alone=bool(busy) or place == 0))
        except BaseException:
            for release in releases:
                release()
            raise
        self._holds[name] = releases
        if busy and busy.amount:
            timer = threading.Timer(busy.amount, self._hold_again, (name,))
            timer.daemon = True
            timer.start()

    def _hold_again(self, name: str) -> None:
        with self.operation():
            if name in self._holds:
                self.hold(name)

    def release(self, name: str) -> None:
        for release in self._holds.pop(name, []):
            with contextlib.suppress(HypervError, OSError):
                release()

    def close(self) -> None:
        """As the host goes: nothing of the guest is waited for."""
        with contextlib.suppress(HypervError, HostError):
            self.turn_off()
