"""Packs: append-only blobs of framed records, with a footer that lists them.

Data path: chunk_store appends encoded records, seals the pack, and hands its entries to the
index. Reading one record needs only its place. The footer is read by rebuild, GC and check; where
it is damaged, `scan_records` walks the records themselves.

Thread model: a `PackBuilder` belongs to one thread at a time (the chunk store holds a lock).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import google_crc32c

from appliance.repository.blob_store.contract import BlobStore, BlobWriter
from appliance.repository.errors import CorruptError
from appliance.repository.format import (
    FOOTER_ENTRY,
    FOOTER_MAGIC,
    FOOTER_TRAILER,
    PACK_HEADER,
    PACK_LIMIT_BYTES,
    PACK_MAGIC,
    RECORD_HEADER,
    RECORD_LIMIT_BYTES,
    REPOSITORY_VERSION,
    PackKind,
    RecordKind,
    pack_name,
)
from appliance.repository.record import RecordHeader, parse_header


@dataclass(frozen=True, slots=True)
class SealedPack:
    """A committed pack: what the index must learn. `entries` are packed FOOTER_ENTRY structs."""

    pack_id: bytes
    kind: PackKind
    size_bytes: int
    entries: bytes

    @property
    def name(self) -> str:
        return pack_name(self.pack_id)

    @property
    def entry_count(self) -> int:
        return len(self.entries) // FOOTER_ENTRY.size


class PackBuilder:
    """A pack in the making; nothing is visible before `seal`."""

    def __init__(self, store: BlobStore, repository_id: bytes, kind: PackKind) -> None:
        self.pack_id = secrets.token_bytes(16)
        self.kind = kind
        self._writer: BlobWriter = store.create(pack_name(self.pack_id))
        self._entries: list[bytes] = []
        header = PACK_HEADER.pack(PACK_MAGIC, REPOSITORY_VERSION, kind, repository_id, self.pack_id)
        try:
            self._writer.write([header])
        except BaseException:
            self._writer.abort()
            raise

    @property
    def size_bytes(self) -> int:
        return self._writer.size_bytes

    def append(self, records: Sequence[Sequence[bytes]]) -> None:
        """Append encoded records ([header, payload] each) in one write."""
        offset = self._writer.size_bytes
        buffers: list[bytes | memoryview] = []
        for header, payload in records:
            _, kind, flags, _, digest, raw, payload_bytes, _, _ = RECORD_HEADER.unpack(header)
            stored = RECORD_HEADER.size + payload_bytes
            self._entries.append(FOOTER_ENTRY.pack(digest, offset, stored, raw, kind, flags))
            offset += stored
            buffers += (header, payload)
        self._writer.write(buffers)

    def seal(self) -> SealedPack:
        """Write the footer and commit: afterwards the pack survives a power cut."""
        entries = b"".join(self._entries)
        trailer = FOOTER_TRAILER.pack(
            len(self._entries), google_crc32c.value(entries), self._writer.size_bytes, FOOTER_MAGIC
        )
        self._writer.write([entries, trailer])
        size_bytes = self._writer.size_bytes
        self._writer.commit()
        return SealedPack(self.pack_id, self.kind, size_bytes, entries)

    def abort(self) -> None:
        self._writer.abort()


def read_pack_header(store: BlobStore, pack_id: bytes, repository_id: bytes) -> PackKind:
    """Raises CorruptError unless the pack is this repository's and of a version we read."""
    name = pack_name(pack_id)
    raw = store.get_range(name, 0, PACK_HEADER.size)
    if len(raw) != PACK_HEADER.size:
        raise CorruptError(f"{name}: shorter than a pack header")
    magic, version, kind, owner, written_id = PACK_HEADER.unpack(raw)
    if magic != PACK_MAGIC or version != REPOSITORY_VERSION or kind not in (1, 2):
        raise CorruptError(f"{name}: not a pack of version {REPOSITORY_VERSION}")
    if raw != PACK_HEADER.pack(magic, version, kind, owner, written_id):
        raise CorruptError(f"{name}: reserved bytes are not zero")
    if owner != repository_id or written_id != pack_id:
        raise CorruptError(f"{name}: belongs elsewhere")
    return PackKind(kind)


def read_footer(store: BlobStore, pack_id: bytes, repository_id: bytes) -> SealedPack:
    """Return what `seal` returned, from the blob alone. Raises CorruptError, BlobNotFoundError."""
    name = pack_name(pack_id)
    kind = read_pack_header(store, pack_id, repository_id)
    size_bytes = store.size_bytes(name)
    if not PACK_HEADER.size + FOOTER_TRAILER.size <= size_bytes <= PACK_LIMIT_BYTES * 2:
        raise CorruptError(f"{name}: {size_bytes} bytes cannot be a pack")
    tail = store.get_range(name, size_bytes - FOOTER_TRAILER.size, FOOTER_TRAILER.size)
    count, crc, offset, magic = FOOTER_TRAILER.unpack(tail)
    entries_bytes = count * FOOTER_ENTRY.size
    if magic != FOOTER_MAGIC or offset + entries_bytes + FOOTER_TRAILER.size != size_bytes:
        raise CorruptError(f"{name}: footer is damaged")
    entries = store.get_range(name, offset, entries_bytes)
    if len(entries) != entries_bytes or google_crc32c.value(entries) != crc:
        raise CorruptError(f"{name}: footer is damaged")
    return SealedPack(pack_id, kind, size_bytes, entries)


def iter_entries(entries: bytes) -> Iterator[tuple[bytes, int, int, int, RecordKind]]:
    """Yield (digest, offset, stored bytes, raw bytes, kind) of packed FOOTER_ENTRY structs."""
    for digest, offset, stored, raw, kind, _flags in FOOTER_ENTRY.iter_unpack(entries):
        yield digest, offset, stored, raw, RecordKind(kind)


def scan_records(
    store: BlobStore, pack_id: bytes, size_bytes: int
) -> Iterator[tuple[int, RecordHeader]]:
    """Yield (offset, header) of each record that can be found without the footer.

    Stops at the first place where no valid record header stands: the footer, or damage.
    """
    offset = PACK_HEADER.size
    while offset + RECORD_HEADER.size <= size_bytes:
        try:
            raw = store.get_range(pack_name(pack_id), offset, RECORD_HEADER.size)
            header = parse_header(raw)
        except CorruptError:
            return
        if offset + header.stored_bytes > min(size_bytes, offset + RECORD_LIMIT_BYTES):
            return
        yield offset, header
        offset += header.stored_bytes
