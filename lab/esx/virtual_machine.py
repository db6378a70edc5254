"""A virtual machine of a lab host: its state, and what every operation on it is built from.

Operations live in modules of their own (`vm_power`, `vm_snapshots`, `vm_reconfigure`, …) as
functions over a `VirtualMachine`; each takes `operation(...)` first, so that only one runs, and a
second is refused with TaskInProgress as a host does.

Invariants: what the .vmx, .vmsd and tracking files say is what this object says whenever no
operation runs; a running VM holds its files' locks. Thread model: state is read by any thread
(values are replaced, never changed in place), and written by the operation that has the VM;
`changed` callbacks are called without any lock of this module held.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import uuid as uuids
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from lab.esx.areas import Area
from lab.esx.change_tracking import (
    CTK_BYTES_MAX,
    ChangeTracking,
    InvalidArgumentError,
    decode_tracking,
    new_tracking,
)
from lab.esx.datastore_path import DatastorePath
from lab.esx.disk_chain import DiskChain, open_chain
from lab.esx.errors import HostError
from lab.esx.guest import Guest
from lab.esx.hardware import Controller, Disk, DiskMode, VmConfig
from lab.esx.machine import Machine
from lab.esx.nas_presence import NasPresence
from lab.esx.site import Site
from lab.esx.snapshot_list import format_snapshots, vmsn_name
from lab.esx.vm_state import (
    GuestInfo,
    NotFoundError,
    NotSupportedError,
    PowerState,
    PowerStateError,
    Question,
    Snapshot,
    TaskInProgressError,
    VmStateError,
)
from lab.esx.vmx import format_vmx, settings_of

log = logging.getLogger(__name__)

_NVRAM_BYTES = 8684  # what a host writes for a BIOS
_BOOKKEEPING = ("", "guest shutdown", "crash")
_BOOKKEEPING_LIMIT_S = 5.0
_REFUSED_UNDER_A_LEASE = frozenset(
    {"PowerOn", "PowerOff", "Reset", "Destroy", "Unregister", "Relocate", "RevertToSnapshot"}
)


class VirtualMachine:
    """`vm_id` names it as the holder of locks; unique in the lab."""

    def __init__(self, site: Site, vm_id: str, config: VmConfig) -> None:
        self.site = site
        self.vm_id = vm_id
        self.config = config
        self.power = PowerState.OFF
        self.boot_time: datetime | None = None
        self.snapshots: dict[int, Snapshot] = {}
        self.current_snapshot: int | None = None
        self.consolidation_needed = False
        self.question: Question | None = None
        self.modified_at = site.now()
        self.change_version = 1
        self.host_name = "localhost"  # of the host that the machine is on
        self.presence: NasPresence | None = None
        self.machine: Machine | None = None
        self.guest: Guest | None = None
        self.tracking: dict[int, ChangeTracking] = {}
        self.orphan_files: frozenset[DatastorePath] = frozenset()
        self.run_folder = Path(site.folder, vm_id)
        self.run_folder.mkdir(parents=True, exist_ok=True)
        self.changed: Callable[[], None] = lambda: None
        self.leases: frozenset[str] = frozenset()  # who exports or imports
        self._operation = threading.Lock()
        self._running_operation = ""
        self.may_ask = threading.Lock()  # whoever asks without having the VM's operation
        self._answer_state = threading.Condition()
        self._answer: str | None = None
        self._next_snapshot_id = 1

    # ------------------------------------------------------------------ operations

    @contextmanager
    def operation(self, name: str, *, wait: bool = False) -> Iterator[None]:
        """Have the VM for the block.

        Raises:
            TaskInProgressError: somebody else has it, and `wait` is off.
            MethodDisabledError: a lease is held, and this operation is not for its time.
        """
        if self.leases and name in _REFUSED_UNDER_A_LEASE:
            raise MethodDisabledError(
                f"{name} is disabled while {self.config.name} is exported or imported",
                source=next(iter(self.leases)),
            )
        if not (self._operation.acquire(blocking=wait) or self._after_bookkeeping()):
            raise TaskInProgressError(
                f"{self.config.name} is busy with {self._running_operation or 'an operation'}"
            )
        self._running_operation = name
        try:
            yield
        finally:
            self._running_operation = ""
            self._operation.release()
            self.changed()

    def _after_bookkeeping(self) -> bool:
        """Have the VM as soon as the host has noted that its guest ended: that is no task."""
        noting = self._running_operation in _BOOKKEEPING
        return noting and self._operation.acquire(timeout=_BOOKKEEPING_LIMIT_S)

    @property
    def busy(self) -> bool:
        """An operation has the VM."""
        return self._operation.locked()

    def hold_lease(self, lease_id: str) -> None:
        """Refuse power operations, removal and moves until `release_lease`."""
        self.leases |= {lease_id}

    def release_lease(self, lease_id: str) -> None:
        """Idempotent."""
        self.leases -= {lease_id}

    def refuse_unless(self, state: PowerState) -> None:
        if self.power is not state:
            raise PowerStateError(
                f"{self.config.name} is {self.power}",
                requestedState=state.value,
                existingState=self.power.value,
            )

    @property
    def on(self) -> bool:
        return self.power is PowerState.ON

    @property
    def guest_info(self) -> GuestInfo:
        guest = self.guest
        return guest.info if guest is not None else GuestInfo()

    def snapshot(self, snapshot_id: int) -> Snapshot:
        found = self.snapshots.get(snapshot_id)
        if found is None:
            raise NotFoundError(f"{self.config.name} has no snapshot {snapshot_id}")
        return found

    def take_snapshot_id(self) -> int:
        number = max([self._next_snapshot_id, *(one + 1 for one in self.snapshots)])
        self._next_snapshot_id = number + 1
        return number

    def close(self) -> None:
        """The lab ends: kill what runs, release locks and the run folder. Idempotent."""
        machine, guest = self.machine, self.guest
        self.machine = None  # before its end is seen
        if guest is not None:
            guest.close()
        if machine is not None:
            machine.close()
        self.leave_datastores()
        self.site.locks.release(self.vm_id)
        with self._answer_state:
            self._answer = ""
            self._answer_state.notify_all()
        shutil.rmtree(self.run_folder, ignore_errors=True)

    # ------------------------------------------------------------------ devices of a running VM

    @property
    def can_plug_controllers(self) -> bool:
        return False

    def controller_added(self, controller: Controller) -> None:
        """Only a machine that is off, or can plug controllers, gets one."""

    def refuse_if_appliance(self) -> None:
        """Raises NotSupportedError where the guest is the machine that runs the lab."""

    def plug(self, disk: Disk, controller: Controller, chain: DiskChain) -> None:
        """Give the running guest a disk; its files are locked already."""
        if disk.mode is DiskMode.INDEPENDENT_NONPERSISTENT:
            raise NotSupportedError("a nonpersistent disk cannot be added to a running guest here")
        assert self.machine is not None
        self.machine.add_disk(disk, controller, chain)

    def unplug(self, disk: Disk) -> None:
        """Take a disk from the running guest, without asking it."""
        machine = self.machine
        assert machine is not None
        tracking = self.tracking.get(disk.key)
        if tracking is not None and disk.key in machine.disks:
            areas = machine.disks[disk.key].take_written(machine.qmp, machine.socket_path)
            closed = replace(tracking.written(areas), open=False)
            self.store_tracking(disk, closed)
            self.tracking.pop(disk.key, None)
        machine.remove_disk(disk.key)

    def disk_grown(self, disk: Disk) -> None:
        """The files are larger already; a running guest sees it, and tracking starts over."""
        open_disk = self.machine.disks.get(disk.key) if self.machine else None
        if self.machine is not None and open_disk is not None:
            open_disk.resize(self.machine.qmp, disk.capacity_bytes)
            open_disk.renamed_parent(self.chain(disk))
        self.reset_tracking(disk)

    # ------------------------------------------------------------------ files

    @property
    def reachable(self) -> bool:
        """Whether every datastore that has files of the machine can be reached."""
        names = {self.config.vmx_path.datastore} | {d.path.datastore for d in self.config.disks}
        return all(self.site.datastores.accessible(name) for name in names)

    def enter_datastores(self, chains: Mapping[int, DiskChain]) -> NasPresence:
        """Be seen on NFS datastores as running. Raises FileLockedError."""
        presence = NasPresence(self.site.datastores, self.host_name, self.site.nas)
        presence.enter(self.config, chains)
        self.presence = presence
        return presence

    def leave_datastores(self) -> None:
        """Idempotent."""
        presence, self.presence = self.presence, None
        if presence is not None:
            presence.leave()

    def save(self, config: VmConfig) -> None:
        """Make this the configuration, in memory and in the .vmx."""
        self.site.datastores.write_text(config.vmx_path, format_vmx(settings_of(config)))
        self.config = config
        self.modified_at = self.site.now()
        self.change_version += 1

    def settle_identity(self, taken: list[str], *, template: bool) -> None:
        """A newcomer whose instanceUuid another VM has gets a new one."""
        config = replace(self.config, template=template)
        if config.instance_uuid in taken:
            config = replace(config, instance_uuid=str(uuids.uuid4()))
        self.save(config)

    def save_snapshots(self) -> None:
        """Write the .vmsd."""
        text = format_vmx(format_snapshots(self.snapshots.values(), self.current_snapshot))
        self.site.datastores.write_text(self.file(".vmsd"), text)

    def save_frozen(self, snapshot: Snapshot) -> None:
        """Write the snapshot's .vmsn."""
        path = self.config.folder.child(vmsn_name(snapshot.config, snapshot.id))
        self.site.datastores.write_text(path, format_vmx(settings_of(snapshot.config)))

    def file(self, suffix: str) -> DatastorePath:
        return self.config.folder.child(f"{self.config.file_stem}{suffix}")

    def write_log(self, text: str) -> None:
        """A line of vmware.log."""
        path = self.config.folder.child("vmware.log")
        line = f"{self.site.now():%Y-%m-%dT%H:%M:%S.%fZ} In(05) vmx - {text}\n".encode()
        with contextlib.suppress(HostError):  # a log never fails an operation
            files = self.site.datastores.files_of(path)
            entry = files.stat(path.path)
            if entry is None:
                files.create(path.path)
            files.write_at(path.path, entry.size_bytes if entry else 0, line)

    def make_nvram(self) -> None:
        """Write an empty one where there is none."""
        path = self.config.nvram_path
        if not self.site.datastores.exists(path):
            data = b"MRVN".ljust(_NVRAM_BYTES, b"\0")
            self.site.datastores.files_of(path).replace(path.path, data)

    def chain(self, disk: Disk) -> DiskChain:
        return self.chain_at(disk.path)

    def chain_at(self, path: DatastorePath) -> DiskChain:
        return open_chain(self.site.datastores, path)

    # ------------------------------------------------------------------ tracking

    def load_tracking(self, disk: Disk) -> ChangeTracking | None:
        """What the disk's tracking file says; None without one. Starts over when it is unsound."""
        path = self.chain(disk).base.track_path
        if not self.site.datastores.exists(path):
            return None
        try:
            tracking = decode_tracking(self.site.datastores.read_text(path, CTK_BYTES_MAX).encode())
        except HostError:
            tracking = None
        if tracking is None or tracking.open or tracking.capacity_bytes != disk.capacity_bytes:
            self.write_log(
                f"DISKLIB-CTK   : Change tracking of {path.name} is invalid, re-initialized."
            )
            tracking = new_tracking(disk.capacity_bytes)
            self.site.datastores.files_of(path).replace(path.path, tracking.encode())
        return tracking

    def reload_tracking(self) -> None:
        """The VM is off: what its files say is what is known."""
        self.tracking = {}
        for disk in self.config.disks:
            if self.config.tracked(disk):
                with contextlib.suppress(HostError):  # a disk that cannot be opened has none
                    if (tracking := self.load_tracking(disk)) is not None:
                        self.tracking[disk.key] = tracking

    def store_tracking(self, disk: Disk, tracking: ChangeTracking | None) -> None:
        """Make this the disk's tracking, in memory and in its file; None removes both."""
        path = self.chain(disk).base.track_path
        if tracking is None:
            self.tracking.pop(disk.key, None)
            self.site.datastores.delete_if_there(path)
            return
        self.tracking[disk.key] = tracking
        self.site.datastores.files_of(path).replace(path.path, tracking.encode())

    def start_tracking_where_due(self) -> None:
        """A stun: tracked disks are tracked from here on, others no longer."""
        for disk in self.config.disks:
            wanted = self.config.tracked(disk)
            open_disk = self.machine.disks.get(disk.key) if self.machine else None
            if not wanted:
                self._stop_tracking(disk)
                continue
            tracking = self.tracking.get(disk.key) or self.load_tracking(disk)
            if tracking is None:
                tracking = new_tracking(disk.capacity_bytes, misses_deltas=bool(self.snapshots))
            if self.machine is not None and open_disk is not None:
                if not open_disk.tracked:
                    open_disk.start_tracking(self.machine.qmp)
                tracking = tracking.opened()
            self.store_tracking(disk, tracking)

    def _stop_tracking(self, disk: Disk) -> None:
        open_disk = self.machine.disks.get(disk.key) if self.machine else None
        if self.machine is not None and open_disk is not None:
            open_disk.stop_tracking(self.machine.qmp)
        if disk.key in self.tracking:
            self.store_tracking(disk, None)

    def reset_tracking(self, disk: Disk) -> None:
        """Start over: every changeId of before is refused from now on."""
        if disk.key not in self.tracking:
            return
        fresh = new_tracking(disk.capacity_bytes, misses_deltas=False)
        open_disk = self.machine.disks.get(disk.key) if self.machine else None
        if self.machine is not None and open_disk is not None:
            open_disk.clear_tracking(self.machine.qmp)
            fresh = fresh.opened()
        self.write_log(f"DISKLIB-CTK   : Change tracking of {disk.path.name} was reset.")
        self.store_tracking(disk, fresh)

    def keep_written(self, machine: Machine) -> None:
        """The guest has stopped: what was tracked goes to the files."""
        for disk in self.config.disks:
            tracking = self.tracking.get(disk.key)
            open_disk = machine.disks.get(disk.key)
            if tracking is None or open_disk is None:
                continue
            areas: list[Area] = open_disk.take_written(machine.qmp, machine.socket_path)
            self.store_tracking(disk, replace(tracking.written(areas), open=False))

    # ------------------------------------------------------------------ questions

    def ask(self, question: Question, cancelled: Callable[[float], bool]) -> str:
        """Show a question and wait for its answer's key. Raises VmStateError when cancelled."""
        with self._answer_state:
            self._answer = None
            self.question = question
        self.changed()
        try:
            while True:
                with self._answer_state:
                    if self._answer_state.wait_for(lambda: self._answer is not None, 0.2):
                        answer = self._answer
                        break
                if cancelled(0.0):
                    answer = ""
                    break
        finally:
            self.question = None
            self.changed()
        if not answer:
            raise VmStateError("the question was not answered")
        return answer

    def answer(self, question_id: str, choice_key: str) -> None:
        """Raises InvalidArgumentError for what is not asked, or not offered."""
        with self._answer_state:
            question = self.question
            if question is None or question.id != question_id or self._answer is not None:
                raise ConcurrentAccessError("the question is answered already")
            if choice_key not in [choice.key for choice in question.choices]:
                raise InvalidArgumentError(
                    f"no choice {choice_key!r}", invalidProperty="answerChoice"
                )
            self._answer = choice_key
            self._answer_state.notify_all()


class MethodDisabledError(VmStateError):
    """A lease is held. Fields: source."""

    fault = "MethodDisabled"


class ConcurrentAccessError(VmStateError):
    """Somebody else was faster."""

    fault = "ConcurrentAccess"
