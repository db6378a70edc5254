"""Check of one pack: its size, header, footer, and what the index says about it; then its bytes.

What the medium cannot give back counts as damage of the records there, and what is not there as
missing, but only while the storage itself answers.

`read_records` reads the pack front to back, a few MiB at a time, and proves every record: header
CRC, payload CRC, decryption, decompression, digest. All of it releases the GIL, so packs are
checked on several threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from appliance.base.errors import StorageError
from appliance.base.units import MIB
from appliance.repository.blob_store.contract import BlobNotFoundError
from appliance.repository.errors import CorruptError, UnreadableError
from appliance.repository.format import (
    CONFIG_LIMIT_BYTES,
    CONFIG_NAME,
    FOOTER_TRAILER,
    PACK_HEADER,
    RECORD_HEADER,
    pack_name,
)
from appliance.repository.index import PackInfo
from appliance.repository.index_rows import digests_of
from appliance.repository.pack import SealedPack, iter_entries, read_footer
from appliance.repository.record import parse_header, payload_matches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from appliance.repository.repository import Repository

_READ_BYTES = 4 * MIB


class Listed(NamedTuple):
    digest: bytes
    offset: int
    stored_bytes: int


class BadRecord(NamedTuple):
    digest: bytes
    pack_id: bytes
    offset: int
    reason: str


@dataclass(slots=True)
class PackResult:
    pack: PackInfo
    bad: list[BadRecord] = field(default_factory=list)
    structure: str | None = None  # what is wrong with header or footer, which a rewrite repairs
    index: str | None = None  # what is wrong with the local index
    records: int = 0
    read_bytes: int = 0


def check_pack(
    repository: Repository,
    pack: PackInfo,
    rows: NDArray[Any],
    listed: SealedPack | None,
    *,
    read_data: bool,
) -> PackResult | None:
    """Check a pack; `rows` are its rows of the index, `listed` what its segment says of it.

    Returns None when garbage collection has removed it meanwhile. Raises StorageError.
    """
    result = PackResult(pack)
    indexed = [
        Listed(digest, int(row["offset"]), int(row["stored"]))
        for digest, row in zip(digests_of(rows), rows, strict=True)
    ]
    try:
        size_bytes = repository.store.size_bytes(pack_name(pack.pack_id))
        footer = _footer(repository, pack, listed, result)
        entries = _entries(footer, indexed)
        _compare(indexed, entries, size_bytes, result)
        if read_data:
            for record in read_records(repository, pack, entries, result):
                result.bad.append(record)
    except BlobNotFoundError:
        require_storage(repository)
        if pack.pack_id not in {known.pack_id for known in repository.index.packs()}:
            return None
        result.structure = "the pack is missing"
        result.bad = [
            BadRecord(record.digest, pack.pack_id, record.offset, "its pack is missing")
            for record in indexed
        ]
    return result


def _footer(
    repository: Repository, pack: PackInfo, listed: SealedPack | None, result: PackResult
) -> SealedPack | None:
    try:
        footer = read_footer(repository.store, pack.pack_id, repository.id)
    except CorruptError as error:
        result.structure = str(error)
        return listed
    if footer.size_bytes != pack.size_bytes:
        result.structure = f"{footer.size_bytes} bytes where {pack.size_bytes} were written"
    elif listed is not None and footer.entries != listed.entries:
        result.structure = "footer and index segment differ"
    return footer


def _entries(footer: SealedPack | None, indexed: Sequence[Listed]) -> list[Listed]:
    if footer is None:
        return sorted(indexed, key=lambda record: record.offset)
    return [
        Listed(digest, offset, stored)
        for digest, offset, stored, _raw, _kind in iter_entries(footer.entries)
    ]


def _compare(
    indexed: Sequence[Listed], entries: Sequence[Listed], size_bytes: int, result: PackResult
) -> None:
    """The index may know fewer records than the pack has, but none that it has not."""
    wrong = set(indexed) - set(entries)
    if wrong:
        result.index = f"{len(wrong)} entries of the index do not fit the pack"
    end = PACK_HEADER.size
    for entry in entries:
        if entry.offset != end and result.structure is None:
            result.structure = f"no record is listed at offset {end}"
        end = entry.offset + entry.stored_bytes
    if end + FOOTER_TRAILER.size > size_bytes and result.structure is None:
        result.structure = f"cut short to {size_bytes} bytes"
    if not result.structure:
        return
    result.bad += [
        BadRecord(entry.digest, result.pack.pack_id, entry.offset, "lies beyond the pack's end")
        for entry in entries
        if entry.offset + entry.stored_bytes > size_bytes
    ]


def read_records(
    repository: Repository, pack: PackInfo, entries: Sequence[Listed], result: PackResult
) -> Iterator[BadRecord]:
    """Read and prove all `entries`, ordered by offset; yield those that are not as written."""
    name = pack_name(pack.pack_id)
    for first, end in _runs(entries):
        offset = entries[first].offset
        length = entries[end - 1].offset + entries[end - 1].stored_bytes - offset
        try:
            view = memoryview(repository.store.get_range(name, offset, length))
        except UnreadableError:
            require_storage(repository)
            view = None  # read one by one
        for entry in entries[first:end]:
            result.records += 1
            start = entry.offset - offset
            try:
                record = (
                    memoryview(repository.store.get_range(name, entry.offset, entry.stored_bytes))
                    if view is None
                    else view[start : start + entry.stored_bytes]
                )
                result.read_bytes += len(record)
                _prove(repository, record, entry)
            except CorruptError as error:
                yield BadRecord(entry.digest, pack.pack_id, entry.offset, str(error)[:400])


def require_storage(repository: Repository) -> None:
    """Raises StorageError where the storage is away: nothing that is on it counts as damaged."""
    try:
        repository.store.get(CONFIG_NAME, limit_bytes=CONFIG_LIMIT_BYTES)
    except (BlobNotFoundError, UnreadableError) as error:
        raise StorageError(f"the storage of the repository is away: {error}") from error


def _prove(repository: Repository, record: memoryview, entry: Listed) -> None:
    header = parse_header(record)
    if header.stored_bytes != entry.stored_bytes:
        raise CorruptError("record has another length than the footer says")
    if not payload_matches(header, bytes(record[RECORD_HEADER.size :])):
        raise CorruptError("payload is damaged")
    repository.codec.decode(record, entry.digest)


def _runs(entries: Sequence[Listed]) -> Iterator[tuple[int, int]]:
    first = 0
    for number in range(1, len(entries) + 1):
        if number == len(entries) or (
            entries[number].offset + entries[number].stored_bytes - entries[first].offset
            > _READ_BYTES
        ):
            yield first, number
            first = number
