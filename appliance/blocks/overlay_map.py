"""The overlay's map: which layer holds each block of the disk, and where in the data file.

A disk is cut into segments (8 MiB) of blocks (4 KiB). A segment has a background, BASE until the
whole of it was zeroed; a touched segment also has one state byte per block, and once it holds data
a slot: the segment-sized place in the sparse data file, so that offsets there grow with what is
written, not with the disk, and neighbours on the disk stay neighbours in the file. One byte per
segment is 8 MiB of memory (unallocated until touched) for a 62 TiB disk; a touched segment costs
2 KiB.

A state that the journal does not know yet carries the PENDING bit; `take_changes` turns those into
records. So memory is bounded by what was touched, however many writes come between two flushes,
and neighbouring writes become one record by themselves.

Invariants: a block never returns to BASE and a segment's background never does; a segment keeps
its slot while the process lives; blocks go to DATA only after their bytes are in the data file.

Thread model: `mark_*`, `assign_slot` and `take_changes` under the overlay's write lock. `kind_of`,
`runs` and `data_offset` need no lock: each looks at a segment through one atomic operation (the
GIL's), and by the invariants whatever a reader saw stays a legal answer while a write is under way:
readers look for states first and at the background second, writers change the background first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from appliance.base.units import KIB, MIB
from appliance.blocks.overlay_errors import OverlayCorruptError
from appliance.blocks.overlay_journal import NO_SLOT, Kind, Record

BASE, DATA, ZERO = 0, 1, 2
MIXED = 3  # only as an answer of `kind_of`
_PENDING = 4
_NEW_DATA, _NEW_ZERO = DATA | _PENDING, ZERO | _PENDING
_SETTLED = bytes(value & 3 for value in range(256))
_ALL_RUNS = re.compile(rb"\x00+|[\x01\x05]+|[\x02\x06]+")
_NEW_RUNS = re.compile(rb"\x05+|\x06+")
_NEW_ZERO_RUNS = re.compile(rb"\x06+")
_ZERO_RUNS = re.compile(rb"[\x02\x06]+")
_BLOCK_KINDS = {DATA: Kind.DATA, ZERO: Kind.ZERO}

MAX_SEGMENTS = 1 << 24  # 128 TiB of 8 MiB segments


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    block_bytes: int = 4 * KIB
    segment_blocks: int = 2048

    def __post_init__(self) -> None:
        block = self.block_bytes
        if (
            not 512 <= block <= MIB
            or block & (block - 1)
            or not 1 <= self.segment_blocks <= 1 << 16
        ):
            raise ValueError(f"overlay geometry {self.block_bytes} x {self.segment_blocks}")

    @property
    def segment_bytes(self) -> int:
        return self.block_bytes * self.segment_blocks


class Run(NamedTuple):
    """Bytes of the disk that one layer holds; DATA runs do not cross segments."""

    kind: int
    offset: int
    length: int


class OverlayMap:
    def __init__(self, size_bytes: int, geometry: Geometry) -> None:
        self._block_bytes = geometry.block_bytes
        self._segment_blocks = geometry.segment_blocks
        self._segment_bytes = geometry.segment_bytes
        self._block_count = -(-size_bytes // geometry.block_bytes)
        self._segment_count = -(-size_bytes // geometry.segment_bytes)
        self._background = bytearray(self._segment_count)
        self._states: dict[int, bytearray] = {}
        self._slots: dict[int, int] = {}
        self._free_slots: list[int] = []
        self._changed: dict[int, tuple[int, int]] = {}  # segment -> blocks that may be pending
        self._zeroed: tuple[int, int] | None = None  # segments with a pending background lie within
        self.data_blocks = 0

    # reading: no lock

    def kind_of(self, offset: int, length: int) -> int:
        """Return the kind of a non-empty range; MIXED also where it crosses a segment's border."""
        segment, start = divmod(offset, self._segment_bytes)
        end = start + length
        if end > self._segment_bytes:
            return MIXED
        states = self._states.get(segment)
        if states is None:
            return self._background[segment] & 3
        first = start // self._block_bytes
        last = (end - 1) // self._block_bytes
        if first == last:
            return states[first] & 3
        part = states[first : last + 1].translate(_SETTLED)
        return part[0] if part.count(part[0]) == len(part) else MIXED

    def data_offset(self, offset: int) -> int:
        """Where in the data file the DATA byte at `offset` lies."""
        segment, start = divmod(offset, self._segment_bytes)
        return self._slots[segment] * self._segment_bytes + start

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        """Cut the range into runs, in order; the cost grows with what is touched inside it."""
        if not length:
            return
        end = offset + length
        for segment in self._touched(offset // self._segment_bytes, -(-end // self._segment_bytes)):
            start = segment * self._segment_bytes
            if offset < start:
                yield from self._background_runs(offset, start)
                offset = start
            stop = min(end, start + self._segment_bytes)
            states = self._states.get(segment)
            if states is None:  # zeroed since we looked
                yield from self._background_runs(offset, stop)
            else:
                yield from self._state_runs(states, start, offset, stop)
            offset = stop
        if offset < end:
            yield from self._background_runs(offset, end)

    def _touched(self, first: int, end: int) -> list[int]:
        if end - first <= len(self._states):
            return [segment for segment in range(first, end) if segment in self._states]
        return sorted(segment for segment in list(self._states) if first <= segment < end)

    def _state_runs(
        self, states: bytearray, segment_start: int, offset: int, end: int
    ) -> Iterator[Run]:
        first = (offset - segment_start) // self._block_bytes
        last = (end - 1 - segment_start) // self._block_bytes
        part = states[first : last + 1].translate(_SETTLED)
        part_start = segment_start + first * self._block_bytes
        for match in _ALL_RUNS.finditer(part):
            start = max(offset, part_start + match.start() * self._block_bytes)
            stop = min(end, part_start + match.end() * self._block_bytes)
            yield Run(part[match.start()], start, stop - start)

    def _background_runs(self, offset: int, end: int) -> Iterator[Run]:
        first = offset // self._segment_bytes
        part = self._background[first : -(-end // self._segment_bytes)]
        for match in _ALL_RUNS.finditer(part):
            start = max(offset, (first + match.start()) * self._segment_bytes)
            stop = min(end, (first + match.end()) * self._segment_bytes)
            yield Run(part[match.start()] & 3, start, stop - start)

    # changing: under the overlay's write lock

    def assign_slot(self, segment: int) -> int:
        slot = self._slots.get(segment)
        if slot is None:
            slot = self._free_slots.pop() if self._free_slots else len(self._slots)
            self._slots[segment] = slot
        return slot

    def mark_data(self, start: int, end: int) -> None:
        """Blocks [start, end), inside one segment, now hold their bytes in its slot."""
        segment, inner = divmod(start, self._segment_bytes)
        first = inner // self._block_bytes
        stop = -(-(inner + end - start) // self._block_bytes)
        states = self._states.get(segment) or self._touch(segment)
        added = stop - first - _count(states, DATA, first, stop)
        if added:
            states[first:stop] = bytes((_NEW_DATA,)) * (stop - first)
            self._note_change(segment, first, stop)
            self.data_blocks += added

    def mark_zero(self, start: int, end: int) -> list[tuple[int, int]]:
        """Blocks [start, end) now read as zeros.

        Returns ranges of the data file, as (offset, length), that nothing refers to any more.
        """
        freed: list[tuple[int, int]] = []
        first_whole = -(-start // self._segment_bytes)
        end_whole = end // self._segment_bytes
        if -(-end // self._block_bytes) == self._block_count:
            end_whole = self._segment_count  # the last segment may be shorter than the others
        if first_whole >= end_whole:  # no whole segment inside, at most one border
            border = first_whole * self._segment_bytes
            pieces = [(start, min(end, border)), (border, end)]
        else:
            self._zero_segments(first_whole, end_whole, freed)
            pieces = [
                (start, first_whole * self._segment_bytes),
                (end_whole * self._segment_bytes, end),
            ]
        for piece_start, piece_end in pieces:
            if piece_start < piece_end:
                self._zero_blocks(piece_start, piece_end, freed)
        return freed

    def take_changes(self) -> list[Record]:
        """Return what the journal does not know yet, and take it for known from now on."""
        records: list[Record] = []
        if self._zeroed is not None:
            first, end = self._zeroed
            part = self._background[first:end]
            records += [
                _zeroed_segments(first + match.start(), len(match[0]))
                for match in _NEW_ZERO_RUNS.finditer(part)
            ]
            self._background[first:end] = part.translate(_SETTLED)
            self._zeroed = None
        for segment, (first, stop) in sorted(self._changed.items()):
            states = self._states.get(segment)
            if states is not None:
                part = states[first:stop]
                records += self._records_of(segment, first, _NEW_RUNS.finditer(part))
                states[first:stop] = part.translate(_SETTLED)
        self._changed.clear()
        return records

    def all_records(self) -> list[Record]:
        """Return the shortest journal that makes this map."""
        records = [
            _zeroed_segments(match.start(), len(match[0]))
            for match in _ZERO_RUNS.finditer(self._background)
        ]
        for segment, states in sorted(self._states.items()):
            runs = _ALL_RUNS.finditer(bytes(states.translate(_SETTLED)))
            background = self._background[segment] & 3
            records += self._records_of(segment, 0, (m for m in runs if m[0][0] != background))
        return records

    def _records_of(
        self, segment: int, first: int, runs: Iterable[re.Match[bytes]]
    ) -> Iterator[Record]:
        slot = self._slots.get(segment, NO_SLOT)
        for match in runs:
            kind = _BLOCK_KINDS[match[0][0] & 3]
            yield Record(kind, segment, slot, first + match.start(), len(match[0]))

    def _note_change(self, segment: int, first: int, stop: int) -> None:
        known = self._changed.get(segment)
        if known is not None:
            first, stop = min(first, known[0]), max(stop, known[1])
        self._changed[segment] = (first, stop)

    def _touch(self, segment: int) -> bytearray:
        blocks = min(self._segment_blocks, self._block_count - segment * self._segment_blocks)
        # A pending background is journalled before the states, so here it counts as settled.
        states = bytearray((self._background[segment] & 3,)) * blocks
        self._states[segment] = states
        return states

    def _zero_segments(self, first: int, end: int, freed: list[tuple[int, int]]) -> None:
        self._background[first:end] = bytes((_NEW_ZERO,)) * (end - first)
        if self._zeroed is not None:
            first_pending, end_pending = self._zeroed
            self._zeroed = min(first, first_pending), max(end, end_pending)
        else:
            self._zeroed = first, end
        for segment in self._touched(first, end):
            states = self._states.pop(segment)
            held = _count(states, DATA, 0, len(states))
            if held:
                self.data_blocks -= held
                freed.append((self._slots[segment] * self._segment_bytes, self._segment_bytes))

    def _zero_blocks(self, start: int, end: int, freed: list[tuple[int, int]]) -> None:
        segment, inner = divmod(start, self._segment_bytes)
        states = self._states.get(segment)
        if states is None:
            if self._background[segment]:
                return
            states = self._touch(segment)
        first = inner // self._block_bytes
        stop = -(-(inner + end - start) // self._block_bytes)
        held = _count(states, DATA, first, stop)
        states[first:stop] = bytes((_NEW_ZERO,)) * (stop - first)
        self._note_change(segment, first, stop)
        if held:
            self.data_blocks -= held
            data_start = self._slots[segment] * self._segment_bytes + first * self._block_bytes
            freed.append((data_start, (stop - first) * self._block_bytes))
        if _count(states, ZERO, 0, len(states)) == len(states):
            self._zero_segments(segment, segment + 1, freed)

    # opening: before anybody else knows the map

    def replay(self, records: Iterable[Record]) -> None:
        """Apply a journal. Raises OverlayCorruptError for what no journal of this disk can say."""
        for record in records:
            if record.kind is Kind.ZERO_SEGMENTS:
                self._replay_zero_segments(record)
            else:
                self._replay_blocks(record)
        used = set(self._slots.values())
        if len(used) != len(self._slots):
            raise OverlayCorruptError("the journal gives one slot to two segments")
        self._free_slots = sorted(set(range(max(used, default=-1) + 1)) - used, reverse=True)
        self.data_blocks = sum(states.count(DATA) for states in self._states.values())

    def _replay_zero_segments(self, record: Record) -> None:
        end = record.segment + record.amount
        if not record.amount or end > self._segment_count:
            raise OverlayCorruptError(f"the journal names segments past the disk: {record}")
        self._background[record.segment : end] = bytes((ZERO,)) * record.amount
        for segment in self._touched(record.segment, end):
            del self._states[segment]

    def _replay_blocks(self, record: Record) -> None:
        if record.segment >= self._segment_count:
            raise OverlayCorruptError(f"the journal names a segment past the disk: {record}")
        states = self._states.get(record.segment) or self._touch(record.segment)
        stop = record.first + record.amount
        if not record.amount or stop > len(states):
            raise OverlayCorruptError(f"the journal names blocks past the segment: {record}")
        if record.slot != NO_SLOT:
            known = self._slots.setdefault(record.segment, record.slot)
            if known != record.slot or record.slot >= self._segment_count:
                raise OverlayCorruptError(f"the journal names a wrong slot: {record}")
        elif record.kind is Kind.DATA:
            raise OverlayCorruptError(f"the journal names data without a slot: {record}")
        value = DATA if record.kind is Kind.DATA else ZERO
        states[record.first : stop] = bytes((value,)) * record.amount


def _count(states: bytearray, kind: int, first: int, stop: int) -> int:
    return states.count(kind, first, stop) + states.count(kind | _PENDING, first, stop)


def _zeroed_segments(first: int, count: int) -> Record:
    return Record(Kind.ZERO_SEGMENTS, first, NO_SLOT, 0, count)
