"""One backup run: the frozen disks of one VM become one recovery point.

Data path: a source hands over a `FrozenVm`; each disk is written against the parent point of the
same VM (`disk_transfer`); when all are durable the manifest is committed. A failed disk fails the
run, and a run that fails or is cancelled leaves unreferenced bytes at most, and a journal by which
the next one need not read them again (`broken_run`). Only a disk that nobody can read as things are
is left out, with its reason.

A change list speaks about one particular point, so the parent that it was asked for is handed in
with it; only where nobody asked (disk images) the newest point is taken.

Thread model: a call belongs to one thread; it runs a bounded number of disks on threads of its own.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from appliance.base.bounded_map import bounded_map
from appliance.base.errors import ApplianceError, SourceError
from appliance.base.ids import RunId, point_id_of_run
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.base.version import __version__
from appliance.jobs.backup_plan import BackupPlan
from appliance.jobs.broken_run import BrokenRunJournal
from appliance.jobs.disk_transfer import DiskOutcome, DiskTransfer
from appliance.jobs.point_identity import hardware_document
from appliance.jobs.read_plan import ReadMode
from appliance.repository.manifest import DiskEntry, Manifest
from appliance.repository.repository import Repository
from appliance.repository.write_run import WriteRun
from appliance.sources.contract import DiskNotCoverableError
from appliance.sources.frozen import FrozenDisk, FrozenVm, SkippedDisk

__all__ = ["BackupOutcome", "DiskOutcome", "ReadMode", "back_up", "back_up_with"]


class NothingToBackUpError(SourceError):
    """None of the VM's disks can be read, so there is no recovery point; the reasons say why."""

    code = "backup.nothing-to-back-up"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOutcome:
    manifest: Manifest
    disks: tuple[DiskOutcome, ...]
    skipped: tuple[SkippedDisk, ...] = ()
    vm_reasons: tuple[Reason, ...] = ()

    @property
    def reasons(self) -> list[Reason]:
        return [
            *self.vm_reasons,
            *(skipped.reason for skipped in self.skipped),
            *(reason for disk in self.disks for reason in disk.reasons),
        ]


def back_up(
    repository: Repository,
    vm: FrozenVm,
    context: RunContext,
    *,
    run_id: RunId | None = None,
    full: bool = False,
) -> BackupOutcome:
    """Write all disks over the VM's newest point and commit one recovery point.

    Crash guarantee: until it returns there is no new point; what came before is untouched.

    Raises:
        CancelledError, SourceError, StorageFullError, StorageError: no point was made.
    """
    newest = None if full else repository.points.latest(vm.name)
    plan = BackupPlan(full=full, parent=newest)
    return back_up_with(repository, vm, context, plan, run_id=run_id)


def back_up_with(
    repository: Repository,
    vm: FrozenVm,
    context: RunContext,
    plan: BackupPlan,
    *,
    run_id: RunId | None = None,
) -> BackupOutcome:
    """As `back_up`, over the parent that `plan` names."""
    run_id = run_id or repository.new_run_id()
    own = RunContext(context.cancel.child(), context.progress)
    with repository.begin_run(run_id, own, None if plan.full else plan.parent) as run:
        try:
            return _run(repository, run, vm, own, plan)
        except ApplianceError:
            _keep_for_the_next(run, plan.journal)
            raise


def _run(
    repository: Repository, run: WriteRun, vm: FrozenVm, context: RunContext, plan: BackupPlan
) -> BackupOutcome:
    parent = run.parent
    results = _write_disks(DiskTransfer(repository, run, plan, context), vm, context, plan)
    disks = tuple(result for result in results if isinstance(result, DiskOutcome))
    skipped = (*vm.skipped, *(result for result in results if isinstance(result, SkippedDisk)))
    if not disks:
        words = "; ".join(f"{disk.label}: {disk.reason.text}" for disk in skipped)
        raise NothingToBackUpError(f"{vm.name}: {words or 'the VM has no disks'}")
    run.flush()
    context.cancel.check()
    manifest = Manifest(
        point_id=point_id_of_run(run.run_id),
        run_id=run.run_id,
        vm=vm.name,
        created_at=vm.created_at,
        committed_at=repository.clock.now(),
        consistency=vm.consistency,
        parent=parent.point_id if parent else None,
        source=vm.source,
        hardware=hardware_document(vm, skipped),
        disks=tuple(_entry(outcome) for outcome in disks),
        written_by=f"holdfast {__version__}",
    )
    run.commit(manifest)
    return BackupOutcome(manifest=manifest, disks=disks, skipped=skipped, vm_reasons=vm.reasons)


def _write_disks(
    transfer: DiskTransfer, vm: FrozenVm, context: RunContext, plan: BackupPlan
) -> list[DiskOutcome | SkippedDisk]:
    """All disks, in order. The first failure stops the others, and is the one that is raised."""
    failures: list[ApplianceError] = []

    def write(disk: FrozenDisk) -> DiskOutcome | SkippedDisk:
        try:
            return transfer.write(disk)
        except DiskNotCoverableError as error:
            return SkippedDisk(label=disk.label, reason=_no_transport(error))
        except ApplianceError as error:
            failures.append(error)
            context.cancel.cancel()
            raise

    try:
        return list(bounded_map(write, vm.disks, workers=plan.disks_at_once, name="disk", ahead=1))
    except ApplianceError:
        raise failures[0] from None


def _no_transport(error: DiskNotCoverableError) -> Reason:
    return Reason(
        "skip.no-transport",
        f"no transport can read the disk: {error}",
        "see the refusals; make one of the transports possible for this disk",
    )


def _keep_for_the_next(run: WriteRun, journal: BrokenRunJournal | None) -> None:
    """The run has failed; what was noted so far need not be read again."""
    if journal is not None:
        with suppress(ApplianceError):  # the first error is the one that counts
            noted = journal.take()
            run.make_durable()
            journal.keep(noted)


def _entry(outcome: DiskOutcome) -> DiskEntry:
    image = outcome.image
    return DiskEntry(
        number=outcome.number,
        label=outcome.label,
        size_bytes=image.size_bytes,
        root_hex=image.root.hex(),
        change_id=outcome.change_id,
        read_bytes=image.read_bytes,
        changed_bytes=image.changed_bytes,
        new_bytes=image.new_bytes,
        stored_bytes=image.stored_bytes,
    )
