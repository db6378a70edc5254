"""Chunks for clients that wait: from a cache, or decoded for it.

`ImageReader` reads here; one for all readers of a repository. A chunk is proven by its checksum
instead of its digest, but for encrypted repositories: restore and verification go to the chunk
store itself. So what is cached here is no source for anything that is kept.

Three ways, for three kinds of thread: `near` on an event loop, `near_many` on a few threads that
decode, `many` on any number that may wait for storage. Threads that decode beside each other hand
the interpreter's lock over with every call that releases it, so more of them than processors are
slower than few: nbdcopy took 5.3 s with eight and 4.1 s with two on two cores (*measured*).

Thread model: any thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

from appliance.repository.chunk_cache import ChunkCache
from appliance.repository.chunk_store import ChunkStore, Records
from appliance.repository.record import Proof, RecordCodec

_PAUSE_S = 20e-6  # a client takes longer to send its next request, a queue does not


class ServedChunks:
    def __init__(self, chunks: ChunkStore, codec: RecordCodec, cache: ChunkCache) -> None:
        self._chunks = chunks
        self._codec = codec
        self._cache = cache
        self.get = cache.get  # (digest) -> raw bytes or None; as it is: the hot path
        self._decoded_at_s = 0.0

    def near(self, digest: bytes) -> bytes | None:
        """Return the chunk from the cache, or decode it here and now if it is in the page cache.

        One decode at once answers a lone reader soonest. A second one right after it means that the
        caller has a queue: then it gets None, and does better to hand the queue to `near_many`.

        Raises: ChunkCorruptError, StorageError.
        """
        raw = self._cache.get(digest)
        if raw is not None:
            return raw
        if perf_counter() - self._decoded_at_s < _PAUSE_S:
            return None
        record = self._chunks.try_fetch(digest)
        if record is not None:
            raw = self._codec.decode(record, digest, Proof.CHECKSUM)
            self._cache.put(digest, raw)
        self._decoded_at_s = perf_counter()
        return raw

    def near_many(self, digests: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return those that are in memory or in the page cache, however many have to be decoded.

        Waits for no storage, but for other threads that are loading the same chunk.

        Raises: ChunkCorruptError, StorageError.
        """
        found, missing = self._cache.held(digests)
        records = self._chunks.try_fetch_many(missing) if missing else {}
        if records:
            found |= self._cache.get_or_load(
                records,
                lambda mine: self._decode_many({digest: records[digest] for digest in mine}),
            )
        return found

    def many(self, digests: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return all, waiting for storage.

        Raises: ChunkMissingError, ChunkCorruptError, StorageError.
        """
        return self._cache.get_or_load(
            digests, lambda mine: self._decode_many(self._chunks.fetch_many(mine))
        )

    def _decode_many(self, records: Records) -> dict[bytes, bytes]:
        return self._codec.decode_many(records, Proof.CHECKSUM)
