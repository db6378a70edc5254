"""Insert and load chunks and tree nodes by digest, over packs and the index.

`ChunkStore` reads and is shared by the whole process. `ChunkWriter` belongs to one run: it
deduplicates, encodes, appends to packs and publishes them, in an order that keeps every crash
harmless: pack committed, index segment committed, LMDB updated, and only then may a manifest
refer to them. What a killed run leaves is unreferenced, and garbage collection removes it.

Thread model: all methods may be called from several threads. Encoding runs in the caller's
thread; appending takes a lock per kind of pack; sealing (the fsync) runs on one thread of the
writer, at most two packs behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum

from appliance.base.errors import StorageError
from appliance.base.run_context import Progress, Stage
from appliance.base.units import KIB, MIB
from appliance.repository.blob_store.contract import BlobNotFoundError, BlobStore
from appliance.repository.errors import ChunkCorruptError, ChunkMissingError
from appliance.repository.format import (
    DIGEST_BYTES,
    FOOTER_ENTRY,
    PACK_TARGET_BYTES,
    PackKind,
    RecordKind,
    pack_name,
)
from appliance.repository.index import ChunkIndex, Place
from appliance.repository.pack import PackBuilder, SealedPack
from appliance.repository.record import Proof, RecordCodec

_READ_GAP_BYTES = 64 * KIB  # reading over a gap is cheaper than a second call
_READ_MOST_BYTES = 4 * MIB
_PACKS_PER_SEGMENT = 16
_PACKS_BEHIND = 2


class ChunkStore:
    def __init__(self, store: BlobStore, index: ChunkIndex, codec: RecordCodec) -> None:
        self._store = store
        self._index = index
        self._codec = codec

    def load(self, digest: bytes) -> bytes:
        """Return the raw bytes, proven to hash to `digest`.

        Raises: ChunkMissingError, ChunkCorruptError, StorageError.
        """
        for last_try in (False, True):
            place = self._index.find(digest)
            if place is None:
                break
            try:
                record = self._store.get_range(
                    pack_name(place.pack_id),
                    place.offset,
                    place.read_bytes,
                )
            except BlobNotFoundError as error:
                if last_try:
                    raise ChunkCorruptError(digest, "its pack is missing") from error
                continue  # garbage collection moved it between the two calls
            return self._codec.decode(record, digest)
        raise self._missing(digest)

    def _missing(self, digest: bytes) -> ChunkMissingError:
        return ChunkMissingError(digest, quarantined=self._index.is_quarantined(digest))

    def try_load(self, digest: bytes, proof: Proof) -> bytes | None:
        """Return the raw bytes if the record is in the page cache, else None. Raises as `load`."""
        place = self._index.find(digest)
        if place is None:
            return None
        record = self._store.try_get_range(pack_name(place.pack_id), place.offset, place.read_bytes)
        return None if record is None else self._codec.decode(record, digest, proof)

    def load_many(
        self, digests: Iterable[bytes], proof: Proof = Proof.DIGEST
    ) -> dict[bytes, bytes]:
        """Return the raw bytes of all; neighbours in a pack are read with one call.

        Raises: as `load`, for the first that fails.
        """
        wanted = list(dict.fromkeys(digests))
        places = self._index.find_many(wanted)
        if len(places) < len(wanted):
            raise self._missing(next(digest for digest in wanted if digest not in places))
        loaded: dict[bytes, bytes] = {}
        for group in _groups(places):
            first, last = group[0][1], group[-1][1]
            length = last.offset + last.read_bytes - first.offset
            try:
                blob = self._store.get_range(pack_name(first.pack_id), first.offset, length)
            except BlobNotFoundError:
                loaded |= {digest: self.load(digest) for digest, _ in group}
                continue
            view = memoryview(blob)
            for digest, place in group:
                start = place.offset - first.offset
                record = view[start : start + place.stored_bytes]
                loaded[digest] = self._codec.decode(record, digest, proof)
        return loaded


def _groups(places: dict[bytes, Place]) -> list[list[tuple[bytes, Place]]]:
    """Group records that lie close together in one pack, each group a single read."""
    ordered = sorted(places.items(), key=lambda item: (item[1].pack_id, item[1].offset))
    groups: list[list[tuple[bytes, Place]]] = []
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


@dataclass(frozen=True, slots=True)
class Inserted:
    """What was not there before: raw bytes, and bytes appended to packs for them."""

    new_bytes: int
    stored_bytes: int


PublishSegment = Callable[[Sequence[SealedPack]], None]
"""Commit an index segment for these packs and take it into the index."""


class _State(Enum):
    WRITING = "writing"
    COMMITTED = "committed"
    ABORTED = "aborted"


class ChunkWriter:
    """The writing half, for one run. End it with `commit` or `abort`."""

    def __init__(
        self,
        store: BlobStore,
        index: ChunkIndex,
        codec: RecordCodec,
        *,
        repository_id: bytes,
        publish: PublishSegment,
        progress: Progress,
        pack_target_bytes: int = PACK_TARGET_BYTES,
    ) -> None:
        self._store = store
        self._index = index
        self._codec = codec
        self._repository_id = repository_id
        self._publish = publish
        self._progress = progress
        self._pack_target_bytes = pack_target_bytes
        self._claim_lock = threading.Lock()
        self._claimed: set[bytes] = set()  # stored by this run, not yet in the index
        self._append_locks = {kind: threading.Lock() for kind in PackKind}
        self._open: dict[PackKind, PackBuilder] = {}
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._sealing: list[tuple[Future[None], PackBuilder]] = []
        self._sealing_lock = threading.Lock()
        self._sealed: list[SealedPack] = []
        self._state = _State.WRITING

    def insert_many(
        self, kind: RecordKind, items: Sequence[tuple[bytes, bytes | memoryview]]
    ) -> Inserted:
        """Store those (digest, raw) that the repository does not have.

        Raises:
            StorageFullError, StorageError: the run must be aborted.
        """
        fresh = self._claim([digest for digest, _ in items])
        if not fresh:
            return Inserted(0, 0)
        started_s = time.perf_counter()
        records = []
        new_bytes = 0
        for digest, raw in items:
            if digest in fresh:
                fresh.discard(digest)
                records.append(self._codec.encode(kind, digest, raw))
                new_bytes += len(raw)
        encoded_s = time.perf_counter()
        self._progress.spend(Stage.COMPRESS, encoded_s - started_s)
        self._append(PackKind.DATA if kind is RecordKind.CHUNK else PackKind.TREE, records)
        self._progress.spend(Stage.WRITE, time.perf_counter() - encoded_s)
        return Inserted(new_bytes, sum(len(head) + len(payload) for head, payload in records))

    def make_durable(self) -> None:
        """Return once what calls that have returned inserted is durable and indexed.

        Writing may go on meanwhile. What another thread is still inserting may be missing, even
        where a caller that has returned relies on it: look it up before building on it later.

        Raises:
            StorageFullError, StorageError: the run must be aborted.
        """
        if self._state is _State.COMMITTED:
            return
        if self._state is _State.ABORTED:
            raise StorageError("what was written is dropped already")
        for kind in PackKind:
            with self._append_locks[kind]:
                self._rotate(kind)
        self._sealer.submit(self._publish_sealed, 1).result()

    def commit(self) -> None:
        """Return once everything inserted is durable and indexed. The writer is then closed."""
        try:
            for kind in PackKind:
                with self._append_locks[kind]:
                    self._rotate(kind)
            self._wait_for_sealer(0)
            self._publish_sealed(1)
        except BaseException:
            self.abort()
            raise
        self._state = _State.COMMITTED
        self._sealer.shutdown()

    def abort(self) -> None:
        """Drop what is not yet published; idempotent."""
        if self._state is _State.WRITING:
            self._state = _State.ABORTED
        self._sealer.shutdown(cancel_futures=True)
        for pack in (*self._open.values(), *(pack for _, pack in self._sealing)):
            pack.abort()
        self._open.clear()
        self._sealing.clear()

    def _claim(self, digests: Sequence[bytes]) -> set[bytes]:
        known = self._index.known(digests)
        with self._claim_lock:
            fresh = {digest for digest in digests if digest not in known} - self._claimed
            self._claimed |= fresh
        return fresh

    def _append(self, kind: PackKind, records: Sequence[Sequence[bytes]]) -> None:
        with self._append_locks[kind]:
            pack = self._open.get(kind)
            if pack is None:
                pack = self._open[kind] = PackBuilder(self._store, self._repository_id, kind)
            pack.append(records)
            if pack.size_bytes >= self._pack_target_bytes:
                self._rotate(kind)

    def _rotate(self, kind: PackKind) -> None:
        pack = self._open.pop(kind, None)
        if pack is not None:
            self._wait_for_sealer(_PACKS_BEHIND - 1)
            with self._sealing_lock:
                self._sealing.append((self._sealer.submit(self._seal, pack), pack))

    def _wait_for_sealer(self, most: int) -> None:
        """Wait until at most `most` packs are being sealed; raise what sealing raised."""
        while True:
            with self._sealing_lock:
                if len(self._sealing) <= most:
                    return
                oldest, pack = self._sealing[0]
            try:
                oldest.result()
            finally:
                with self._sealing_lock:
                    self._sealing = [pair for pair in self._sealing if pair[1] is not pack]

    def _seal(self, pack: PackBuilder) -> None:
        try:
            self._sealed.append(pack.seal())
        except BaseException:
            pack.abort()
            raise
        self._publish_sealed(_PACKS_PER_SEGMENT)

    def _publish_sealed(self, at_least: int) -> None:
        if len(self._sealed) < at_least:
            return
        packs, self._sealed = self._sealed, []
        self._publish(packs)
        with self._claim_lock:
            for pack in packs:
                for start in range(0, len(pack.entries), FOOTER_ENTRY.size):
                    self._claimed.discard(pack.entries[start : start + DIGEST_BYTES])
