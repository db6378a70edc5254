"""Write one disk into the repository: extents -> chunks -> packs -> tree.

Data path: a `BlockReader` of the source is read segment by segment (8 MiB) on a few worker
threads; each reads, cuts, hashes, deduplicates, compresses and appends on its own, because all
of that releases the GIL. Results are taken in order, so the tree is built with one open node and
memory does not grow with the disk: a bounded number of segments is in flight.

Deduplication asks the parent point's leaf first: a chunk that stands in it costs a hash, no index
lookup. (So a point whose chunks are in quarantine is no fit parent; `jobs.backup` sees to it.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from appliance.base.bounded_map import bounded_map
from appliance.base.run_context import Progress, RunContext, Stage
from appliance.blocks.device import BlockReader
from appliance.blocks.extents import Extent, ExtentKind, align, split_by
from appliance.repository.chunk_store import ChunkStore
from appliance.repository.chunk_writer import ChunkWriter
from appliance.repository.chunker import Chunker
from appliance.repository.digest import Digester
from appliance.repository.format import (
    BLOCK_BYTES,
    EMPTY_DIGEST,
    SEGMENT_BYTES,
    RecordKind,
)
from appliance.repository.image_tree import (
    Leaf,
    LeafEntry,
    TreeBuilder,
    TreeReader,
    encode_leaf,
    segment_count,
)
from appliance.repository.segment_chunking import SegmentBuffer

OnLeaf = Callable[[int, bytes], None]
"""Told a segment and the digest of its leaf, which is not yet durable."""


def _nobody(segment: int, digest: bytes) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """One disk, written but not committed. Bytes of disk unless the name says otherwise."""

    root: bytes
    size_bytes: int
    read_bytes: int  # asked of the source
    changed_bytes: int  # in chunks that the parent does not have at this place
    new_bytes: int  # in chunks that the repository did not have
    stored_bytes: int  # appended to packs, chunks and tree together


@dataclass(slots=True)
class _Totals:
    read_bytes: int = 0
    changed_bytes: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0


class ImageWriter:
    """Writes the disks of one run. `write` may be called from several threads."""

    def __init__(
        self,
        reader: ChunkStore,
        writer: ChunkWriter,
        chunker: Chunker,
        digester: Digester,
        *,
        workers: int,
        context: RunContext,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._chunker = chunker
        self._digester = digester
        self._workers = workers
        self._context = context

    def write(
        self,
        source: BlockReader,
        parent: bytes | None,
        changed: Sequence[Extent] | None,
        *,
        stored: Mapping[int, bytes] | None = None,
        on_leaf: OnLeaf | None = None,
        progress: Progress | None = None,
    ) -> ImageResult:
        """Store the disk and return its root; what is stored is durable after the run's commit.

        Args:
            source: read once, in ascending order per worker; holes that it maps are not read.
            parent: root of the previous point of this disk, None for none.
            changed: only these may differ from `parent` (and `stored`), one of which must then be
                given. None: read all.
            stored: leaf digests by segment that stand instead of the parent's: what a broken run
                had stored. Each, and the chunks it lists, must be in the repository.
            on_leaf: hears of every segment that was looked at, ascending, on the calling thread.
            progress: of this disk; default: the run's.

        Raises:
            CancelledError, SourceError, StorageFullError, StorageError, CorruptError.
        """
        if changed is not None and parent is None and not stored:
            raise ValueError("changed extents need a parent")
        if stored and changed is None:
            raise ValueError("what is stored needs to be told from what is not")
        job = _DiskJob(
            source=source,
            parent=TreeReader(parent or EMPTY_DIGEST, self._reader.load),
            changed=changed,
            stored=stored or {},
            on_leaf=on_leaf or _nobody,
            progress=progress or self._context.progress,
        )
        return _DiskWrite(self, job).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _DiskJob:
    source: BlockReader
    parent: TreeReader
    changed: Sequence[Extent] | None
    stored: Mapping[int, bytes]
    on_leaf: OnLeaf
    progress: Progress


class _DiskWrite:
    """The state of writing one disk."""

    def __init__(self, owner: ImageWriter, job: _DiskJob) -> None:
        self._owner = owner
        self._source = job.source
        self._parent = job.parent
        self._changed = job.changed
        self._stored = job.stored
        self._on_leaf = job.on_leaf
        self._local = threading.local()
        self._totals = _Totals()
        self._totals_lock = threading.Lock()
        self._progress = job.progress

    def run(self) -> ImageResult:
        builder = TreeBuilder(self._parent, self._store_inner)
        with closing(
            bounded_map(self._segment, self._work(), workers=self._owner._workers, name="segment")
        ) as leaves:
            for segment, digest in leaves:
                self._on_leaf(segment, digest)
                builder.set_leaf(segment, digest)
        totals = self._totals
        return ImageResult(
            root=builder.finish(),
            size_bytes=self._source.size_bytes,
            read_bytes=totals.read_bytes,
            changed_bytes=totals.changed_bytes,
            new_bytes=totals.new_bytes,
            stored_bytes=totals.stored_bytes,
        )

    # What is to be looked at

    def _work(self) -> Iterator[tuple[int, list[Extent]]]:
        """Yield (segment, extents that may have changed), ascending."""
        size_bytes = self._source.size_bytes
        if self._changed is not None:
            extents = align(self._changed, BLOCK_BYTES, size_bytes)
            self._progress.expect(sum(extent.length for extent in extents))
            yield from self._with_stored(split_by(extents, SEGMENT_BYTES))
            return
        self._progress.expect(size_bytes)
        ours = self._parent.leaves(0, segment_count(size_bytes))
        old = next(ours, None)
        done = 0
        for segment in self._segments_with_data():
            while old is not None and old[0] < segment:  # data before, a hole now
                yield old[0], [self._whole(old[0])]
                old = next(ours, None)
            if old is not None and old[0] == segment:
                old = next(ours, None)
            self._progress.advance((segment - done) * SEGMENT_BYTES)
            done = segment + 1
            yield segment, [self._whole(segment)]
        while old is not None:
            yield old[0], [self._whole(old[0])]
            old = next(ours, None)
        self._progress.advance(max(size_bytes - done * SEGMENT_BYTES, 0))

    def _with_stored(
        self, work: Iterator[tuple[int, list[Extent]]]
    ) -> Iterator[tuple[int, list[Extent]]]:
        """Stored segments without changes are work too: their leaves go into the tree."""
        stored = iter(sorted(self._stored))
        waiting = next(stored, None)
        for segment, extents in work:
            while waiting is not None and waiting < segment:
                yield waiting, []
                waiting = next(stored, None)
            if waiting == segment:
                waiting = next(stored, None)
            yield segment, extents
        while waiting is not None:
            yield waiting, []
            waiting = next(stored, None)

    def _segments_with_data(self) -> Iterator[int]:
        offset, size_bytes, last = 0, self._source.size_bytes, -1
        while offset < size_bytes:
            for mapped in self._source.map_extents(offset, size_bytes - offset):
                if mapped.kind is ExtentKind.DATA:
                    first = mapped.offset // SEGMENT_BYTES
                    final = (mapped.end - 1) // SEGMENT_BYTES
                    yield from range(max(first, last + 1), final + 1)
                    last = final
                offset = mapped.end

    def _whole(self, segment: int) -> Extent:
        start = segment * SEGMENT_BYTES
        return Extent(start, min(SEGMENT_BYTES, self._source.size_bytes - start))

    # One segment, on a worker thread

    def _segment(self, work: tuple[int, list[Extent]]) -> tuple[int, bytes]:
        segment, extents = work
        self._owner._context.cancel.check()
        old_digest = self._stored.get(segment) or self._parent.leaf_digest(segment)
        if not extents:
            return segment, old_digest
        old = self._parent.load_leaf(old_digest)
        buffer = self._buffer()
        whole = self._whole(segment)
        buffer.reset(-(-whole.length // BLOCK_BYTES), old)
        started_s = time.perf_counter()
        read_bytes = sum(self._read(buffer, whole.offset, extent) for extent in extents)
        read_s = time.perf_counter()
        self._progress.spend(Stage.READ, read_s - started_s)
        runs = buffer.changed_runs()
        if runs:
            entries = buffer.rechunk(runs)
            self._progress.spend(Stage.COMPRESS, time.perf_counter() - read_s)
            digest = self._store(buffer, old, entries, read_bytes)
        else:
            self._progress.spend(Stage.COMPRESS, time.perf_counter() - read_s)
            digest = old_digest
            with self._totals_lock:
                self._totals.read_bytes += read_bytes
        self._progress.advance(sum(extent.length for extent in extents))
        return segment, digest

    def _buffer(self) -> SegmentBuffer:
        buffer: SegmentBuffer | None = getattr(self._local, "buffer", None)
        if buffer is None:
            owner = self._owner
            buffer = SegmentBuffer(owner._chunker, owner._digester, owner._reader.load_many)
            self._local.buffer = buffer
        return buffer

    def _read(self, buffer: SegmentBuffer, base: int, extent: Extent) -> int:
        """Fill the extent from the source; return the bytes really read."""
        read_bytes = 0
        offset = extent.offset
        while offset < extent.end:
            for mapped in self._source.map_extents(offset, extent.end - offset):
                first = (mapped.offset - base) // BLOCK_BYTES
                end = -(-(mapped.end - base) // BLOCK_BYTES)
                view = buffer.fill(first, end)
                skip = mapped.offset - base - first * BLOCK_BYTES
                if mapped.kind is ExtentKind.ZERO:
                    buffer.clear(mapped.offset - base, mapped.end - base)
                else:
                    self._source.read_into(mapped.offset, view[skip : skip + mapped.length])
                    read_bytes += mapped.length
                offset = mapped.end
        if extent.end % BLOCK_BYTES:  # the disk ends inside a block
            buffer.clear(extent.end - base, -(-(extent.end - base) // BLOCK_BYTES) * BLOCK_BYTES)
        return read_bytes

    def _store(
        self, buffer: SegmentBuffer, old: Leaf, entries: list[LeafEntry], read_bytes: int
    ) -> bytes:
        """Insert the chunks that are new here, then the leaf; return the leaf's digest."""
        before = {entry.digest for entry in old.entries}
        kept = set(old.entries)
        items: list[tuple[bytes, bytes | memoryview]] = [
            (entry.digest, buffer.data(entry.start, entry.end))
            for entry in entries
            if entry.digest not in before and buffer.holds(entry.start, entry.end)
        ]
        chunks = self._owner._writer.insert_many(RecordKind.CHUNK, items)
        digest, stored_bytes = EMPTY_DIGEST, chunks.stored_bytes
        if entries:
            raw = encode_leaf(entries)
            digest = self._owner._digester.of(RecordKind.LEAF, raw)
            leaf = self._owner._writer.insert_many(RecordKind.LEAF, [(digest, raw)])
            stored_bytes += leaf.stored_bytes
        changed_blocks = sum(entry.blocks for entry in entries if entry not in kept)
        with self._totals_lock:
            self._totals.read_bytes += read_bytes
            self._totals.changed_bytes += changed_blocks * BLOCK_BYTES
            self._totals.new_bytes += chunks.new_bytes
            self._totals.stored_bytes += stored_bytes
        return digest

    def _store_inner(self, level: int, raw: bytes) -> bytes:
        digest = self._owner._digester.of(RecordKind.INNER, raw)
        stored = self._owner._writer.insert_many(RecordKind.INNER, [(digest, raw)])
        self._totals.stored_bytes += stored.stored_bytes
        return digest
