"""Keeps the catalog's list of recovery points (`catalog/points.py`) up with the repository.

What this process commits or forgets is written down at once; what others did is found by comparing
ids: at the start, and then so seldom that it costs a few hundredths of the time. A manifest is read
once in the life of a catalog. A lost catalog loses nothing: the book is written anew.

Thread model: any thread; one of them compares, the others wait. The watch is one thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from appliance.base.errors import ApplianceError
from appliance.base.ids import RecoveryPointId
from appliance.base.log import EventLog
from appliance.base.periodic_task import PeriodicTask
from appliance.catalog.catalog import Catalog
from appliance.catalog.points import PointRow
from appliance.repository.errors import CorruptError, PointNotFoundError
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.sources.vm_identity import identity_of

log = EventLog(__name__)

LOOK_EVERY_S = 3.0
_SHARE = 50  # looking costs at most one part in so many
_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class BookChange:
    added: int
    removed: int
    damaged: int  # cannot be read; `repo check` names them


def point_row(manifest: Manifest) -> PointRow:
    identity = identity_of(manifest.hardware)
    return PointRow(
        point_id=manifest.point_id,
        vm=manifest.vm,
        vm_key=identity.key if identity else None,
        created_at=manifest.created_at,
        consistency=manifest.consistency,
        parent=manifest.parent,
        source=manifest.source,
        disk_count=len(manifest.disks),
        size_bytes=manifest.size_bytes,
        stored_bytes=sum(disk.stored_bytes for disk in manifest.disks),
    )


class PointBook:
    def __init__(self, catalog: Catalog, repository: Repository) -> None:
        self._catalog = catalog
        self._repository = repository
        self._lock = threading.Lock()
        self._watch = PeriodicTask("point-book", self._look, every_s=LOOK_EVERY_S)
        repository.points.add_listener(self)

    def start(self) -> None:
        self._watch.start()

    def stop(self) -> None:
        """Idempotent."""
        self._watch.stop()

    # Told by the repository, on the thread that commits or forgets

    def committed(self, manifest: Manifest) -> None:
        """The point is there whatever happens here; the next look would find it too."""
        try:
            self._catalog.points.add([point_row(manifest)])
        except ApplianceError as error:
            log.warning("point not noted", point=manifest.point_id, error=error)

    def forgotten(self, point_id: RecoveryPointId) -> None:
        try:
            self._catalog.points.remove([point_id])
        except ApplianceError as error:
            log.warning("forgotten point not noted", point=point_id, error=error)

    # Compared

    def refresh(self) -> BookChange:
        """Take in what other processes did. Raises: StorageError, CatalogError."""
        with self._lock:
            gone: list[str] = []
            new: list[str] = []
            stored = self._repository.points.ids()
            for point_id, is_stored in _differences(stored, self._catalog.points.ids()):
                (new if is_stored else gone).append(point_id)
            added = damaged = 0
            for batch in _batches(new):
                rows, unread = self._read(batch)
                self._catalog.points.add(rows)
                added, damaged = added + len(rows), damaged + unread
                if self._watch.stopping:
                    break
            # forgotten for certain: one that was committed after the listing stays
            gone = [each for each in gone if not self._repository.points.exists(each)]
            for batch in _batches(gone):
                self._catalog.points.remove(batch)
        return BookChange(added=added, removed=len(gone), damaged=damaged)

    def _read(self, point_ids: Iterable[str]) -> tuple[list[PointRow], int]:
        rows, damaged = [], 0
        for point_id in point_ids:
            try:
                rows.append(point_row(self._repository.points.get(point_id)))
            except PointNotFoundError:
                continue  # forgotten since the listing
            except CorruptError:
                damaged += 1
        return rows, damaged

    def _look(self) -> float:
        clock = self._catalog.clock
        begun_s = clock.monotonic_s()
        try:
            change = self.refresh()
            if change.added or change.removed:
                log.info("points taken in", added=change.added, removed=change.removed)
        except ApplianceError as error:  # here, because a look that fails slowly costs as much
            log.warning("points cannot be compared", error=error)
        return max(LOOK_EVERY_S, _SHARE * (clock.monotonic_s() - begun_s))


def _differences(stored: Iterable[str], known: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """What is on one side only, and whether it is stored; both in order."""
    left, right = iter(stored), iter(known)
    mine, other = next(left, None), next(right, None)
    while mine is not None or other is not None:
        if mine == other:
            mine, other = next(left, None), next(right, None)
        elif other is None or (mine is not None and mine < other):
            assert mine is not None
            yield mine, True
            mine = next(left, None)
        else:
            yield other, False
            other = next(right, None)


def _batches(items: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(items)
    while batch := list(islice(rest, _AT_ONCE)):
        yield batch
