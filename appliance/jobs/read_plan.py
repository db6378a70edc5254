"""How one disk of a run is read: only what changed, all of it compared, or all of it anew.

The cheapest way that is safe: changed extents over a sound parent; else all of it, comparing with
the parent's chunks; else all of it with no parent. The plan says why not a better one.

Thread model: values and functions without state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from appliance.base.reasons import Reason
from appliance.base.units import format_size
from appliance.blocks.extents import Extent, normalise
from appliance.repository.errors import CorruptError
from appliance.repository.manifest import DiskEntry, Manifest
from appliance.sources.frozen import FrozenDisk

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
class ReadPlan:
    """Over what to write, and what to read for it."""

    root: bytes | None  # of the parent's disk
    changed: Sequence[Extent] | None  # since the parent; None: all of it
    reasons: tuple[Reason, ...]

    @property
    def mode(self) -> ReadMode:
        if self.root is None:
            return ReadMode.FULL
        return ReadMode.COMPARED if self.changed is None else ReadMode.CHANGED

    def compared(self, *why: Reason) -> ReadPlan:
        """All of the disk, over the same parent."""
        return replace(self, changed=None, reasons=(*self.reasons, *why))

    def without_parent(self, damage: CorruptError) -> ReadPlan:
        """All of the disk anew: the parent cannot be read."""
        return ReadPlan(root=None, changed=None, reasons=(*self.reasons, _damaged_parent(damage)))


def plan_read(
    disk: FrozenDisk, parent: Manifest | None, *, full: bool, quarantined: bool
) -> ReadPlan:
    """`full`: it was asked for; `quarantined`: chunks of the parent are damaged."""
    old = parent.disk(disk.number) if parent else None
    refusal = _parent_refusal(disk, parent, old, full=full, quarantined=quarantined)
    if refusal is not None or old is None:
        return ReadPlan(root=None, changed=None, reasons=(*disk.reasons, refusal or NEW_DISK))
    changed = _with_growth(disk, old)
    reasons = disk.reasons
    if changed is None and not disk.reasons:
        reasons += (NO_CHANGE_LIST,)
    return ReadPlan(root=old.root, changed=changed, reasons=reasons)


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
