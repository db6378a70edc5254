"""Repair of what can be made again from the records: index segments, pack headers and footers.

Repairs remove blobs, so they hold the lock of garbage collection; where it is taken, they are left
to the next check. Nothing here touches a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from appliance.base.run_context import RunContext
from appliance.repository.blob_store.contract import BlobNotFoundError
from appliance.repository.errors import CorruptError
from appliance.repository.format import (
    FOOTER_ENTRY,
    INDEX_SEGMENTS,
    PACKS,
    PackKind,
    RecordKind,
    index_segment_name,
    pack_id_of,
)
from appliance.repository.gc_sweep import grouped, rewrite_packs, survivors_of
from appliance.repository.index import PackInfo
from appliance.repository.locks import LockedError, SessionDetails, SessionKind
from appliance.repository.pack import SealedPack, read_footer, scan_records

if TYPE_CHECKING:
    from appliance.repository.repository import Repository

_DETAILS = SessionDetails(purpose="repair after a check")


def repair_segments(repository: Repository, damaged: Sequence[str]) -> bool:
    """List the packs of damaged index segments in new ones; False: somebody is in the way."""
    run_id = repository.new_run_id()
    try:
        with repository.locks.register(SessionKind.GC, run_id, details=_DETAILS):
            repair_segments_locked(repository, damaged)
    except LockedError:
        return False
    return True


def repair_segments_locked(repository: Repository, damaged: Sequence[str]) -> None:
    publish_unlisted(repository)
    for name in damaged:
        repository.store.delete(name)
    repository.index.forget_segments(damaged)


def publish_unlisted(repository: Repository) -> list[SealedPack]:
    """List in new segments every pack that no readable one lists. What is garbage of it, GC finds.

    A pack that a living run has sealed, but not published yet, is listed twice: no harm.
    """
    listed: set[bytes] = set()
    for blob in repository.store.list(INDEX_SEGMENTS):
        try:
            listed.update(pack.pack_id for pack in repository.read_segment(blob.name))
        except (CorruptError, BlobNotFoundError):
            continue
    found = []
    for blob in repository.store.list(PACKS):
        pack_id = pack_id_of(blob.name)
        if pack_id is not None and pack_id not in listed:
            pack = read_or_scan(repository, pack_id, blob.size_bytes)
            if pack is not None:
                found.append(pack)
    for number, group in enumerate(grouped(found)):
        name = index_segment_name(repository.new_run_id(), number)
        repository.write_segment(name, group)
        repository.index.insert(name, group, without=repository.quarantine.places())
    return found


def read_or_scan(repository: Repository, pack_id: bytes, size_bytes: int) -> SealedPack | None:
    """Return what the footer says, or, where it is damaged, what stands before it."""
    try:
        return read_footer(repository.store, pack_id, repository.id)
    except BlobNotFoundError:
        return None
    except CorruptError:
        entries = []
        kind = PackKind.DATA
        for offset, header in scan_records(repository.store, pack_id, size_bytes):
            kind = PackKind.DATA if header.kind is RecordKind.CHUNK else PackKind.TREE
            entries.append(
                FOOTER_ENTRY.pack(
                    header.digest,
                    offset,
                    header.stored_bytes,
                    header.raw_bytes,
                    header.kind,
                    header.flags,
                )
            )
        return SealedPack(pack_id, kind, size_bytes, b"".join(entries)) if entries else None


def repair_packs(repository: Repository, packs: Sequence[PackInfo]) -> set[bytes]:
    """Move the records of packs with a damaged header or footer; return the packs that are gone.

    Not beside a collection that has announced: doomed records may yet be rescued.
    """
    run_id = repository.new_run_id()
    try:
        with repository.locks.register(SessionKind.GC, run_id, details=_DETAILS):
            if repository.index.announcement() is not None:
                return set()
            rewrite_packs(
                repository,
                packs,
                survivors_of(repository, packs),
                {blob.name: blob.size_bytes for blob in repository.store.list(PACKS)},
                RunContext.quiet(),
            )
    except LockedError:
        return set()
    left = {pack.pack_id for pack in repository.index.packs()}
    return {pack.pack_id for pack in packs} - left
