"""Store chunks and tree nodes by digest: the writing half of one run, over packs and the index.

It deduplicates, encodes, appends to packs and publishes them, in an order that keeps every crash
harmless: pack committed, index segment committed, LMDB updated, and only then may a manifest
refer to them. What a killed run leaves is unreferenced, and garbage collection removes it.

Thread model: all methods may be called from several threads. Encoding runs in the caller's
thread; appending takes a lock per kind of pack; sealing (the fsync) runs on one thread of the
writer, at most two packs behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum

from appliance.base.errors import StorageError
from appliance.base.run_context import Progress, Stage
from appliance.repository.blob_store.contract import BlobStore
from appliance.repository.format import (
    DIGEST_BYTES,
    FOOTER_ENTRY,
    PACK_TARGET_BYTES,
    PackKind,
    RecordKind,
)
from appliance.repository.index import ChunkIndex
from appliance.repository.pack import PackBuilder, SealedPack
from appliance.repository.record import RecordCodec

_PACKS_PER_SEGMENT = 16
_ENTRIES_PER_SEGMENT = 1 << 20  # 48 MiB: records may be as small as 70 bytes
_PACKS_BEHIND = 2


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
    """Belongs to one run. End it with `commit` or `abort`."""

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
        wanted = [item for item in dict(items).items() if item[0] in fresh]
        records = self._codec.encode_many(kind, wanted)
        encoded_s = time.perf_counter()
        self._progress.spend(Stage.COMPRESS, encoded_s - started_s)
        self._append(PackKind.DATA if kind is RecordKind.CHUNK else PackKind.TREE, records)
        self._progress.spend(Stage.WRITE, time.perf_counter() - encoded_s)
        new_bytes = sum(len(raw) for _, raw in wanted)
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
        with self._sealing_lock:
            sealing = [future for future, _ in self._sealing]
        self._sealer.submit(self._publish_sealed, 1).result()
        for future in sealing:
            future.result()

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
        if kind in self._open:
            self._wait_for_sealer(_PACKS_BEHIND - 1)  # first: what it raises leaves the pack here
            pack = self._open.pop(kind)
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
        entries = sum(pack.entry_count for pack in self._sealed)
        if len(self._sealed) < at_least and entries < _ENTRIES_PER_SEGMENT:
            return
        packs, self._sealed = self._sealed, []
        self._publish(packs)
        with self._claim_lock:
            for pack in packs:
                for start in range(0, len(pack.entries), FOOTER_ENTRY.size):
                    self._claimed.discard(pack.entries[start : start + DIGEST_BYTES])
