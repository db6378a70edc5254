"""The audit of changed block tracking: blocks reported unchanged are read again and compared.

Data path: before a disk's changed extents are transferred, `audit` reads a random share of what
the source says has not changed, from the same frozen disk, and compares it with what the parent
point holds. A difference means that the change list missed something, now or in an earlier run:
the disk is then read whole and compared, which heals it, and its change id is not believed again.

Places are units of 64 KiB picked by a seed that is reported, so that an alarm can be repeated.

Thread model: one call belongs to one thread.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from appliance.base.errors import UsageError
from appliance.base.run_context import CancelToken
from appliance.base.units import KIB
from appliance.blocks.device import BlockReader
from appliance.blocks.extents import Extent, align, normalise, subtract, total_bytes

UNIT_BYTES = 64 * KIB
DEFAULT_PERCENT = 1.0
_MOST_UNITS = 1 << 16  # 4 GiB read again per disk and run, also of a very large disk


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPolicy:
    """Percent of the unchanged part to read again; 0 turns the audit off."""

    percent: float = DEFAULT_PERCENT
    seed: int = field(default_factory=lambda: random.SystemRandom().getrandbits(32))

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 100:
            raise UsageError(f"{self.percent} percent of the unchanged blocks cannot be audited")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    seed: int
    read_bytes: int
    mismatch: Extent | None  # the first place that differs


def audit(
    frozen: BlockReader,
    parent: BlockReader,
    changed: Sequence[Extent],
    policy: AuditPolicy,
    cancel: CancelToken,
    *,
    disk_number: int,
) -> AuditResult:
    """Compare a share of what `changed` leaves out; stop at the first difference.

    Raises: CancelledError, SourceError, CorruptError (of the parent), StorageError.
    """
    read_bytes = 0
    for extent in _sample(parent.size_bytes, changed, policy, disk_number):
        cancel.check()
        read_bytes += extent.length
        now = frozen.read_at(extent.offset, extent.length)
        if now != parent.read_at(extent.offset, extent.length):
            return AuditResult(seed=policy.seed, read_bytes=read_bytes, mismatch=extent)
    return AuditResult(seed=policy.seed, read_bytes=read_bytes, mismatch=None)


def _sample(
    size_bytes: int, changed: Sequence[Extent], policy: AuditPolicy, disk_number: int
) -> list[Extent]:
    """Pick whole units that `changed` does not touch, ascending, neighbours joined."""
    taken = align(changed, UNIT_BYTES, size_bytes)
    unchanged = subtract([Extent(0, size_bytes)] if size_bytes else [], taken)
    units = sum(-(-extent.length // UNIT_BYTES) for extent in unchanged)
    if not units or not policy.percent:
        return []
    count = min(max(round(units * policy.percent / 100), 1), _MOST_UNITS, units)
    source = random.Random(f"{policy.seed}/{disk_number}")
    picked = sorted(source.sample(range(units), count))
    places: list[Extent] = []
    passed = 0
    position = 0
    for extent in unchanged:
        extent_units = -(-extent.length // UNIT_BYTES)
        while position < len(picked) and picked[position] < passed + extent_units:
            offset = extent.offset + (picked[position] - passed) * UNIT_BYTES
            places.append(Extent(offset, min(UNIT_BYTES, extent.end - offset)))
            position += 1
        passed += extent_units
    assert total_bytes(places) <= size_bytes
    return [piece for extent in normalise(places) for piece in _pieces(extent)]


def _pieces(extent: Extent) -> list[Extent]:
    """Cut what was joined into reads of at most 16 units."""
    most = 16 * UNIT_BYTES
    return [
        Extent(offset, min(most, extent.end - offset))
        for offset in range(extent.offset, extent.end, most)
    ]
