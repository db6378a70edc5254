"""Back up VMs of registered hypervisors, several at a time.

Data path: `vm_selection` -> here, one thread per VM: its turn (`backup_limits`) -> its lock ->
parent point and journal of a broken run -> `VmSource.freeze` -> `backup.back_up_with` -> the result
in the catalog. Each attempt is a run of its own, with its own id: whatever it makes on the
hypervisor is named after it, and it holds its run lock from before the first call until the freeze
has ended, so that nobody takes its snapshot for an orphan.

A failed attempt is repeated while its error says that this may help; the next one goes on where it
broke (`broken_run`). One VM's failure never stops another one. A cancel ends all of them in order:
readers closed, snapshots removed.

Thread model: `back_up_vms` blocks; what it calls back runs on the threads of the VMs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.base.backoff import Backoff
from appliance.base.consistency import GuestLogs
from appliance.base.errors import ApplianceError, CancelledError
from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.blocks.device import BlockReader
from appliance.blocks.rate_limit import RateLimit, RateLimitedReader
from appliance.catalog.run_locks import RunLocks
from appliance.catalog.runs import RunOutcome, Runs
from appliance.jobs.backup import BackupOutcome, back_up_with
from appliance.jobs.backup_limits import BackupLimits
from appliance.jobs.backup_plan import BackupPlan
from appliance.jobs.broken_run import (
    BrokenRun,
    BrokenRunJournal,
    forget_broken_run,
    journal_path,
    read_broken_run,
)
from appliance.jobs.cbt_audit import AuditPolicy
from appliance.jobs.point_identity import known_state
from appliance.jobs.vm_lock import vm_lock
from appliance.jobs.vm_report import disk_document
from appliance.jobs.vm_selection import SelectedVm
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.sources.changes import is_mistrusted
from appliance.sources.contract import (
    ConsistencyPolicy,
    FreezeRequest,
    VmNotProtectableError,
)
from appliance.sources.frozen import FrozenDisk

log = EventLog(__name__)

_MOST_THREADS = 64  # most of them wait for their turn
_DISKS_AT_ONCE = 4  # of one VM; hosts and datastores have their own limits


class UnexpectedError(ApplianceError):
    """A defect of Holdfast ended this run; the log holds the details. Please report it."""

    code = "run.unexpected"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmBackupOptions:
    """How a run goes about all of its VMs; the default is that of the command line."""

    full: bool = False
    consistency: ConsistencyPolicy = field(default_factory=ConsistencyPolicy)
    transports: tuple[str, ...] = ()  # only these; empty: all, best first
    guest_logs: GuestLogs = GuestLogs.KEEP
    audit: AuditPolicy = field(default_factory=AuditPolicy)
    # long enough for an export lease of a killed run to have run out (300 s)
    backoff: Backoff = field(default_factory=lambda: Backoff(attempts=3, first_s=30, most_s=90))
    vms_at_once: int | None = None  # of this run; None: as many as the appliance's limits allow
    bandwidth: RateLimit | None = None
    check_turn: Callable[[], None] = lambda: None
    """Called when a VM's turn has come; raises ApplianceError: it is not begun."""
    busy_wait_s: float = 0.0  # how long to wait for another backup of the same VM


@dataclass(frozen=True, slots=True, kw_only=True)
class Followers:
    """Who hears of what goes on, on the threads of the VMs."""

    disk_begins: Callable[[SelectedVm, FrozenDisk, Progress], None] = lambda vm, disk, progress: (
        None
    )
    vm_ends: Callable[[VmResult], None] = lambda result: None


