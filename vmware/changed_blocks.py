"""Which areas of a disk changed since an earlier snapshot: asked by page, not believed blindly.

Data path: the caller keeps a `Baseline` per disk with each recovery point, taken from the
*snapshot's* configuration; the next backup gives it back here, and reads only the areas it gets.
Any doubt is a `FullRead` with its reason: the whole disk is read and compared, which is always
right.

Invariant: areas are a superset of what changed, or there are none but a `FullRead`. They are
sorted, disjoint, not empty, and inside the disk.

Guards, in this order: no change id (tracking is off); no usable base; another capacity or disk
identity; another tracking epoch (the part of the change id before the slash); a counter that went
back, or stands although each snapshot makes a new change id; then of every page: it starts where it
was asked to, has a length, areas in order without overlap inside of it; a bound on the number of
pages. vSphere does not promise what a change id looks like, so the guards on its form are
heuristics that can only cause a full read.

Memory is bounded: above `_AREAS_LIMIT` areas, neighbours are joined over ever larger gaps.

Source: vSphere API reference, QueryChangedDiskAreas; Broadcom KB 320557 (tracking enabled while
snapshots exist), 310751, 317933 (areas missed by old hosts), 432633 (reset after power loss).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pyVmomi import vim

from vmware.errors import (
    CancelledError,
    FileFaultError,
    InvalidRequestError,
    ObjectGoneError,
    PrivilegeError,
    UnsupportedError,
    VsphereError,
)
from vmware.findings import Finding, Weight
from vmware.inventory import DiskInfo
from vmware.patience import PASSING, Patience
from vmware.session import Session

Area = tuple[int, int]
"""(offset, length) in bytes."""

ALL_ALLOCATED = "*"

_PAGES_LIMIT = 65_536  # a page covers gigabytes
_AREAS_LIMIT = 1 << 18  # about 30 MiB of memory
_FIRST_GAP_BYTES = 64 << 10


class Remedy(StrEnum):
    """What brings changed block tracking back for the next backup."""

    NONE = "none"  # nothing: this backup's change id is a new base
    ENABLE = "enable"
    RESET = "reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What an earlier recovery point knows of a disk, all from its snapshot's configuration."""

    change_id: str | None
    capacity_bytes: int
    backing_uuid: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedAreas:
    areas: tuple[Area, ...]

    @property
    def total_bytes(self) -> int:
        return sum(length for _, length in self.areas)


@dataclass(frozen=True, slots=True, kw_only=True)
class FullRead:
    """The areas cannot be known: read all of the disk."""

    finding: Finding
    remedy: Remedy = Remedy.NONE


def baseline_of(disk: DiskInfo) -> Baseline:
    """What to keep with the recovery point; `disk` is from `snapshot.config`, not `vm.config`."""
    return Baseline(
        change_id=disk.change_id or None,
        capacity_bytes=disk.capacity_bytes,
        backing_uuid=disk.backing_uuid or None,
    )


def changed_areas(
    session: Session,
    vm_moref: str,
    snapshot_moref: str,
    disk: DiskInfo,
    base: Baseline,
    *,
    patience: Patience | None = None,
) -> ChangedAreas | FullRead:
    """The areas of `disk` (as in `snapshot.config`) that may differ from what `base` describes.

    Raises:
        ObjectGoneError: the snapshot is gone; abort and take a new one.
        UnreachableError, SessionLostError, BusyError, CancelledError.
    """
    doubt = doubt_of(disk, base)
    if doubt is not None:
        return doubt
    assert base.change_id is not None
    query = _Query(session, vm_moref, snapshot_moref, disk, base.change_id, patience or Patience())
    try:
        return ChangedAreas(areas=query.run())
    except _DoubtError as error:
        return _reset(error.finding)
    except VsphereError as error:
        if isinstance(error, (ObjectGoneError, CancelledError, *PASSING)):
            raise
        return _refused(error)


def allocated_areas(
    session: Session,
    vm_moref: str,
    snapshot_moref: str,
    disk: DiskInfo,
    *,
    patience: Patience | None = None,
) -> ChangedAreas | None:
    """The areas of `disk` that were ever written; what lies outside reads as zeros.

    Only an optimisation of a first full read, never a reason to keep anything of an earlier one.
    Meaningful on VMFS, for a VM that had no snapshot when tracking was enabled. None, for "read
    everything", after any fault or doubt, and when the answer is nothing or the whole disk.

    Raises: CancelledError, ObjectGoneError.
    """
    patience = patience or Patience()
    if not disk.change_id:
        return None
    query = _Query(session, vm_moref, snapshot_moref, disk, ALL_ALLOCATED, patience)
    try:
        areas = query.run()
    except (ObjectGoneError, CancelledError):
        raise
    except (VsphereError, _DoubtError):
        return None
    if not areas or areas == ((0, disk.capacity_bytes),):
        return None
    return ChangedAreas(areas=areas)


def doubt_of(disk: DiskInfo, base: Baseline) -> FullRead | None:
    """Why the change list since `base` must not even be asked for; None: ask. Pure."""
    if not disk.change_id:
        return FullRead(finding=_INACTIVE, remedy=Remedy.ENABLE)
    if not base.change_id or base.change_id == ALL_ALLOCATED:
        return FullRead(finding=_NO_BASE)
    if disk.capacity_bytes != base.capacity_bytes:
        text = f"the disk had {base.capacity_bytes} bytes and has {disk.capacity_bytes} now"
        return _reset(Finding("cbt.capacity-changed", text, _COMPARED))
    if (disk.backing_uuid or None) != base.backing_uuid:
        text = "another disk is in this place since the last backup"
        return _reset(Finding("cbt.disk-replaced", text, _COMPARED))
    (epoch, count), (old_epoch, old_count) = _parts(disk.change_id), _parts(base.change_id)
    if epoch != old_epoch:
        return FullRead(finding=_EPOCH_CHANGED)
    if disk.change_id == base.change_id or (
        count is not None and old_count is not None and count < old_count
    ):
        return FullRead(finding=_WENT_BACK)
    return None


