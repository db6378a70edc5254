"""What a broken run had stored of a disk, and what this run leaves for the next should it break.

    broken run's leaves -> segments that need no reading -> image writer
    image writer -> leaves of this run -> (durable) -> journal for the next

Segments in which the disk has changed since are read all the same. Thread model: one
`StoredSegments` serves all disks of its run at once; its journal has a lock of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from appliance.base.errors import StorageError
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.units import format_size
from appliance.blocks.extents import Extent, align, intersect, normalise, subtract
from appliance.jobs.backup_plan import BackupPlan
from appliance.jobs.read_plan import ReadPlan
from appliance.repository.errors import CorruptError
from appliance.repository.format import BLOCK_BYTES, EMPTY_DIGEST, SEGMENT_BYTES
from appliance.repository.image_tree import decode_leaf
from appliance.repository.repository import Repository
from appliance.repository.write_run import WriteRun
from appliance.sources.frozen import FrozenDisk

log = EventLog(__name__)

_SEGMENTS_PER_KEEP = 256  # 2 GiB looked at: what a kill makes the next run read again at most


class StoredSegments:
    def __init__(self, repository: Repository, run: WriteRun, plan: BackupPlan) -> None:
        self._repository = repository
        self._run = run
        self._plan = plan

    def of_broken_run(self, disk: FrozenDisk) -> Mapping[int, bytes]:
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

    def note(self, disk: FrozenDisk, segment: int, digest: bytes) -> None:
        """This run has looked at a segment; now and then what it has is made durable."""
        journal = self._plan.journal
        if journal is None or disk.change_id is None:
            return
        if journal.note(disk.number, segment, digest) >= _SEGMENTS_PER_KEEP:
            noted = journal.take()
            self._run.make_durable()
            self._journalled(noted)

    def keep_unchanged(
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


def to_read(
    disk: FrozenDisk, plan: ReadPlan, stored: Mapping[int, bytes]
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


def covered_bytes(stored: Mapping[int, bytes], size_bytes: int) -> int:
    return sum(min(SEGMENT_BYTES, size_bytes - segment * SEGMENT_BYTES) for segment in stored)


def resumed_reason(resumed_bytes: int) -> Reason:
    return Reason(
        "resume.continued",
        f"an earlier run broke off; {format_size(resumed_bytes)} that it had stored were not read "
        "again, except where they have changed since",
        "none",
        warning=False,
    )
