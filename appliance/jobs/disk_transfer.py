"""One disk of a run: decide what must be read, read it, write it.

    read plan (`read_plan`) -> audit -> less what a broken run had stored (`stored_segments`)
    -> source's reader -> image writer

The outcome says in which way the disk was read, and why not in a better one.

A random share of what is reported unchanged is audited first (`cbt_audit`); a disk that fails the
audit is read whole, and its change id is not recorded, so the next run reads all of it too.

Thread model: `DiskTransfer` may write several disks of its run at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import Progress, RunContext
from appliance.blocks.device import BlockReader
from appliance.jobs.backup_plan import BackupPlan
from appliance.jobs.cbt_audit import AuditResult, audit
from appliance.jobs.read_plan import STREAM_TRANSPORT, ReadMode, ReadPlan, plan_read
from appliance.jobs.stored_segments import (
    StoredSegments,
    covered_bytes,
    resumed_reason,
    to_read,
)
from appliance.repository.errors import CorruptError
from appliance.repository.image_writer import ImageResult
from appliance.repository.repository import Repository
from appliance.repository.write_run import WriteRun
from appliance.sources.frozen import Access, FrozenDisk, TransferReport

log = EventLog(__name__)

_LOCAL = TransferReport(transport="local")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskOutcome:
    number: int
    label: str
    mode: ReadMode
    reasons: tuple[Reason, ...]
    image: ImageResult
    change_id: str | None = None
    transfer: TransferReport = _LOCAL
    audit: AuditResult | None = None
    seconds: float = 0.0
    resumed_bytes: int = 0  # of disk, stored by a broken run and not read again


class DiskTransfer:
    def __init__(
        self, repository: Repository, run: WriteRun, plan: BackupPlan, context: RunContext
    ) -> None:
        self._repository = repository
        self._run = run
        self._plan = plan
        self._context = context
        self._stored = StoredSegments(repository, run, plan)
        parent = run.parent
        self._quarantined = parent is not None and repository.is_affected(parent)

    def write(self, disk: FrozenDisk) -> DiskOutcome:
        """Write one disk; nothing of it is durable before the run's commit.

        Raises:
            DiskNotCoverableError: no transport can read it; nothing was read.
            CancelledError, SourceError, StorageFullError, StorageError.
        """
        with self._plan.open_for_reading(disk, self._context.cancel) as reader:
            progress = self._context.progress.part()
            self._plan.follow(disk, progress)
            clock = self._repository.clock
            started_s = clock.monotonic_s()
            plan = plan_read(
                disk, self._run.parent, full=self._plan.full, quarantined=self._quarantined
            )
            stored = self._stored.of_broken_run(disk)
            report = _LOCAL
            if disk.transfer is not None:
                disk.transfer.begin(to_read(disk, plan, stored))
                report = disk.transfer.report()
                if report.access is Access.STREAM:  # it passes everything anyway
                    stored = {}
                    if plan.changed is not None:
                        plan = plan.compared(STREAM_TRANSPORT)
            plan, audited = self._audited(disk, reader, plan)
            mistrusted = audited is not None and audited.mismatch is not None
            stored = {} if mistrusted else stored
            try:
                image = self._write(disk, reader, plan, stored, progress)
            except CorruptError as error:
                if plan.root is None and not stored:
                    raise
                plan, stored = plan.without_parent(error), {}
                image = self._write(disk, reader, plan, stored, progress)
            if disk.transfer is not None:
                report = disk.transfer.report()
            resumed_bytes = covered_bytes(stored, reader.size_bytes)
            reasons = plan.reasons + report.reasons
            if resumed_bytes:
                reasons += (resumed_reason(resumed_bytes),)
            return DiskOutcome(
                number=disk.number,
                label=disk.label,
                mode=plan.mode,
                reasons=reasons,
                image=image,
                change_id=None if mistrusted else disk.change_id,
                transfer=report,
                audit=audited,
                seconds=clock.monotonic_s() - started_s,
                resumed_bytes=resumed_bytes,
            )

    def _audited(
        self, disk: FrozenDisk, reader: BlockReader, plan: ReadPlan
    ) -> tuple[ReadPlan, AuditResult | None]:
        """Audit the change list; on a mismatch return a plan that reads everything."""
        policy, parent = self._plan.audit, self._run.parent
        if policy is None or not policy.percent or plan.mode is not ReadMode.CHANGED:
            return plan, None
        assert parent is not None and plan.changed is not None
        try:
            with closing(self._repository.open_image(parent, disk.number)) as old:
                result = audit(
                    reader,
                    old,
                    plan.changed,
                    policy,
                    self._context.cancel,
                    disk_number=disk.number,
                )
        except CorruptError as error:
            return plan.without_parent(error), None
        if result.mismatch is None:
            return plan, result
        log.error(
            "audit of changed block tracking failed",
            disk=disk.label,
            at=result.mismatch.offset,
            seed=result.seed,
        )
        alarm = Reason(
            "cbt.audit-mismatch",
            f"bytes from {result.mismatch.offset} were reported unchanged but differ from the "
            f"parent point (seed {result.seed}); the whole disk was read, which heals this point",
            "earlier points of this disk may lack changes: verify them; changed block tracking "
            "is reset by the next run, which reads the whole disk",
        )
        return plan.compared(alarm), result

    def _write(
        self,
        disk: FrozenDisk,
        reader: BlockReader,
        plan: ReadPlan,
        stored: Mapping[int, bytes],
        progress: Progress,
    ) -> ImageResult:
        changed = to_read(disk, plan, stored)
        if stored and changed is not None:
            self._stored.keep_unchanged(disk, stored, changed)
        return self._run.images.write(
            reader,
            plan.root,
            changed,
            stored=stored,
            on_leaf=lambda segment, digest: self._stored.note(disk, segment, digest),
            progress=progress,
        )
