"""Check: is every recovery point whole, and if not, which are affected, and where?

Structure: configuration, key slots, manifests, tree nodes, index segments, packs and the index
agree. With `read_data`, every record of every pack is read and proven. Damage never ends a check:
damaged records are quarantined, index segments, pack headers and footers repaired from the records
where the lock for it can be had, and the report names what it found and the points it touches.

Beside backups, readers and GC: the points that were listed are pinned; newer ones are no concern.

Thread model: `check` is one call; packs are read on `workers` threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from appliance.base.errors import ApplianceError
from appliance.base.run_context import RunContext
from appliance.repository.blob_store.contract import BlobNotFoundError
from appliance.repository.check_damage import quarantine_damage
from appliance.repository.errors import CorruptError, UnreadableError
from appliance.repository.format import INDEX_SEGMENTS, KEY_SLOTS, point_name
from appliance.repository.index_rows import as_array
from appliance.repository.key_slots import SLOT_LIMIT_BYTES, KeySlot
from appliance.repository.manifest import Manifest
from appliance.repository.mark import PrefixSet, known_prefixes
from appliance.repository.pack import SealedPack
from appliance.repository.pack_check import BadRecord, PackResult, check_pack, require_storage
from appliance.repository.quarantine import AffectedDisk
from appliance.repository.repair import repair_packs, repair_segments
from appliance.repository.tree_check import TreeCheck

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from appliance.repository.repository import Repository


class DamageKind(StrEnum):
    RECOVERY_POINT = "recovery-point"
    RECORD = "record"
    MISSING = "missing"
    PACK = "pack"
    INDEX_SEGMENT = "index-segment"
    INDEX = "index"
    KEY_SLOT = "key-slot"
    QUARANTINE_NOTE = "quarantine-note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    kind: DamageKind
    name: str  # of the blob, or the digest of what is missing
    reason: str
    repaired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    check_id: str
    read_data: bool
    point_count: int
    pack_count: int
    node_count: int
    record_count: int
    read_bytes: int
    seconds: float
    damages: tuple[Damage, ...]
    affected: tuple[AffectedDisk, ...]  # of all standing quarantine notes
    dead_damaged_records: int  # damaged, but nobody uses them; GC removes them

    @property
    def clean(self) -> bool:
        return not self.damages and not self.affected

    @property
    def affected_points(self) -> set[str]:
        return {disk.point_id for disk in self.affected}

    def as_json(self) -> dict[str, Any]:
        fields = (
            "check_id",
            "read_data",
            "point_count",
            "pack_count",
            "node_count",
            "record_count",
            "read_bytes",
            "seconds",
            "dead_damaged_records",
        )
        return {name: getattr(self, name) for name in fields} | {
            "clean": self.clean,
            "damages": [asdict(damage) | {"kind": str(damage.kind)} for damage in self.damages],
            "affected": [disk.model_dump(mode="json") for disk in self.affected],
        }


def check(
    repository: Repository,
    *,
    read_data: bool = False,
    context: RunContext | None = None,
    workers: int | None = None,
) -> CheckReport:
    """Check the whole repository; see the module.

    Raises: CancelledError, StorageFullError, StorageError; never for damage.
    """
    return _Check(
        repository, read_data, context or RunContext.quiet(), workers or repository.options.workers
    ).run()


class _Check:
    def __init__(
        self, repository: Repository, read_data: bool, context: RunContext, workers: int
    ) -> None:
        self._repository = repository
        self._read_data = read_data
        self._context = context
        self._workers = workers
        self._damages: list[Damage] = []
        self._bad: dict[tuple[bytes, bytes], BadRecord] = {}

    def run(self) -> CheckReport:
        repository = self._repository
        started_s = time.perf_counter()
        check_id = repository.new_run_id()
        listed_at = repository.clock.now()
        manifests = self._manifests()
        roots = {disk.root_hex for manifest in manifests for disk in manifest.disks}
        with repository.reading(tuple(sorted(roots)), "check"):
            manifests = [m for m in manifests if repository.points.exists(m.point_id)]
            self._key_slots()
            listed = self._segments()
            results = self._packs(listed)
            trees = TreeCheck(repository, self._context.cancel)
            trees.walk(manifests)
            self._bad_nodes(trees)
            bad = list(self._bad.values())
            dead, missing = quarantine_damage(
                repository, check_id, listed_at, manifests, bad, self._suspected(trees)
            )
            self._report_records(dead, missing)
            self._repair_packs(results)
            affected = self._standing()
        return CheckReport(
            check_id=check_id,
            read_data=self._read_data,
            point_count=len(manifests),
            pack_count=len(results),
            node_count=trees.nodes,
            record_count=sum(result.records for result in results),
            read_bytes=sum(result.read_bytes for result in results),
            seconds=round(time.perf_counter() - started_s, 3),
            damages=tuple(self._damages),
            affected=tuple(affected),
            dead_damaged_records=len(dead),
        )

    def _found(
        self, kind: DamageKind, name: str, reason: object, *, repaired: bool = False
    ) -> None:
        self._damages.append(
            Damage(kind=kind, name=name, reason=str(reason)[:500], repaired=repaired)
        )

    def _manifests(self) -> list[Manifest]:
        self._repository.points.drop_cache()
        manifests, damaged = self._repository.points.readable()
        for point_id, error in damaged.items():
            self._found(DamageKind.RECOVERY_POINT, point_name(point_id), error)
        return manifests

    def _key_slots(self) -> None:
        repository = self._repository
        for blob in repository.store.list(KEY_SLOTS):
            try:
                raw = repository.store.get(blob.name, limit_bytes=SLOT_LIMIT_BYTES)
                KeySlot.parse(raw, repository.config.repository_id)
            except BlobNotFoundError:
                continue  # the passphrase is being changed
            except ApplianceError as error:
                self._found(DamageKind.KEY_SLOT, blob.name, error)

    def _segments(self) -> dict[bytes, SealedPack]:
        """Return what the readable segments list; repair the others."""
        repository = self._repository
        repository.take_in_segments()
        listed: dict[bytes, SealedPack] = {}
        damaged: dict[str, CorruptError] = {}
        for blob in repository.store.list(INDEX_SEGMENTS):
            try:
                for pack in self._segment(blob.name):
                    listed[pack.pack_id] = pack
            except BlobNotFoundError:
                continue
            except CorruptError as error:
                damaged[blob.name] = error
        if damaged:
            repaired = repair_segments(repository, list(damaged))
            for name, reason in damaged.items():
                self._found(DamageKind.INDEX_SEGMENT, name, reason, repaired=repaired)
        return listed

    def _segment(self, name: str) -> list[SealedPack]:
        try:
            return self._repository.read_segment(name)
        except UnreadableError:
            require_storage(self._repository)
            return self._repository.read_segment(name)

    def _packs(self, listed: dict[bytes, SealedPack]) -> list[PackResult]:
        repository = self._repository
        packs = repository.index.packs()
        rows_of = _rows_by_pack(repository)
        known = {pack.number for pack in repository.index.packs()}  # again: after the rows
        for number in sorted(rows_of.keys() - known - {pack.number for pack in packs}):
            entries = len(rows_of[number])
            self._found(DamageKind.INDEX, f"pack {number}", f"unknown, with {entries} entries")
        nothing = as_array(b"")
        if self._read_data:
            self._context.progress.expect(sum(pack.size_bytes for pack in packs))
        results = []
        with ThreadPoolExecutor(self._workers, thread_name_prefix="check") as pool:
            jobs = [
                pool.submit(
                    check_pack,
                    repository,
                    pack,
                    rows_of.get(pack.number, nothing),
                    listed.get(pack.pack_id),
                    read_data=self._read_data,
                )
                for pack in packs
            ]
            try:
                for job in jobs:
                    self._context.cancel.check()
                    result = job.result()
                    if result is None:
                        continue
                    results.append(result)
                    self._add_bad(result.bad)
                    self._context.progress.advance(result.read_bytes)
                    if result.index:
                        self._found(DamageKind.INDEX, result.pack.pack_id.hex(), result.index)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return results

    def _add_bad(self, records: Iterable[BadRecord]) -> None:
        for record in records:
            self._bad.setdefault((record.digest, record.pack_id), record)

    def _bad_nodes(self, trees: TreeCheck) -> None:
        for digest, reason in trees.bad_nodes.items():
            place = self._repository.index.find(digest)
            if place is not None:
                self._add_bad([BadRecord(digest, place.pack_id, place.offset, reason)])

    def _suspected(self, trees: TreeCheck) -> PrefixSet:
        """Return the prefixes of what points need and neither index nor quarantine knows."""
        missing = PrefixSet()
        missing.add(trees.needed.missing_from(known_prefixes(self._repository)))
        return missing

    def _report_records(self, dead: Sequence[BadRecord], missing: Sequence[bytes]) -> None:
        unused = set(dead)
        for record in self._bad.values():
            if record not in unused:
                where = f"{record.digest.hex()} in pack {record.pack_id.hex()} at {record.offset}"
                self._found(DamageKind.RECORD, where, record.reason)
        for digest in missing[:100]:
            self._found(DamageKind.MISSING, digest.hex(), "is not in the index")

    def _repair_packs(self, results: Sequence[PackResult]) -> None:
        broken = [result for result in results if result.structure]
        if not broken:
            return
        repaired = repair_packs(self._repository, [result.pack for result in broken])
        for result in broken:
            self._found(
                DamageKind.PACK,
                result.pack.pack_id.hex(),
                result.structure,
                repaired=result.pack.pack_id in repaired,
            )

    def _standing(self) -> list[AffectedDisk]:
        affected = []
        for standing in self._repository.quarantine.standing():
            if standing.note is None:
                if standing.missing:
                    self._found(DamageKind.QUARANTINE_NOTE, standing.name, "cannot be read")
                else:
                    self._found(
                        DamageKind.QUARANTINE_NOTE,
                        standing.name,
                        "could not be read; nothing is in quarantine any more, so it was removed",
                        repaired=True,
                    )
                    self._repository.quarantine.remove(standing)
            elif standing.missing:
                affected += [
                    disk
                    for disk in standing.note.affected
                    if self._repository.points.exists(disk.point_id)
                ]
        return affected


def _rows_by_pack(repository: Repository) -> dict[int, NDArray[Any]]:
    """The index by pack, ordered by offset: 48 bytes for each entry, twice that while sorting."""
    import numpy as np

    joined = as_array(b"".join(repository.index.rows()))
    joined = joined[np.lexsort((joined["offset"], joined["number"]))]
    numbers, starts = np.unique(joined["number"], return_index=True)
    ends = [*starts[1:], len(joined)][: len(starts)]
    return {
        int(number): joined[start:end]
        for number, start, end in zip(numbers, starts, ends, strict=True)
    }
