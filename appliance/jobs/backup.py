"""One backup run: the frozen disks of one VM become one recovery point.

Data path: a source hands over `FrozenDisk`s; each is written against the newest point of the same
VM; when all are durable the manifest is committed. A failed disk fails the run, and a run that
fails or is cancelled leaves unreferenced bytes at most.

A disk is read in the cheapest way that is safe: changed extents over a sound parent; else all of
it, comparing with the parent's chunks; else all of it with no parent. The result says which, and
why not a better one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from appliance.base.ids import RunId, point_id_of_run
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.base.units import format_size
from appliance.base.version import __version__
from appliance.blocks.extents import Extent, normalise
from appliance.repository.errors import CorruptError
from appliance.repository.image_writer import ImageResult
from appliance.repository.manifest import DiskEntry, Manifest
from appliance.repository.repository import Repository
from appliance.repository.write_run import WriteRun
from appliance.sources.frozen import FrozenDisk, FrozenVm

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


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOutcome:
    manifest: Manifest
    disks: tuple[DiskOutcome, ...]

    @property
    def reasons(self) -> list[Reason]:
        return [reason for disk in self.disks for reason in disk.reasons]


def back_up(
    repository: Repository,
    vm: FrozenVm,
    context: RunContext,
    *,
    run_id: RunId | None = None,
    full: bool = False,
) -> BackupOutcome:
    """Write all disks and commit one recovery point.

    Crash guarantee: until it returns there is no new point; what came before is untouched.

    Raises:
        CancelledError, SourceError, StorageFullError, StorageError: no point was made.
    """
    run_id = run_id or repository.new_run_id()
    newest = None if full else repository.points.latest(vm.name)
    with repository.begin_run(run_id, context, newest) as run:
        parent = run.parent
        quarantined = parent is not None and repository.is_affected(parent)
        outcomes = tuple(
            _write_disk(run, disk, parent, full=full, quarantined=quarantined) for disk in vm.disks
        )
        run.flush()
        context.cancel.check()
        manifest = Manifest(
            point_id=point_id_of_run(run_id),
            run_id=run_id,
            vm=vm.name,
            created_at=vm.created_at,
            committed_at=repository.clock.now(),
            consistency=vm.consistency,
            parent=parent.point_id if parent else None,
            source=vm.source,
            hardware=vm.hardware,
            disks=tuple(
                _entry(disk, outcome) for disk, outcome in zip(vm.disks, outcomes, strict=True)
            ),
            written_by=f"holdfast {__version__}",
        )
        run.commit(manifest)
    return BackupOutcome(manifest=manifest, disks=outcomes)


def _write_disk(
    run: WriteRun, disk: FrozenDisk, parent: Manifest | None, *, full: bool, quarantined: bool
) -> DiskOutcome:
    old = parent.disk(disk.number) if parent else None
    refusal = _parent_refusal(disk, parent, old, full=full, quarantined=quarantined)
    reasons = disk.reasons
    root: bytes | None = None
    changed: Sequence[Extent] | None = None
    if refusal is not None or old is None:
        reasons += (refusal or NEW_DISK,)
    else:
        root = old.root
        changed = _with_growth(disk, old)
        if changed is None and not disk.reasons:
            reasons += (NO_CHANGE_LIST,)
    try:
        image = run.images.write(disk.reader, root, changed)
    except CorruptError as error:
        if root is None:
            raise
        reasons += (_damaged_parent(error),)
        root, changed = None, None
        image = run.images.write(disk.reader, None, None)
    mode = ReadMode.FULL if root is None else ReadMode.COMPARED
    return DiskOutcome(
        number=disk.number,
        label=disk.label,
        mode=mode if changed is None else ReadMode.CHANGED,
        reasons=reasons,
        image=image,
    )


def _parent_refusal(
    disk: FrozenDisk,
    parent: Manifest | None,
    old: DiskEntry | None,
    *,
    full: bool,
    quarantined: bool,
) -> Reason | None:
    """Return why the parent cannot be built upon, None when it can."""
    if full:
        return FULL_REQUESTED
    if parent is None:
        return FIRST_POINT
    if old is None:
        return NEW_DISK
    if quarantined:
        return Reason(
            "full.parent-quarantined",
            f"recovery point {parent.point_id} has damaged chunks; reading all heals what it can",
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


def _entry(disk: FrozenDisk, outcome: DiskOutcome) -> DiskEntry:
    image = outcome.image
    return DiskEntry(
        number=disk.number,
        label=disk.label,
        size_bytes=image.size_bytes,
        root_hex=image.root.hex(),
        change_id=disk.change_id,
        read_bytes=image.read_bytes,
        changed_bytes=image.changed_bytes,
        new_bytes=image.new_bytes,
        stored_bytes=image.stored_bytes,
    )
