"""Garbage collection: mark, announce, wait for older writers, sweep.

`plan_gc` says what could be removed and changes nothing; `collect_garbage` does it. `locks.py`
holds the argument why nothing that is needed can be lost; `gc_sweep.py` removes. A collection that
finds older backups at work ends with its announcement standing; the next one sweeps it.

Thread model: one thread, one collection at a time per repository (lock `gc`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.base.units import format_size
from appliance.repository.errors import CorruptError
from appliance.repository.format import (
    FOOTER_ENTRY,
    INDEX_SEGMENTS,
    PACK_FRAME_BYTES,
    PACKS,
    pack_id_of,
)
from appliance.repository.gc_quarantine import quarantined_packs, tidy
from appliance.repository.gc_sweep import Swept, small_packs, sweep
from appliance.repository.index import Announcement, PackInfo
from appliance.repository.index_rows import digests_of
from appliance.repository.locks import LiveSession, SessionDetails, SessionKind
from appliance.repository.mark import Mark, check_complete, index_arrays, roots_of_now

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from appliance.repository.repository import Repository

_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class GcOptions:
    rewrite_below: float = 0.7  # live share of a pack below which its live records are moved
    wait_s: float = 0.0  # how long to wait for backups that began before the announcement


@dataclass(frozen=True, slots=True, kw_only=True)
class PackPlan:
    pack_id: bytes
    size_bytes: int
    live_bytes: int  # of a pack that held only what is live of it

    @property
    def live_share(self) -> float:
        return self.live_bytes / self.size_bytes if self.size_bytes else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "pack": self.pack_id.hex(),
            "size_bytes": self.size_bytes,
            "live_bytes": self.live_bytes,
            "live_share": round(self.live_share, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPlan:
    drop: tuple[PackPlan, ...]  # nothing in them is needed
    rewrite: tuple[PackPlan, ...]  # little in them is needed, or they are small and many
    unlisted: tuple[PackPlan, ...]  # of killed runs: in no index segment
    total_bytes: int  # of all packs
    live_bytes: int
    reasons: tuple[Reason, ...] = ()

    @property
    def packs(self) -> tuple[PackPlan, ...]:
        return (*self.drop, *self.rewrite, *self.unlisted)

    @property
    def freed_bytes(self) -> int:
        return sum(pack.size_bytes - pack.live_bytes for pack in self.packs)

    def as_json(self) -> dict[str, Any]:
        return {
            "drop": [pack.as_json() for pack in self.drop],
            "rewrite": [pack.as_json() for pack in self.rewrite],
            "unlisted": [pack.as_json() for pack in self.unlisted],
            "total_bytes": self.total_bytes,
            "live_bytes": self.live_bytes,
            "freed_bytes": self.freed_bytes,
            "reasons": [reason.as_json() for reason in self.reasons],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GcOutcome:
    plan: GcPlan | None  # None: an earlier announcement still waits for writers
    freed_bytes: int
    pending_bytes: int
    dropped_packs: int
    rewritten_packs: int
    reasons: tuple[Reason, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "plan": None if self.plan is None else self.plan.as_json(),
            "freed_bytes": self.freed_bytes,
            "pending_bytes": self.pending_bytes,
            "dropped_packs": self.dropped_packs,
            "rewritten_packs": self.rewritten_packs,
            "reasons": [reason.as_json() for reason in self.reasons],
        }


def plan_gc(
    repository: Repository,
    options: GcOptions | None = None,
    context: RunContext | None = None,
) -> GcPlan:
    """Say what a collection would remove now; changes nothing.

    Raises: GcRefusedError, CancelledError, StorageError.
    """
    plan, _ = _plan(repository, options or GcOptions(), context or RunContext.quiet())
    return plan


def collect_garbage(
    repository: Repository,
    options: GcOptions | None = None,
    context: RunContext | None = None,
) -> GcOutcome:
    """Free what no recovery point, reader or running backup needs.

    Crash guarantee: killed anywhere, every recovery point is whole, and the next collection
    removes what is left over.

    Raises:
        LockedError: another collection or a rebuild is at work.
        GcRefusedError: it cannot be told what is needed; nothing was removed.
        CancelledError, StorageFullError, StorageError: what was removed until then was garbage.
    """
    options, context = options or GcOptions(), context or RunContext.quiet()
    details = SessionDetails(purpose="garbage collection")
    with repository.locks.register(SessionKind.GC, repository.new_run_id(), details=details):
        repository.store.discard_unfinished(older_than_s=0)  # first: all else may need the room
        repository.index.check_current()
        repository.take_in_segments()
        swept = Swept()
        left_over = repository.index.announcement()
        if left_over is not None:
            waiting = _wait(repository, left_over.generation, options, context)
            if waiting:
                return _outcome(repository, None, swept, left_over, waiting)
            mark = Mark(repository, context.cancel)
            swept = _sweep(repository, left_over, mark, options, context)
        plan, mark = _plan(repository, options, context)
        if plan.packs:
            announced = _announce(repository, plan, mark)
            waiting = _wait(repository, announced.generation, options, context)
            if waiting:
                return _outcome(repository, plan, swept, announced, waiting)
            swept += _sweep(repository, announced, mark, options, context)
        tidy(repository, mark)
        return _outcome(repository, plan, swept, None, [])


def _plan(repository: Repository, options: GcOptions, context: RunContext) -> tuple[GcPlan, Mark]:
    on_disk = {  # first, so that what comes later is not taken for a killed run's
        pack_id: blob.size_bytes
        for blob in repository.store.list(PACKS)
        if (pack_id := pack_id_of(blob.name)) is not None
    }
    held_back, reasons = _held_back(repository)
    mark = Mark(repository, context.cancel)
    mark.add(roots_of_now(repository))
    check_complete(repository, mark)
    packs = repository.index.packs()
    live_of = live_bytes(repository, mark, packs)
    forced, kept = quarantined_packs(repository, mark)
    forced |= small_packs(repository, [p for p in packs if p.pack_id not in held_back])
    drop, rewrite = [], []
    for pack in packs:
        planned = _pack_plan(pack, int(live_of[pack.number]))
        if pack.pack_id in held_back or pack.pack_id in kept:
            continue
        if not planned.live_bytes:
            drop.append(planned)
        elif planned.live_share < options.rewrite_below or pack.pack_id in forced:
            rewrite.append(planned)
    known = {pack.pack_id for pack in packs}
    unlisted = () if reasons else _unlisted(on_disk, known)
    plan = GcPlan(
        drop=tuple(drop),
        rewrite=tuple(rewrite),
        unlisted=unlisted,
        total_bytes=sum(on_disk.values()),
        live_bytes=int(live_of.sum()),
        reasons=tuple(reasons),
    )
    return plan, mark


def live_bytes(repository: Repository, mark: Mark, packs: list[PackInfo]) -> NDArray[Any]:
    """Return by pack number what a pack of only the live records would take, 0 without any."""
    import numpy as np

    live_of = np.zeros(max((pack.number for pack in packs), default=0) + 1, dtype=np.uint64)
    for rows in index_arrays(repository):
        live = rows[mark.live.contains(rows["prefix"].astype(np.uint64))]
        live = live[live["number"] < len(live_of)]  # of packs that came since
        np.add.at(live_of, live["number"], live["stored"].astype(np.uint64) + FOOTER_ENTRY.size)
    live_of[live_of > 0] += PACK_FRAME_BYTES
    return live_of


def _pack_plan(pack: PackInfo, live_bytes: int) -> PackPlan:
    return PackPlan(pack_id=pack.pack_id, size_bytes=pack.size_bytes, live_bytes=live_bytes)


def _unlisted(on_disk: dict[bytes, int], known: set[bytes]) -> tuple[PackPlan, ...]:
    return tuple(
        PackPlan(pack_id=pack_id, size_bytes=size_bytes, live_bytes=0)
        for pack_id, size_bytes in sorted(on_disk.items())
        if pack_id not in known
    )


def _held_back(repository: Repository) -> tuple[set[bytes], list[Reason]]:
    """Packs that live backups have published; and why unlisted packs must stay, if they must."""
    running = {session.run_id for session in repository.locks.live(SessionKind.BACKUP)}
    known = repository.index.segments()
    packs: set[bytes] = set()
    reasons = []
    for blob in repository.store.list(INDEX_SEGMENTS):
        try:
            ours = any(blob.name.startswith(f"{INDEX_SEGMENTS}/{run_id}-") for run_id in running)
            if ours or blob.name not in known:  # which a backup may have written just now
                listed = repository.read_segment(blob.name)
                packs.update(pack.pack_id for pack in listed if ours)
        except CorruptError:
            reasons.append(
                Reason(
                    "gc.damaged-segment",
                    f"{blob.name} cannot be read, so packs that no segment lists are kept",
                    "run `holdfast repo check`, which repairs it",
                )
            )
    return packs, reasons


def _announce(repository: Repository, plan: GcPlan, mark: Mark) -> Announcement:
    ids = {pack.pack_id for pack in plan.packs}
    numbers = [pack.number for pack in repository.index.packs() if pack.pack_id in ids]
    doomed = _dead_digests(repository, mark, numbers)
    generation = repository.index.announce(doomed, sorted(ids))
    return Announcement(generation, tuple(sorted(ids)))


def _dead_digests(repository: Repository, mark: Mark, numbers: list[int]) -> Iterator[bytes]:
    import numpy as np

    for rows in index_arrays(repository):
        mine = rows[np.isin(rows["number"], numbers)]
        yield from digests_of(mine[~mark.live.contains(mine["prefix"].astype(np.uint64))])


def _wait(
    repository: Repository, generation: int, options: GcOptions, context: RunContext
) -> list[LiveSession]:
    """Return the older backups that are still alive when the time is up."""
    deadline_s = time.monotonic() + options.wait_s
    while True:
        waiting = repository.locks.older_backups(generation)
        if not waiting or time.monotonic() >= deadline_s:
            return waiting
        context.cancel.check()
        time.sleep(_POLL_S)


def _sweep(
    repository: Repository,
    announced: Announcement,
    mark: Mark,
    options: GcOptions,
    context: RunContext,
) -> Swept:
    repository.take_in_segments()  # of writers that were waited for
    mark.add(roots_of_now(repository))
    check_complete(repository, mark)
    forced, kept = quarantined_packs(repository, mark)
    packs = [pack_id for pack_id in announced.pack_ids if pack_id not in kept]
    return sweep(repository, packs, mark, forced, options.rewrite_below, context)


def _outcome(
    repository: Repository,
    plan: GcPlan | None,
    swept: Swept,
    pending: Announcement | None,
    waiting: list[LiveSession],
) -> GcOutcome:
    reasons = [*(plan.reasons if plan else ()), *swept.reasons]
    pending_bytes = 0
    if pending is not None:
        sizes = {pack.pack_id: pack.size_bytes for pack in repository.index.packs()}
        pending_bytes = (
            plan.freed_bytes
            if plan is not None
            else sum(sizes.get(pack_id, 0) for pack_id in pending.pack_ids)
        )
        names = ", ".join(map(str, waiting))
        reasons.append(
            Reason(
                "gc.waiting-for-writers",
                f"{format_size(pending_bytes)} may still be referred to by: {names}",
                "run `holdfast repo gc` again when they have ended",
                warning=False,
            )
        )
    return GcOutcome(
        plan=plan,
        freed_bytes=swept.freed_bytes,
        pending_bytes=pending_bytes,
        dropped_packs=swept.dropped_packs,
        rewritten_packs=swept.rewritten_packs,
        reasons=tuple(reasons),
    )
