"""One disk of a run: decide what must be read, read it, write it.

A disk is read in the cheapest way that is safe: changed extents over a sound parent; else all of
it, comparing with the parent's chunks; else all of it with no parent. What a broken run had stored
is not read again where the source can say that it has not changed since. The outcome says which,
and why not a better one.

A random share of what is reported unchanged is audited first (`cbt_audit`); a disk that fails the
audit is read whole, and its change id is not recorded, so the next run reads all of it too.

Thread model: `DiskTransfer` may write several disks of its run at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum

from appliance.base.errors import StorageError
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import Progress, RunContext
from appliance.base.units import format_size
from appliance.blocks.device import BlockReader
from appliance.blocks.extents import Extent, align, intersect, normalise, subtract
from appliance.jobs.backup_plan import BackupPlan
from appliance.jobs.cbt_audit import AuditResult, audit
from appliance.repository.errors import CorruptError
from appliance.repository.format import BLOCK_BYTES, EMPTY_DIGEST, SEGMENT_BYTES
from appliance.repository.image_tree import decode_leaf
from appliance.repository.image_writer import ImageResult
from appliance.repository.manifest import DiskEntry
from appliance.repository.repository import Repository
from appliance.repository.write_run import WriteRun
from appliance.sources.frozen import Access, FrozenDisk, TransferReport

log = EventLog(__name__)

_SEGMENTS_PER_KEEP = 256  # 2 GiB looked at: what a kill makes the next run read again at most
_LOCAL = TransferReport(transport="local")

FIRST_POINT = Reason(
    "full.first-point", "the VM has no recovery point yet", "none: this is expected", warning=False
)
FULL_REQUESTED = Reason("full.requested", "a full read was asked for", "none", warning=False)
NEW_DISK = Reason(
    "full.new-disk", "the newest recovery point has no such disk", "none", warning=False
)
NO_CHANGE_LIST = Reason(
    "read.no-change-list",
    "nobody says what changed, so the whole disk was read and compared",
    "give --changed where the source knows its changed extents",
    warning=False,
)
STREAM_TRANSPORT = Reason(
    "read.stream-transport",
    "the transport moves whole disks only, so the whole disk was read and compared",
    "see the refusals for what would allow a transport that reads changed blocks only",
    warning=False,
)


class ReadMode(StrEnum):
    FULL = "full"  # read all, no parent
    COMPARED = "compared"  # read all, compared with the parent
    CHANGED = "changed"  # read the changed extents only


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadPlan:
    """Over what to write, and what to read for it."""

    root: bytes | None  # of the parent's disk
    changed: Sequence[Extent] | None  # since the parent; None: all of it
    reasons: tuple[Reason, ...]

    @property
    def mode(self) -> ReadMode:
        if self.root is None:
            return ReadMode.FULL
        return ReadMode.COMPARED if self.changed is None else ReadMode.CHANGED


class DiskTransfer:
    def __init__(
        self, repository: Repository, run: WriteRun, plan: BackupPlan, context: RunContext
    ) -> None:
        self._repository = repository
        self._run = run
        self._plan = plan
        self._context = context
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
            plan = self._read_plan(disk)
            stored = self._stored_by_broken(disk)
            report = _LOCAL
            if disk.transfer is not None:
                disk.transfer.begin(_to_read(disk, plan, stored))
                report = disk.transfer.report()
                if report.access is Access.STREAM:  # it passes everything anyway
                    plan, stored = _whole_disk(plan), {}
            plan, audited = self._audited(disk, reader, plan)
            mistrusted = audited is not None and audited.mismatch is not None
            stored = {} if mistrusted else stored
            try:
                image = self._write(disk, reader, plan, stored, progress)
            except CorruptError as error:
                if plan.root is None and not stored:
                    raise
                reasons = (*plan.reasons, _damaged_parent(error))
                plan, stored = _ReadPlan(root=None, changed=None, reasons=reasons), {}
                image = self._write(disk, reader, plan, stored, progress)
            if disk.transfer is not None:
                report = disk.transfer.report()
            resumed_bytes = _covered_bytes(stored, reader.size_bytes)
            reasons = plan.reasons + report.reasons
            if resumed_bytes:
                reasons += (_resumed(resumed_bytes),)
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

    # What to read

    def _read_plan(self, disk: FrozenDisk) -> _ReadPlan:
        parent = self._run.parent
        old = parent.disk(disk.number) if parent else None
        refusal = self._parent_refusal(disk, old)
        if refusal is not None or old is None:
            return _ReadPlan(root=None, changed=None, reasons=(*disk.reasons, refusal or NEW_DISK))
        changed = _with_growth(disk, old)
        reasons = disk.reasons
        if changed is None and not disk.reasons:
            reasons += (NO_CHANGE_LIST,)
        return _ReadPlan(root=old.root, changed=changed, reasons=reasons)

    def _parent_refusal(self, disk: FrozenDisk, old: DiskEntry | None) -> Reason | None:
        """Return why the parent cannot be built upon, None when it can."""
        parent = self._run.parent
        if self._plan.full:
            return FULL_REQUESTED
        if parent is None:
            return FIRST_POINT
        if old is None:
            return NEW_DISK
        if self._quarantined:
            return Reason(
                "full.parent-quarantined",
                f"recovery point {parent.point_id} has damaged chunks; "
                "reading all heals what it can",
                "run `holdfast repo check` afterwards and replace failing storage",
            )
        if disk.reader.size_bytes < old.size_bytes:
            return Reason(
                "full.disk-shrunk",
                f"the disk shrank from {format_size(old.size_bytes)} to "
                f"{format_size(disk.reader.size_bytes)}",
                "check that this is the disk that was meant",
            )
        return None

    def _audited(
        self, disk: FrozenDisk, reader: BlockReader, plan: _ReadPlan
    ) -> tuple[_ReadPlan, AuditResult | None]:
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
            reasons = (*plan.reasons, _damaged_parent(error))
            return _ReadPlan(root=None, changed=None, reasons=reasons), None
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
        return _ReadPlan(root=plan.root, changed=None, reasons=(*plan.reasons, alarm)), result

    # What a broken run had stored

    def _stored_by_broken(self, disk: FrozenDisk) -> Mapping[int, bytes]:
        """Leaves that can stand for their segments, except where the disk has changed since."""
        broken = self._plan.broken
        if broken is None or self._plan.full or disk.changed_since_broken is None:
            return {}
        segments = -(-disk.reader.size_bytes // SEGMENT_BYTES)
        return {
            segment: digest
            for segment, digest in broken.leaves_of(disk.number).items()
            if segment < segments and self._is_stored(digest)
        }

    def _is_stored(self, leaf_digest: bytes) -> bool:
        """Whether a new point may refer to the leaf and to all of its chunks."""
        if leaf_digest == EMPTY_DIGEST:
            return True
        index = self._repository.index
        if not index.known([leaf_digest]):
            return False
        try:
            leaf = decode_leaf(self._repository.chunks.load(leaf_digest))
        except (CorruptError, StorageError):
            return False
        digests = {entry.digest for entry in leaf.entries}
        return len(index.known(list(digests))) == len(digests)

    # Writing

    def _write(
        self,
        disk: FrozenDisk,
        reader: BlockReader,
        plan: _ReadPlan,
        stored: Mapping[int, bytes],
        progress: Progress,
    ) -> ImageResult:
        changed = _to_read(disk, plan, stored)
        if stored and changed is not None:
            self._keep_unchanged(disk, stored, changed)
        return self._run.images.write(
            reader,
            plan.root,
            changed,
            stored=stored,
            on_leaf=lambda segment, digest: self._on_leaf(disk, segment, digest),
            progress=progress,
        )

    def _on_leaf(self, disk: FrozenDisk, segment: int, digest: bytes) -> None:
        journal = self._plan.journal
        if journal is None or disk.change_id is None:
            return
        if journal.note(disk.number, segment, digest) >= _SEGMENTS_PER_KEEP:
            noted = journal.take()
            self._run.make_durable()
            self._journalled(noted)

    def _keep_unchanged(
        self, disk: FrozenDisk, stored: Mapping[int, bytes], changed: Sequence[Extent]
    ) -> None:
        """What the broken run had stored serves the next one too, should this one break."""
        journal = self._plan.journal
        if journal is None or disk.change_id is None:
            return
        touched = {
            segment
            for extent in changed
            for segment in range(extent.offset // SEGMENT_BYTES, -(-extent.end // SEGMENT_BYTES))
        }
        for segment, digest in stored.items():
            if segment not in touched:
                journal.note(disk.number, segment, digest)
        self._journalled(journal.take())

    def _journalled(self, noted: list[bytes]) -> None:
        assert self._plan.journal is not None
        try:
            self._plan.journal.keep(noted)
        except StorageError as error:  # costs reading again, should the run break
            log.warning("journal for a broken run not kept", error=error)


def _whole_disk(plan: _ReadPlan) -> _ReadPlan:
    if plan.changed is None:
        return plan
    return _ReadPlan(root=plan.root, changed=None, reasons=(*plan.reasons, STREAM_TRANSPORT))


def _to_read(
    disk: FrozenDisk, plan: _ReadPlan, stored: Mapping[int, bytes]
) -> Sequence[Extent] | None:
    """What changed since the broken run where it had stored, since the parent elsewhere."""
    if not stored:
        return plan.changed
    size_bytes = disk.reader.size_bytes
    inside = normalise(
        Extent(segment * SEGMENT_BYTES, min(SEGMENT_BYTES, size_bytes - segment * SEGMENT_BYTES))
        for segment in stored
    )
    changed = [Extent(0, size_bytes)] if plan.changed is None else normalise(plan.changed)
    again = align(disk.changed_since_broken or (), BLOCK_BYTES, size_bytes)
    return normalise([*subtract(changed, inside), *intersect(again, inside)])


def _covered_bytes(stored: Mapping[int, bytes], size_bytes: int) -> int:
    return sum(min(SEGMENT_BYTES, size_bytes - segment * SEGMENT_BYTES) for segment in stored)


def _resumed(resumed_bytes: int) -> Reason:
    return Reason(
        "resume.continued",
        f"an earlier run broke off; {format_size(resumed_bytes)} that it had stored were not read "
        "again, except where they have changed since",
        "none",
        warning=False,
    )


def _damaged_parent(error: CorruptError) -> Reason:
    return Reason(
        "full.parent-damaged",
        f"the parent recovery point cannot be read ({error}); the whole disk was read",
        "run `holdfast repo check --read-data`",
    )


def _with_growth(disk: FrozenDisk, old: DiskEntry) -> Sequence[Extent] | None:
    """The changed extents, with what the disk has grown by."""
    grown_bytes = disk.reader.size_bytes - old.size_bytes
    if disk.changed is None or grown_bytes == 0:
        return disk.changed
    return normalise([*disk.changed, Extent(old.size_bytes, grown_bytes)])