def _parts(change_id: str) -> tuple[str, int | None]:
    """Epoch and counter; what has no such form has one epoch and no counter."""
    epoch, slash, count = change_id.rpartition("/")
    if not slash:
        return "", None
    return epoch, int(count) if count.isascii() and count.isdigit() and len(count) < 20 else None


class _DoubtError(Exception):
    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.text)
        self.finding = finding


class _Query:
    """The pages of one change list; used once, by one thread."""

    def __init__(
        self,
        session: Session,
        vm_moref: str,
        snapshot_moref: str,
        disk: DiskInfo,
        change_id: str,
        patience: Patience,
    ) -> None:
        self._session = session
        self._vm = session.object(vim.VirtualMachine, vm_moref)
        self._snapshot = session.object(vim.vm.Snapshot, snapshot_moref)
        self._disk = disk
        self._change_id = change_id
        self.patience = patience
        self._areas: list[Area] = []
        self._gap_bytes = 0

    def run(self) -> tuple[Area, ...]:
        """Raises _DoubtError, VsphereError."""
        offset = 0
        for _ in range(_PAGES_LIMIT):
            if offset >= self._disk.capacity_bytes:
                return tuple(self._areas)
            at = offset
            page = self.patience.retry(lambda at=at: self._ask(at))  # type: ignore[misc]
            offset = self._take(page, offset)
        raise _DoubtError(
            Finding("cbt.endless", f"no end of the change list in {_PAGES_LIMIT} pages", _COMPARED)
        )

    def _ask(self, offset: int) -> Any:
        return self._session.call(
            f"query changed areas of disk {self._disk.key}",
            self._vm.QueryChangedDiskAreas,
            self._snapshot,
            self._disk.key,
            offset,
            self._change_id,
        )

    def _take(self, page: Any, offset: int) -> int:
        """Check and keep one page; return where the next one starts."""
        if page is None or page.startOffset != offset or page.length <= 0:
            text = f"asked for changes from byte {offset}, the server told of others"
            raise _DoubtError(Finding("cbt.bad-page", text, _COMPARED))
        end = page.startOffset + page.length
        last = offset
        for area in page.changedArea or []:
            if area.length <= 0 or area.start < last or area.start + area.length > end:
                text = (
                    f"the changed area of {area.length} bytes at {area.start} is empty, out of "
                    f"order, or outside of its page [{offset}, {end})"
                )
                raise _DoubtError(Finding("cbt.bad-area", text, _COMPARED))
            last = area.start + area.length
            self._keep(area.start, min(last, self._disk.capacity_bytes))
        return int(end)

    def _keep(self, start: int, end: int) -> None:
        if start >= end:
            return
        if self._areas and start <= sum(self._areas[-1]) + self._gap_bytes:
            start = self._areas.pop()[0]
        self._areas.append((start, end - start))
        while len(self._areas) > _AREAS_LIMIT:
            self._gap_bytes = self._gap_bytes * 2 or _FIRST_GAP_BYTES
            areas, self._areas = self._areas, []
            for offset, length in areas:
                self._keep(offset, offset + length)


def _refused(error: VsphereError) -> FullRead:
    """The server answered with a fault: which code, and what helps."""
    if isinstance(error, FileFaultError):
        text = f"the tracking data cannot be used: {error}"
        return _reset(Finding("cbt.file-fault", text, _COMPARED))
    if isinstance(error, InvalidRequestError):
        text = f"the change id is not accepted: {error}"
        return _reset(Finding("cbt.invalid-argument", text, _COMPARED))
    if isinstance(error, UnsupportedError):
        return FullRead(finding=Finding("cbt.unsupported", f"no change list: {error}", _COMPARED))
    if isinstance(error, PrivilegeError):
        return FullRead(
            finding=Finding(
                "cbt.privilege",
                f"the change list may not be read: {error}",
                "grant VirtualMachine.Provisioning.DiskRandomRead (`host test` lists them all)",
            )
        )
    text = f"the change list failed: {error}"
    return FullRead(finding=Finding("cbt.query-failed", text, _COMPARED))


def _reset(finding: Finding) -> FullRead:
    return FullRead(finding=finding, remedy=Remedy.RESET)


_COMPARED = "none: the whole disk is read and compared"
_INACTIVE = Finding(
    "cbt.inactive",
    "changed block tracking is not active for this disk",
    "none: it is enabled as soon as the VM has no snapshot",
)
_NO_BASE = Finding(
    "cbt.no-base",
    "the last recovery point has no change id for this disk",
    "none: this backup keeps one",
    Weight.NOTE,
)
_EPOCH_CHANGED = Finding(
    "cbt.epoch-changed",
    "changed block tracking was started anew since the last backup",
    "none, unless it happens often: look for power failures, or another product resetting it",
)
_WENT_BACK = Finding(
    "cbt.went-back",
    "the change id is no newer than the last backup's: the VM was reverted to a snapshot",
    "none: the whole disk is read and compared",
)
