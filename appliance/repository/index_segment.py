"""Index segments: blobs that repeat the footers of several packs.

They are what another appliance, or a lost LMDB, reads to know where everything lies without
opening each pack. An index segment is committed after its packs and before any manifest that
refers to them. It ends with a keyed BLAKE3 of all before it: a segment from elsewhere, or a
damaged one, is refused (and the packs' own footers take its place in a rebuild).
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.repository.blob_store.contract import BlobStore
from appliance.repository.crypto import Authenticator
from appliance.repository.errors import CorruptError
from appliance.repository.format import (
    FOOTER_ENTRY,
    INDEX_HEADER,
    INDEX_MAGIC,
    INDEX_PACK,
    INDEX_SEGMENT_LIMIT_BYTES,
    MAC_BYTES,
    REPOSITORY_VERSION,
    PackKind,
)
from appliance.repository.pack import SealedPack

_PURPOSE = "index segment"


def write_segment(
    store: BlobStore,
    name: str,
    packs: Sequence[SealedPack],
    *,
    repository_id: bytes,
    authenticator: Authenticator,
) -> None:
    """Commit the segment. Raises BlobExistsError, StorageFullError, StorageError."""
    parts = [INDEX_HEADER.pack(INDEX_MAGIC, REPOSITORY_VERSION, 0, len(packs), repository_id)]
    for pack in packs:
        parts.append(INDEX_PACK.pack(pack.pack_id, pack.size_bytes, pack.kind, pack.entry_count))
        parts.append(pack.entries)
    body = b"".join(parts)
    store.put(name, body + authenticator.tag(_PURPOSE, body))


def read_segment(
    store: BlobStore, name: str, *, repository_id: bytes, authenticator: Authenticator
) -> list[SealedPack]:
    """Raises CorruptError, BlobNotFoundError, StorageError."""
    blob = store.get(name, limit_bytes=INDEX_SEGMENT_LIMIT_BYTES)
    body = blob[:-MAC_BYTES]
    if len(body) < INDEX_HEADER.size or not authenticator.verify(_PURPOSE, body, blob[-MAC_BYTES:]):
        raise CorruptError(f"{name}: damaged, or not of this repository")
    magic, version, reserved, pack_count, owner = INDEX_HEADER.unpack_from(body)
    if magic != INDEX_MAGIC or version != REPOSITORY_VERSION or reserved or owner != repository_id:
        raise CorruptError(f"{name}: not an index segment of this repository")
    packs: list[SealedPack] = []
    offset = INDEX_HEADER.size
    for _ in range(pack_count):
        pack_id, size_bytes, kind, count = INDEX_PACK.unpack_from(body, offset)
        offset += INDEX_PACK.size
        entries = body[offset : offset + count * FOOTER_ENTRY.size]
        offset += len(entries)
        packs.append(SealedPack(pack_id, PackKind(kind), size_bytes, entries))
    if offset != len(body):
        raise CorruptError(f"{name}: {len(body) - offset} bytes too many")
    return packs