@dataclass(frozen=True, slots=True, kw_only=True)
class VmResult:
    """How the backup of one VM ended, after its last attempt."""

    vm: str  # name of its recovery points
    host: str  # the registered one
    status: RunOutcome
    attempts: int
    seconds: float
    backup: BackupOutcome | None = None
    error: ApplianceError | None = None
    other_reasons: tuple[Reason, ...] = ()  # of the way there and of cleaning up

    @property
    def reasons(self) -> list[Reason]:
        return [*(self.backup.reasons if self.backup else ()), *self.other_reasons]

    @property
    def vm_reasons(self) -> list[Reason]:
        """Those that are not about one disk."""
        return [*(self.backup.vm_reasons if self.backup else ()), *self.other_reasons]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRoom:
    """What the runs of one process share."""

    repository: Repository
    runs: Runs
    run_locks: RunLocks
    limits: BackupLimits
    state_folder: Path

    @property
    def journals(self) -> Path:
        return self.state_folder / "broken-runs"

    @property
    def vm_locks(self) -> Path:
        return self.state_folder / "vm-locks"


def back_up_vms(
    room: BackupRoom,
    vms: Sequence[SelectedVm],
    options: VmBackupOptions,
    context: RunContext,
    followers: Followers | None = None,
) -> list[VmResult]:
    """Back up all, and return how each ended, in the order of `vms`. Raises nothing of a VM's."""
    if not vms:
        return []
    followers = followers or Followers()

    def one(selected: SelectedVm) -> VmResult:
        result = _VmBackup(room, selected, options, context, followers).run()
        followers.vm_ends(result)
        return result

    workers = min(len(vms), options.vms_at_once or _MOST_THREADS)
    with ThreadPoolExecutor(workers, thread_name_prefix="vm") as pool:
        return list(pool.map(one, vms))


