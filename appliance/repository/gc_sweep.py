"""Sweep: remove announced packs, after moving what is still offered in them.

Records move as they are: encrypted bytes unchanged, both CRCs and the digest's place in the header
checked. A pack in which one of them is damaged stays where it is. The order of steps stands in
`locks.py`, 11; killed between any two, the repository is whole.

Thread model: one thread, under the lock `gc`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.base.units import KIB, MIB
from appliance.repository.blob_store.contract import BlobNotFoundError
from appliance.repository.errors import CorruptError, UnreadableError
from appliance.repository.format import (
    FOOTER_ENTRY,
    INDEX_SEGMENTS,
    PACK_FRAME_BYTES,
    PACKS,
    RECORD_HEADER,
    PackKind,
    index_segment_name,
    pack_id_of,
    pack_name,
)
from appliance.repository.index import PackInfo
from appliance.repository.index_rows import as_array, digests_of
from appliance.repository.mark import Mark
from appliance.repository.pack import PackBuilder, SealedPack
from appliance.repository.record import parse_header, payload_matches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from appliance.repository.repository import Repository

_READ_MOST_BYTES = 4 * MIB
_READ_GAP_BYTES = 64 * KIB
_SMALL_PACKS = 16  # of a kind, before they are merged
_SMALL_SHARE = 8  # of the target size
_ENTRIES_PER_SEGMENT = 1 << 18  # 12 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    freed_bytes: int = 0
    dropped_packs: int = 0
    rewritten_packs: int = 0
    reasons: tuple[Reason, ...] = ()

    def __add__(self, other: Swept) -> Swept:
        return Swept(
            freed_bytes=self.freed_bytes + other.freed_bytes,
            dropped_packs=self.dropped_packs + other.dropped_packs,
            rewritten_packs=self.rewritten_packs + other.rewritten_packs,
            reasons=self.reasons + other.reasons,
        )


def sweep(
    repository: Repository,
    pack_ids: Collection[bytes],
    mark: Mark,
    forced: Collection[bytes],
    rewrite_below: float,
    context: RunContext,
) -> Swept:
    """Remove `pack_ids`, as far as `mark`, complete by now, lets them go; end the announcement.

    Raises: CancelledError, StorageFullError, StorageError: what was removed was garbage.
    """
    _rescue(repository, mark)
    listed = {pack.pack_id: pack for pack in repository.index.packs()}
    on_disk = {blob.name: blob.size_bytes for blob in repository.store.list(PACKS)}
    ours = [listed[pack_id] for pack_id in pack_ids if pack_id in listed]
    survivors = survivors_of(repository, ours)
    drop = {pack.pack_id for pack in ours if not len(survivors[pack.number])}
    drop |= {pack_id for pack_id in pack_ids if pack_id not in listed}
    drop &= {pack_id for name in on_disk if (pack_id := pack_id_of(name))} | listed.keys()
    swept = _freed(repository, drop, (), on_disk)  # first, because rewriting needs space
    small = small_packs(repository, ours)
    rewrite = [
        pack
        for pack in ours
        if pack.pack_id not in drop
        and (
            pack.pack_id in forced
            or pack.pack_id in small
            or _packed_bytes(survivors[pack.number]) < rewrite_below * pack.size_bytes
        )
    ]
    swept += rewrite_packs(repository, rewrite, survivors, on_disk, context)
    repository.index.end_announcement()
    return swept


def small_packs(repository: Repository, packs: Sequence[PackInfo]) -> set[bytes]:
    """Packs to be merged: small runs leave small packs, and thousands make everything slow."""
    limit = repository.options.pack_target_bytes // _SMALL_SHARE
    found: set[bytes] = set()
    for kind in PackKind:
        small = {p.pack_id for p in packs if p.kind is kind and p.size_bytes < limit}
        if len(small) >= _SMALL_PACKS:
            found |= small
    return found


def _packed_bytes(rows: NDArray[Any]) -> int:
    """What a pack of these records takes."""
    return int(rows["stored"].sum()) + len(rows) * FOOTER_ENTRY.size + PACK_FRAME_BYTES


def rewrite_packs(
    repository: Repository,
    packs: Sequence[PackInfo],
    survivors: dict[int, NDArray[Any]],
    on_disk: dict[str, int],
    context: RunContext,
) -> Swept:
    """Copy the surviving records of `packs` to new ones and remove the old."""
    copier = _Copier(repository)
    moved: set[bytes] = set()
    reasons = []
    context.progress.expect(sum(int(survivors[pack.number]["stored"].sum()) for pack in packs))
    try:
        for pack in packs:
            context.cancel.check()
            try:
                copier.copy(pack, survivors[pack.number])
                moved.add(pack.pack_id)
            except (CorruptError, BlobNotFoundError) as error:
                reasons.append(
                    Reason(
                        "gc.damaged-pack",
                        f"{pack_name(pack.pack_id)} is kept: {error}",
                        "run `holdfast repo check --read-data`",
                    )
                )
            context.progress.advance(int(survivors[pack.number]["stored"].sum()))
        added = copier.finish()
    except BaseException:
        copier.abort()
        raise
    swept = _freed(repository, moved, added, on_disk)
    return swept + Swept(reasons=tuple(reasons))


def _rescue(repository: Repository, mark: Mark) -> None:
    import numpy as np

    for rows in repository.index.rows(doomed=True):
        array = as_array(rows)
        live = array[mark.live.contains(array["prefix"].astype(np.uint64))]
        if len(live):
            repository.index.rescue(digests_of(live))


def survivors_of(repository: Repository, packs: Sequence[PackInfo]) -> dict[int, NDArray[Any]]:
    """Return by pack number the rows that the index offers, ordered by offset."""
    import numpy as np

    numbers = np.array([pack.number for pack in packs], dtype=np.uint32)
    found = []
    for rows in repository.index.rows():
        array = as_array(rows)
        mine = np.isin(array["number"], numbers)
        if mine.any():
            found.append(array[mine].tobytes())
    joined = as_array(b"".join(found))  # np.concatenate would change the byte order
    joined = joined[np.lexsort((joined["offset"], joined["number"]))]
    starts = np.searchsorted(joined["number"], numbers, side="left")
    ends = np.searchsorted(joined["number"], numbers, side="right")
    return {
        int(number): joined[start:end]
        for number, start, end in zip(numbers, starts, ends, strict=True)
    }


class _Copier:
    """Appends records to new packs, one open for each kind."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._open: dict[PackKind, PackBuilder] = {}
        self._sealed: list[SealedPack] = []

    def copy(self, pack: PackInfo, rows: NDArray[Any]) -> None:
        """Raises: CorruptError: a record is not as written; what was copied is harmless."""
        digests = digests_of(rows)
        name = pack_name(pack.pack_id)
        for first, end in _runs(rows):
            offset = int(rows["offset"][first])
            length = int(rows["offset"][end - 1]) + int(rows["stored"][end - 1]) - offset
            try:
                blob = self._repository.store.get_range(name, offset, length)
            except UnreadableError:
                blob = None  # it may be a gap that cannot be read
            records = []
            for number in range(first, end):
                at, stored = int(rows["offset"][number]), int(rows["stored"][number])
                record = (
                    self._repository.store.get_range(name, at, stored)
                    if blob is None
                    else blob[at - offset : at - offset + stored]
                )
                records.append(_checked(record, digests[number], name))
            self._append(pack.kind, records)

    def finish(self) -> list[SealedPack]:
        for kind in list(self._open):
            self._sealed.append(self._open[kind].seal())
            del self._open[kind]
        return self._sealed

    def abort(self) -> None:
        for builder in self._open.values():
            builder.abort()

    def _append(self, kind: PackKind, records: list[tuple[bytes, bytes]]) -> None:
        builder = self._open.get(kind)
        if builder is None:
            builder = PackBuilder(self._repository.store, self._repository.id, kind)
            self._open[kind] = builder
        builder.append(records)
        if builder.size_bytes >= self._repository.options.pack_target_bytes:
            self._sealed.append(builder.seal())
            del self._open[kind]


