"""Turn one segment of a disk into leaf entries, re-chunking only around what changed.

Data path: image_writer fills a `SegmentBuffer` from the source and calls `rechunk`. Where only
changed extents were read, the unchanged edge bytes of a chunk come from the repository, never
from the hypervisor, and only when a boundary needs them.

Invariant (a property test holds it): the entries are those which chunking the whole new content
from scratch gives. Re-chunking starts at the chunk that the change touches, or at the one before
when only a hole, now filled, had ended it; it stops when a boundary falls on an old one again.
From there on the old boundaries are right, because a chunk's end depends on nothing before it.

Thread model: a buffer belongs to one worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from appliance.repository.chunker import BlockMarks, Chunker, is_zero
from appliance.repository.digest import Digester
from appliance.repository.format import (
    BLOCK_BYTES,
    CHUNK_MAX_BLOCKS,
    SEGMENT_BLOCKS,
    SEGMENT_BYTES,
)
from appliance.repository.image_tree import EMPTY_LEAF, Leaf, LeafEntry

_LOOK_AHEAD_BLOCKS = 16  # the mean chunk, about: how far to classify before looking for a cut
_ZEROS = bytes(SEGMENT_BYTES)

BlockRun = tuple[int, int]
"""First block and end, half-open, within the segment."""

LoadChunks = Callable[[Sequence[bytes]], dict[bytes, bytes]]


class SegmentBuffer:
    """8 MiB of disk, and which of its blocks are filled and classified. Reused between segments."""

    def __init__(self, chunker: Chunker, digester: Digester, load: LoadChunks) -> None:
        self._chunker = chunker
        self._digester = digester
        self._load = load
        self.view = memoryview(bytearray(SEGMENT_BYTES))
        self.reset(SEGMENT_BLOCKS, EMPTY_LEAF)

    def reset(self, blocks: int, old: Leaf) -> None:
        """Begin a segment of `blocks` blocks (the last of a disk may be short) over `old`."""
        self.blocks = blocks
        self.old = old
        self._filled = bytearray(blocks)
        self._classified = bytearray(blocks)
        self._marks = BlockMarks.none(blocks)

    def fill(self, first: int, end: int) -> memoryview:
        """Return the bytes of blocks [first, end) for the caller to fill; they count as new."""
        self._filled[first:end] = b"\1" * (end - first)
        return self.view[first * BLOCK_BYTES : end * BLOCK_BYTES]

    def clear(self, start: int, end: int) -> None:
        """Zero the bytes [start, end) of the segment."""
        self.view[start:end] = _ZEROS[: end - start]

    def holds(self, first: int, end: int) -> bool:
        """Whether every byte of blocks [first, end) is here."""
        return self._filled.find(0, first, end) < 0

    def fill_zeros(self, first: int, end: int) -> None:
        self.fill(first, end)
        self.clear(first * BLOCK_BYTES, end * BLOCK_BYTES)

    def data(self, first: int, end: int) -> memoryview:
        return self.view[first * BLOCK_BYTES : end * BLOCK_BYTES]

    def changed_runs(self) -> list[BlockRun]:
        """Return the runs of filled blocks that may differ from `old`, ordered, not touching.

        An old chunk that was filled whole is compared by its digest, a filled hole by its
        bytes, so what CBT reports too coarsely costs a hash and nothing more.
        """
        changed = bytearray(self._filled)
        if not self.old.entries:
            return _runs(changed)
        hole_start = 0
        for entry in self.old.entries:
            self._clear_zero_runs(changed, hole_start, entry.start)
            hole_start = entry.end
            if self._filled.find(0, entry.start, entry.end) < 0 and entry.end <= self.blocks:
                digest = self._digester.chunk(self.data(entry.start, entry.end))
                if digest == entry.digest:
                    changed[entry.start : entry.end] = bytes(entry.blocks)
        self._clear_zero_runs(changed, hole_start, self.blocks)
        return list(_runs(changed))

    def _clear_zero_runs(self, changed: bytearray, first: int, end: int) -> None:
        """In a hole of `old`, filled blocks that are still zero are unchanged."""
        start = changed.find(1, first, end)
        while start >= 0:
            stop = changed.find(0, start, min(start + CHUNK_MAX_BLOCKS, end))
            stop = stop if stop >= 0 else min(start + CHUNK_MAX_BLOCKS, end)
            if is_zero(self.data(start, stop)):
                changed[start:stop] = bytes(stop - start)
            start = changed.find(1, stop, end)

    def rechunk(self, runs: Sequence[BlockRun]) -> list[LeafEntry]:
        """Return the entries of the segment after the changes in `runs` (from `changed_runs`)."""
        if runs and runs[0] == (0, self.blocks):
            return self._chunk_all()
        old = self.old.entries
        result: list[LeafEntry] = []
        taken = 0  # old entries before this number are copied or replaced
        position = 0  # blocks before this one are done
        number = 0
        while number < len(runs):
            start, end = runs[number]
            start = max(self._restart(start), position)
            while taken < len(old) and old[taken].end <= start:
                result.append(old[taken])
                taken += 1
            position = start
            number += 1
            while position < end or not self._in_step(position):
                position = self._next_chunk(position, result)
                while number < len(runs) and runs[number][0] < position:
                    end = max(end, runs[number][1])
                    number += 1
            while taken < len(old) and old[taken].start < position:
                taken += 1
        result.extend(old[taken:])
        return [entry for entry in result if entry.start < self.blocks]

    def _chunk_all(self) -> list[LeafEntry]:
        """The common first backup: everything is here and nothing can be kept."""
        digest_of, view = self._digester.chunk, self.view
        return [
            LeafEntry(
                start,
                blocks,
                digest_of(view[start * BLOCK_BYTES : (start + blocks) * BLOCK_BYTES]),
            )
            for start, blocks in self._chunker.chunks(self.data(0, self.blocks))
        ]

    def _restart(self, block: int) -> int:
        """Where chunking must begin for a change at `block`: see the module's invariant."""
        entries = self.old.entries
        number = self.old.first_at_or_after(block)
        if number < len(entries) and entries[number].start <= block:
            return entries[number].start
        if number and entries[number - 1].end == block:
            return entries[number - 1].start
        return block

    def _in_step(self, block: int) -> bool:
        """Whether no old chunk reaches across `block`, so that the old boundaries hold again."""
        if block >= self.blocks:
            return True
        entries = self.old.entries
        number = self.old.first_at_or_after(block)
        return number == len(entries) or entries[number].start >= block

    def _next_chunk(self, start: int, result: list[LeafEntry]) -> int:
        """Append the chunk at `start`, or skip the zero blocks there; return where it ended."""
        first = min(start + self._chunker.rule.min_blocks, self.blocks)
        self._classify(start, first)
        if self._marks.zeros[start]:
            data = self._marks.zeros.find(0, start, first)
            return data if data >= 0 else first
        end: int | None = None
        ahead = start
        while end is None and ahead < self.blocks:
            ahead = min(ahead + _LOOK_AHEAD_BLOCKS, self.blocks)
            self._classify(start, ahead)
            end = self._chunker.next_end(self._marks, start, ahead)
        end = end or self.blocks
        digest = self._digester.chunk(self.data(start, end))
        result.append(LeafEntry(start, end - start, digest))
        return end

    def _classify(self, first: int, end: int) -> None:
        """Know the marks of blocks [first, end), fetching old content that is not here."""
        start = self._classified.find(0, first, end)
        while start >= 0:
            filled_end = self._filled.find(0, start)  # classify in one go what is here anyway
            stop = max(end, filled_end if filled_end >= 0 else self.blocks)
            known = self._classified.find(1, start, stop)
            stop = known if known >= 0 else stop
            self._fetch(start, stop)
            self._marks.put(start, self._chunker.classify(self.data(start, stop)))
            self._classified[start:stop] = b"\1" * (stop - start)
            start = self._classified.find(0, stop, end)

    def _fetch(self, first: int, end: int) -> None:
        """Fill what is missing of [first, end) from the repository."""
        if self._filled.find(0, first, end) < 0:
            return
        entries = []
        number = self.old.first_at_or_after(first)
        while number < len(self.old.entries) and self.old.entries[number].start < end:
            entries.append(self.old.entries[number])
            number += 1
        raw_of = self._load([entry.digest for entry in entries])
        missing = bytearray(1 - filled for filled in self._filled[first:end])
        for start, stop in _runs(missing):
            self.fill_zeros(first + start, first + stop)
        for entry in entries:
            raw = raw_of[entry.digest]
            low, high = max(entry.start, first), min(entry.end, end)
            for start, stop in _runs(missing[low - first : high - first]):
                begin = (low + start - entry.start) * BLOCK_BYTES
                piece = raw[begin : begin + (stop - start) * BLOCK_BYTES]
                self.data(low + start, low + stop)[: len(piece)] = piece


def _runs(flags: bytearray) -> list[BlockRun]:
    """The maximal runs of ones."""
    runs = []
    start = flags.find(1)
    while start >= 0:
        end = flags.find(0, start)
        end = end if end >= 0 else len(flags)
        runs.append((start, end))
        start = flags.find(1, end)
    return runs
