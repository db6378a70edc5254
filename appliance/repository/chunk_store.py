"""Load chunks and tree nodes by digest, over packs and the index.

A read goes: index (LMDB) -> range of a pack -> decode. Neighbours in a pack are read with one call.
`chunk_writer` is the other half.

Thread model: shared by the whole process; any thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.base.units import KIB, MIB
from appliance.repository.blob_store.contract import BlobNotFoundError, BlobStore
from appliance.repository.errors import ChunkCorruptError, ChunkMissingError, UnreadableError
from appliance.repository.format import pack_name
from appliance.repository.index import ChunkIndex, Place
from appliance.repository.record import Proof, RecordCodec

_READ_GAP_BYTES = 64 * KIB  # reading over a gap is cheaper than a second call
_READ_MOST_BYTES = 4 * MIB

Records = dict[bytes, bytes | memoryview]
"""Records by digest, whole and not looked into."""


class ChunkStore:
    def __init__(self, store: BlobStore, index: ChunkIndex, codec: RecordCodec) -> None:
        self._store = store
        self._index = index
        self._codec = codec

    def load(self, digest: bytes) -> bytes:
        """Return the raw bytes, proven to hash to `digest`.

        Raises: ChunkMissingError, ChunkCorruptError, StorageError.
        """
        return self._codec.decode(self._fetch(digest), digest)

    def load_many(self, digests: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the raw bytes of all. Raises: as `load`, for the first that fails."""
        return self._codec.decode_many(self.fetch_many(digests), Proof.DIGEST)

    def fetch_many(self, digests: Iterable[bytes]) -> Records:
        """Return the records of all. Raises: ChunkMissingError, ChunkCorruptError, StorageError."""
        wanted = list(dict.fromkeys(digests))
        places = self._index.find_many(wanted)
        if len(places) < len(wanted):
            raise self._missing(next(digest for digest in wanted if digest not in places))
        records: Records = {}
        for group in _groups(places):
            try:
                blob = self._store.get_range(*_range(group))
            except (BlobNotFoundError, UnreadableError):  # it may be a gap that cannot be read
                records |= {digest: self._fetch(digest) for digest, _ in group}
            else:
                records |= _cut(memoryview(blob), group)
        return records

    def try_fetch_many(self, digests: Iterable[bytes]) -> Records:
        """Return those records that are in the page cache; never waits for a disk."""
        records: Records = {}
        for group in _groups(self._index.find_many(list(dict.fromkeys(digests)))):
            blob = self._store.try_get_range(*_range(group))
            if blob is not None:
                records |= _cut(blob, group)
        return records

    def try_fetch(self, digest: bytes) -> memoryview | None:
        """As `try_fetch_many`, for one and with less ado."""
        place = self._index.find(digest)
        if place is None:
            return None
        return self._store.try_get_range(pack_name(place.pack_id), place.offset, place.read_bytes)

    def _fetch(self, digest: bytes) -> bytes:
        for last_try in (False, True):
            place = self._index.find(digest)
            if place is None:
                break
            try:
                return self._store.get_range(
                    pack_name(place.pack_id), place.offset, place.read_bytes
                )
            except BlobNotFoundError as error:
                if last_try:
                    raise ChunkCorruptError(digest, "its pack is missing") from error
                # garbage collection moved it between the two calls
        raise self._missing(digest)

    def _missing(self, digest: bytes) -> ChunkMissingError:
        return ChunkMissingError(digest, quarantined=self._index.is_quarantined(digest))


_Group = list[tuple[bytes, Place]]


def _range(group: _Group) -> tuple[str, int, int]:
    """Name of the pack, offset and length of a group."""
    first, last = group[0][1], group[-1][1]
    return pack_name(first.pack_id), first.offset, last.offset + last.read_bytes - first.offset


def _cut(blob: memoryview, group: _Group) -> Records:
    base = group[0][1].offset
    return {
        digest: blob[place.offset - base : place.offset - base + place.stored_bytes]
        for digest, place in group
    }


def _groups(places: dict[bytes, Place]) -> list[_Group]:
    """Group records that lie close together in one pack, each group a single read."""
    ordered = sorted(places.items(), key=lambda item: (item[1].pack_id, item[1].offset))
    groups: list[_Group] = []
    for item in ordered:
        place = item[1]
        if groups:
            first, last = groups[-1][0][1], groups[-1][-1][1]
            if (
                place.pack_id == last.pack_id
                and place.offset - (last.offset + last.stored_bytes) <= _READ_GAP_BYTES
                and place.offset + place.stored_bytes - first.offset <= _READ_MOST_BYTES
            ):
                groups[-1].append(item)
                continue
        groups.append([item])
    return groups
