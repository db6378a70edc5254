"""Rebuild the local index from what the repository says of itself.

Index segments come first: they are authenticated and few. Packs that none of them lists stay out,
as crash leftovers, unless a recovery point needs them, or `from_packs` asks for every footer to be
read. Where a footer is damaged the records themselves are listed. Places in quarantine stay out.

Nothing else that writes may run (lock `index`); readers see the old index until the new one is
complete, except where the old one could not be opened at all.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.base.clock import Clock, SystemClock
from appliance.base.errors import StorageError
from appliance.base.ids import new_run_id
from appliance.base.secret import Secret
from appliance.repository.blob_store.contract import BlobNotFoundError
from appliance.repository.errors import CorruptError, RepositoryNotFoundError
from appliance.repository.format import CONFIG_NAME, INDEX_SEGMENTS, PACKS
from appliance.repository.index_file import survives
from appliance.repository.locks import SessionDetails, SessionKind, SessionLocks
from appliance.repository.mark import GcRefusedError, Mark, check_complete, roots_of_now
from appliance.repository.pack import SealedPack
from appliance.repository.repair import publish_unlisted, repair_segments_locked
from appliance.repository.repository import Repository, RepositoryOptions

INDEX_FOLDER = "lmdb"


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildReport:
    entry_count: int
    pack_count: int
    segment_count: int
    replaced: bool  # the old index could not be opened
    damaged_segments: tuple[str, ...]  # made anew from their packs
    missing_packs: tuple[str, ...]  # listed, but not there
    added_packs: int  # that no segment listed
    complete: bool  # everything that recovery points need can be found
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def rebuild_index(
    path: Path,
    *,
    passphrase: Secret | None = None,
    recovery_key: Secret | None = None,
    from_packs: bool = False,
    options: RepositoryOptions | None = None,
    clock: Clock | None = None,
) -> RebuildReport:
    """Make the index of the repository at `path` anew.

    Crash guarantee: the old index, or none, which opening the repository fills again.

    Raises: LockedError; what `Repository.open` raises, but not IndexDamagedError.
    """
    if not (path / CONFIG_NAME).exists():
        raise RepositoryNotFoundError(f"no repository at {path}")
    run_id = new_run_id((clock or SystemClock()).now())
    details = SessionDetails(purpose="rebuild-index")
    with SessionLocks(path).register(SessionKind.REBUILD_INDEX, run_id, details=details):
        replaced = _remove_damaged(path / INDEX_FOLDER)
        with Repository.open(
            path, passphrase=passphrase, recovery_key=recovery_key, options=options, clock=clock
        ) as repository:
            return refill(repository, from_packs=from_packs, replaced=replaced)


def _remove_damaged(folder: Path) -> bool:
    """Remove an index that cannot be opened and read to its end."""
    probe = (
        "import sys, pathlib; from appliance.repository.index import ChunkIndex;"
        "index = ChunkIndex(pathlib.Path(sys.argv[1])); index.check(); index.close()"
    )
    if not folder.exists() or survives(probe, folder):
        return False
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise StorageError(f"{folder}: {error}") from error
    return True


def refill(repository: Repository, *, from_packs: bool, replaced: bool = False) -> RebuildReport:
    """The work itself; the caller holds the lock."""
    started_s = time.perf_counter()
    sizes = {blob.name: blob.size_bytes for blob in repository.store.list(PACKS)}
    segments = _Segments(repository, sizes)
    repository.index.refill(segments, repository.quarantine.places())
    if segments.damaged:
        repair_segments_locked(repository, segments.damaged)
    complete = _is_complete(repository)
    added: Sequence[SealedPack] = ()
    if from_packs or not complete:
        added = publish_unlisted(repository)
        complete = _is_complete(repository)
    for standing in repository.quarantine.standing():
        if standing.note is not None:
            repository.index.hold_bad(standing.missing)
    return RebuildReport(
        entry_count=repository.index.entry_count(),
        pack_count=len(repository.index.packs()),
        segment_count=len(repository.index.segments()),
        replaced=replaced,
        damaged_segments=tuple(segments.damaged),
        missing_packs=tuple(segments.missing),
        added_packs=len(added),
        complete=complete,
        seconds=round(time.perf_counter() - started_s, 3),
    )


class _Segments:
    """The readable segments, without packs that are not there; notes what it leaves out."""

    def __init__(self, repository: Repository, sizes: dict[str, int]) -> None:
        self.damaged: list[str] = []
        self.missing: list[str] = []
        self._repository = repository
        self._sizes = sizes

    def __iter__(self) -> Iterator[tuple[str, list[SealedPack]]]:
        for blob in self._repository.store.list(INDEX_SEGMENTS):
            try:
                packs = self._repository.read_segment(blob.name)
            except BlobNotFoundError:
                continue
            except CorruptError:
                self.damaged.append(blob.name)
                continue
            there = [pack for pack in packs if self._sizes.get(pack.name) == pack.size_bytes]
            self.missing += [pack.name for pack in packs if pack not in there]
            yield blob.name, there


def _is_complete(repository: Repository) -> bool:
    try:
        mark = Mark(repository)
        mark.add(roots_of_now(repository))
        check_complete(repository, mark)
    except GcRefusedError:
        return False
    return True
