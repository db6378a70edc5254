"""Read one disk of a recovery point, proven, and write it to a sink.

Data path: the leaves of the disk's tree, in order, are handed to a few worker threads; each loads
the chunks of its segment (8 MiB) past the chunk cache, proven against their digests, and writes
them in contiguous runs, or, where the sink takes writes in ascending order only, hands them back to
be written in order. Holes are not written. Memory: a few MiB per worker, in ascending order a few
segments.

Thread model: `DiskRestore` belongs to one thread, which `run` blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from enum import Enum
from typing import Protocol

from appliance.base.bounded_map import bounded_map
from appliance.base.run_context import RunContext, Stage
from appliance.base.units import GIB
from appliance.repository.chunk_store import ChunkStore
from appliance.repository.errors import CorruptError
from appliance.repository.format import BLOCK_BYTES, SEGMENT_BYTES
from appliance.repository.image_tree import LeafEntry, TreeReader, segment_count

_AHEAD = 2  # segments per worker: queued, not loaded
_ZERO_MOST_BYTES = GIB  # so that cancelling is noticed
_CHUNKS_AT_ONCE = 32  # about 1.5 MiB, for memory; twice that and whole segments were no faster
_Run = tuple[int, list[bytes | memoryview]]  # first byte in the segment, buffers


class WriteOrder(Enum):
    ANY = "any"  # and from several threads
    ASCENDING = "ascending"  # and from one thread


class RunSink(Protocol):
    @property
    def holds_old_content(self) -> bool:
        """Whether holes must be zeroed; only of one that is written in any order."""
        ...

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write the buffers one after another."""
        ...

    def zero(self, offset: int, length: int) -> None: ...


class DiskRestore:
    """The state of writing one disk out."""

    def __init__(
        self,
        chunks: ChunkStore,
        tree: TreeReader,
        size_bytes: int,
        target: RunSink,
        workers: int,
        context: RunContext,
        order: WriteOrder = WriteOrder.ANY,
    ) -> None:
        self._chunks = chunks
        self._tree = tree
        self._size_bytes = size_bytes
        self._target = target
        self._workers = workers + 1  # one writes (targets write one at a time), the rest decode
        self._context = context
        self._order = order
        self.written_bytes = 0

    def run(self) -> None:
        """Raises: CorruptError, CancelledError, and what the sink raises."""
        self._context.progress.expect(self._size_bytes)
        if self._order is WriteOrder.ASCENDING:
            self._run_in_order()
            return
        written = bounded_map(
            self._segment, self._leaves(), workers=self._workers, ahead=_AHEAD, name="restore"
        )
        with closing(written):
            for written_bytes in written:
                self.written_bytes += written_bytes

    def _run_in_order(self) -> None:
        assert not self._zeroes
        loaded = bounded_map(
            self._whole_segment, self._leaves(), workers=self._workers, ahead=1, name="restore"
        )
        with closing(loaded):
            for segment, runs in loaded:
                started_s = time.perf_counter()
                for start, buffers in runs:
                    self._context.cancel.check()
                    self._target.write(segment * SEGMENT_BYTES + start, buffers)
                    self.written_bytes += sum(map(len, buffers))
                self._context.progress.spend(Stage.WRITE, time.perf_counter() - started_s)
                self._context.progress.advance(self._length(segment))

    def _leaves(self) -> Iterator[tuple[int, bytes]]:
        """Yield (segment, leaf), leaving out what is between them."""
        done = 0
        for segment, digest in self._tree.leaves(0, segment_count(self._size_bytes)):
            self._leave_out(done, segment * SEGMENT_BYTES)
            yield segment, digest
            done = (segment + 1) * SEGMENT_BYTES
        self._leave_out(done, self._size_bytes)

    def _leave_out(self, start: int, end: int) -> None:
        """Account for [start, end), which is all zeros."""
        while start < end:
            self._context.cancel.check()
            length = min(end - start, _ZERO_MOST_BYTES if self._zeroes else end - start)
            if self._zeroes:
                self._target.zero(start, length)
            self._context.progress.advance(length)
            start += length

    @property
    def _zeroes(self) -> bool:
        return self._target.holds_old_content

    # One segment, on a worker thread

    def _segment(self, work: tuple[int, bytes]) -> int:
        """Write one segment; return the bytes written."""
        segment, digest = work
        self._context.cancel.check()
        base = segment * SEGMENT_BYTES
        length = self._length(segment)
        entries = self._tree.load_leaf(digest).entries
        written = position = 0
        for first in range(0, len(entries), _CHUNKS_AT_ONCE):
            for start, buffers in self._load(entries[first : first + _CHUNKS_AT_ONCE], length):
                started_s = time.perf_counter()
                if self._zeroes and position < start:
                    self._target.zero(base + position, start - position)
                self._target.write(base + start, buffers)
                size = sum(map(len, buffers))
                written, position = written + size, start + size
                self._context.progress.spend(Stage.WRITE, time.perf_counter() - started_s)
        if self._zeroes and position < length:
            self._target.zero(base + position, length - position)
        self._context.progress.advance(length)
        return written

    def _whole_segment(self, work: tuple[int, bytes]) -> tuple[int, list[_Run]]:
        """Load one segment."""
        segment, digest = work
        self._context.cancel.check()
        entries = self._tree.load_leaf(digest).entries
        return segment, self._load(entries, self._length(segment))

    def _length(self, segment: int) -> int:
        return min(SEGMENT_BYTES, self._size_bytes - segment * SEGMENT_BYTES)

    def _load(self, entries: Sequence[LeafEntry], length: int) -> list[_Run]:
        """Return the contiguous runs of these chunks, cut at `length`."""
        started_s = time.perf_counter()
        raw_of = self._chunks.load_many([entry.digest for entry in entries])
        self._context.progress.spend(Stage.READ, time.perf_counter() - started_s)
        return list(_runs(entries, raw_of, length))


def _runs(entries: Sequence[LeafEntry], raw_of: dict[bytes, bytes], length: int) -> Iterator[_Run]:
    first, end = 0, 0
    buffers: list[bytes | memoryview] = []
    for entry in entries:
        raw = raw_of[entry.digest]
        start = entry.start * BLOCK_BYTES
        if len(raw) != entry.blocks * BLOCK_BYTES or start >= length:
            raise CorruptError(f"chunk {entry.digest.hex()[:16]}… does not fit its leaf")
        if buffers and start != end:
            yield first, buffers
            buffers = []
        if not buffers:
            first = start
        end = start + len(raw)
        buffers.append(raw if end <= length else memoryview(raw)[: length - start])
    if buffers:
        yield first, buffers
