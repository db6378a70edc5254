"""From damaged records to quarantine: notes first, then the index, so that no crash loses a note.

A damaged record is quarantined only if the index still points to it: one that nobody uses (healed,
or garbage) is merely counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from appliance.repository.manifest import Manifest
from appliance.repository.mark import PrefixSet
from appliance.repository.pack_check import BadRecord, require_storage
from appliance.repository.quarantine import AffectedDisk, DamagedRecord, QuarantineNote
from appliance.repository.tree_check import Hit, find_hits

if TYPE_CHECKING:
    from appliance.repository.repository import Repository

_EXTENTS_LISTED = 64


def quarantine_damage(
    repository: Repository,
    check_id: str,
    listed_at: datetime,
    manifests: Sequence[Manifest],
    bad: Sequence[BadRecord],
    suspected: PrefixSet,
) -> tuple[list[BadRecord], list[bytes]]:
    """Quarantine what is used of `bad`, note what is missing of what is `suspected` to be.

    Raises StorageError, with nothing in quarantine, where the storage is away by now.

    Returns: what of `bad` nobody uses; the digests that are missing.
    """
    used: list[BadRecord] = []
    dead: list[BadRecord] = []
    places = repository.index.find_many([record.digest for record in bad])
    for record in bad:
        place = places.get(record.digest)
        here = place is not None and (place.pack_id, place.offset) == record[1:3]
        (used if here else dead).append(record)
    if not used and not len(suspected.array()):
        return dead, []
    require_storage(repository)
    digests = {record.digest for record in used}
    hits = find_hits(repository, manifests, digests, suspected)
    by_pack: dict[bytes | None, list[DamagedRecord]] = defaultdict(list)
    for record in used:
        by_pack[record.pack_id].append(
            DamagedRecord(
                digest_hex=record.digest.hex(), offset=record.offset, reason=record.reason
            )
        )
    missing = [  # looked up once more: garbage collection may have moved it under our eyes
        digest
        for digest in sorted({hit.digest for hit in hits} - digests)
        if repository.index.find(digest) is None and not repository.index.is_quarantined(digest)
    ]
    for digest in missing:
        by_pack[None].append(DamagedRecord(digest_hex=digest.hex(), reason="missing"))
    for pack_id, records in by_pack.items():
        ours = {record.digest for record in records}
        repository.quarantine.add(
            QuarantineNote(
                check_id=check_id,
                listed_at=listed_at,
                found_at=repository.clock.now(),
                pack_id_hex=None if pack_id is None else pack_id.hex(),
                records=tuple(records),
                affected=tuple(_affected(hit for hit in hits if hit.digest in ours)),
            )
        )
    repository.index.quarantine((record.digest, record.pack_id) for record in used)
    repository.index.hold_bad(missing)
    return dead, missing


def _affected(hits: Iterable[Hit]) -> list[AffectedDisk]:
    by_disk: dict[tuple[str, str, int], set[tuple[int, int]]] = defaultdict(set)
    for hit in hits:
        by_disk[hit.point_id, hit.vm, hit.disk].add((hit.offset, hit.length))
    return [
        AffectedDisk(
            point_id=point_id,
            vm=vm,
            disk=disk,
            extents=tuple(sorted(extents)[:_EXTENTS_LISTED]),
            more_extents=max(len(extents) - _EXTENTS_LISTED, 0),
        )
        for (point_id, vm, disk), extents in sorted(by_disk.items())
    ]