def _runs(rows: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Yield [first, end) of rows, ordered by offset, that one read fetches."""
    first = 0
    offsets, stored = rows["offset"].tolist(), rows["stored"].tolist()
    for number in range(1, len(rows) + 1):
        if (
            number == len(rows)
            or offsets[number] - (offsets[number - 1] + stored[number - 1]) > _READ_GAP_BYTES
            or offsets[number] + stored[number] - offsets[first] > _READ_MOST_BYTES
        ):
            yield first, number
            first = number


def _checked(record: bytes, digest: bytes, name: str) -> tuple[bytes, bytes]:
    header = parse_header(record)
    payload = record[RECORD_HEADER.size :]
    if header.digest != digest or not payload_matches(header, payload):
        raise CorruptError(f"{name}: record {digest.hex()[:16]}… is damaged")
    return record[: RECORD_HEADER.size], payload


def _freed(
    repository: Repository,
    removed: Collection[bytes],
    added: Sequence[SealedPack],
    on_disk: dict[str, int],
) -> Swept:
    if not removed and not added:
        return Swept()
    replace_packs(repository, removed, added)
    freed = sum(on_disk.get(pack_name(pack_id), 0) for pack_id in removed)
    return Swept(
        freed_bytes=freed - sum(pack.size_bytes for pack in added),
        dropped_packs=0 if added else len(removed),
        rewritten_packs=len(removed) if added else 0,
    )


def replace_packs(
    repository: Repository, removed: Collection[bytes], added: Sequence[SealedPack]
) -> None:
    """Remove packs from segments, index and store, in the order of `locks.py`, 11."""
    old, kept = _segments_with(repository, removed)
    groups = list(grouped([*kept, *added]))
    names = [index_segment_name(repository.new_run_id(), number) for number in range(len(groups))]
    repository.index.reserve_segments(names)
    for name, group in zip(names, groups, strict=True):
        repository.write_segment(name, group)
    repository.index.move(removed, added)
    for name in old:
        repository.store.delete(name)
    for pack_id in removed:
        repository.store.delete(pack_name(pack_id))
    repository.index.forget_segments(old)


def _segments_with(
    repository: Repository, removed: Collection[bytes]
) -> tuple[list[str], list[SealedPack]]:
    """Return the segments that list a removed pack, and the other packs that only they list."""
    old: list[str] = []
    kept: dict[bytes, SealedPack] = {}
    elsewhere: set[bytes] = set()
    for blob in repository.store.list(INDEX_SEGMENTS):
        try:
            packs = repository.read_segment(blob.name)
        except (CorruptError, BlobNotFoundError):
            continue  # unreadable to everybody; `check` repairs it
        if any(pack.pack_id in removed for pack in packs):
            old.append(blob.name)
            kept.update((pack.pack_id, pack) for pack in packs if pack.pack_id not in removed)
        else:
            elsewhere.update(pack.pack_id for pack in packs)
    return old, [pack for pack_id, pack in kept.items() if pack_id not in elsewhere]


def grouped(packs: Sequence[SealedPack]) -> Iterator[list[SealedPack]]:
    group: list[SealedPack] = []
    entries = 0
    for pack in packs:
        group.append(pack)
        entries += pack.entry_count
        if entries >= _ENTRIES_PER_SEGMENT:
            yield group
            group, entries = [], 0
    if group:
        yield group