class _VmBackup:
    """The attempts for one VM; belongs to one thread."""

    def __init__(
        self,
        room: BackupRoom,
        selected: SelectedVm,
        options: VmBackupOptions,
        context: RunContext,
        followers: Followers,
    ) -> None:
        self._room = room
        self._selected = selected
        self._options = options
        self._context = RunContext(context.cancel, context.progress.part())
        self._followers = followers
        self._clock = room.repository.clock
        self._name = selected.point_name
        self._journal_path = journal_path(room.journals, room.repository.id, self._name)
        self._attempts = 0
        self._reasons: list[Reason] = []
        self._log = log.bind(vm=self._name, host=selected.source.name)

    def run(self) -> VmResult:
        """The run boundary: whatever goes wrong becomes the VM's result."""
        started_s = self._clock.monotonic_s()
        backup: BackupOutcome | None = None
        error: ApplianceError | None = None
        try:
            backup = self._with_turn()
        except ApplianceError as caught:
            error = caught
        except Exception as caught:
            self._log.exception("backup ended by a defect")
            error = UnexpectedError(f"{type(caught).__name__}: {caught}")
        return VmResult(
            vm=self._name,
            host=self._selected.source.name,
            status=self._status(backup, error),
            attempts=self._attempts,
            seconds=self._clock.monotonic_s() - started_s,
            backup=backup,
            error=error,
            other_reasons=tuple(dict.fromkeys(self._reasons)),
        )

    def _status(self, backup: BackupOutcome | None, error: ApplianceError | None) -> RunOutcome:
        if isinstance(error, CancelledError):
            return RunOutcome.CANCELLED
        if isinstance(error, VmNotProtectableError) and not self._selected.named:
            self._reasons.append(_skipped(error))
            return RunOutcome.WARNING
        if backup is None:
            return RunOutcome.FAILED
        reasons = [*backup.reasons, *self._reasons]
        return RunOutcome.WARNING if any(r.warning for r in reasons) else RunOutcome.SUCCESS

    def _with_turn(self) -> BackupOutcome:
        cancel = self._context.cancel
        vm = self._selected.vm
        if vm.obstacles:
            raise VmNotProtectableError(vm.name, vm.obstacles[0])
        wait_s = self._options.busy_wait_s
        with (
            self._room.limits.vm(vm, cancel),
            vm_lock(self._room.vm_locks, self._name, wait_s=wait_s, cancel=cancel),
        ):
            self._options.check_turn()
            return self._options.backoff.run(self._attempt, cancel, self._repeated)

    def _repeated(self, error: ApplianceError) -> None:
        self._log.warning("backup attempt failed", error=error, code=error.code)
        self._reasons.append(
            Reason(
                "run.repeated",
                f"attempt {self._attempts} failed ([{error.code}] {error}); another one was made",
                "look at what failed if this comes back",
                warning=False,
            )
        )

    # One attempt, which is one run

    def _attempt(self) -> BackupOutcome:
        self._attempts += 1
        room, source = self._room, self._selected.source
        run_id = room.repository.new_run_id()
        with room.run_locks.hold(run_id):
            room.runs.begin(run_id, kind="backup", vm=self._name, host=source.name)
            outcome, code = RunOutcome.FAILED, UnexpectedError.code
            result: dict[str, Any] = {}
            try:
                backup = self._freeze_and_write(run_id)
                outcome = self._status(backup, None)
                code = ""
                result = {"disks": [disk_document(disk) for disk in backup.disks]}
                return backup
            except ApplianceError as error:
                outcome, code = self._status(None, error), error.code
                raise
            finally:
                self._reasons += source.leftovers(run_id)
                room.runs.end(run_id, outcome, result=result, error_code=code or None)

    def _freeze_and_write(self, run_id: RunId) -> BackupOutcome:
        options, room = self._options, self._room
        newest = room.repository.points.latest(self._name)
        known = known_state(newest) if newest else None
        parent = None if options.full else newest
        broken = self._broken_run(parent)
        request = FreezeRequest(
            run_id=run_id,
            point_name=self._name,
            consistency=options.consistency,
            parent=known if parent else None,
            broken=broken.state if broken else None,
            reset_due=known is not None and any(is_mistrusted(disk) for disk in known.disks),
            transports=options.transports,
            guest_logs=options.guest_logs,
        )
        host = self._selected.vm.host
        with self._selected.source.freeze(self._selected.vm, request, self._context) as frozen:
            plan = BackupPlan(
                full=options.full,
                parent=parent,
                broken=broken,
                journal=BrokenRunJournal(self._journal_path, run_id, frozen),
                audit=options.audit,
                disks_at_once=_DISKS_AT_ONCE,
                open_for_reading=lambda disk, cancel: self._reading(disk, host, cancel),
                follow=lambda disk, progress: self._followers.disk_begins(
                    self._selected, disk, progress
                ),
            )
            backup = back_up_with(room.repository, frozen, self._context, plan, run_id=run_id)
            forget_broken_run(self._journal_path)
            self._reasons += self._slowed_down(frozen.disks)
        return backup

    @contextmanager
    def _reading(self, disk: FrozenDisk, host: str, cancel: CancelToken) -> Iterator[BlockReader]:
        bandwidth = self._options.bandwidth
        with self._room.limits.disk(disk, host, cancel) as reader:
            yield reader if bandwidth is None else RateLimitedReader(reader, bandwidth, cancel)

    def _broken_run(self, parent: Manifest | None) -> BrokenRun | None:
        """What a run before had stored, if no point has been made since."""
        if self._options.full:
            return None
        broken = read_broken_run(self._journal_path, self._name)
        newest_at = parent.created_at if parent else datetime.min.replace(tzinfo=UTC)
        return broken if broken is not None and broken.frozen_at > newest_at else None

    def _slowed_down(self, disks: Sequence[FrozenDisk]) -> list[Reason]:
        names = sorted({disk.datastore for disk in disks})
        reasons = [self._room.limits.brakes.of(name).reason() for name in names]
        return [reason for reason in reasons if reason is not None]


def _skipped(error: VmNotProtectableError) -> Reason:
    obstacle = error.obstacle
    return Reason(
        "skip.vm-not-protectable",
        f"left out: [{obstacle.code}] {obstacle.text}",
        obstacle.next_step or "leave it out of the glob or tag",
    )
