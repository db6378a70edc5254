"""One disk of a recovery point as a `BlockReader`: tree and chunk store behind a bounded cache.

Data path: exports and the overlay read here. Chunks come whole from `served_chunks`, a cache that
all readers of a repository share; leaves are kept per reader. Nodes are proven by their digests.

Thread model: any number of threads. `try_read_at` never waits: cache hits, and now and then one
chunk whose record is in the page cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from appliance.blocks.device import check_range
from appliance.blocks.extents import ExtentKind, MappedExtent
from appliance.repository.chunk_store import ChunkStore
from appliance.repository.format import BLOCK_BYTES, EMPTY_DIGEST, SEGMENT_BYTES
from appliance.repository.image_tree import EMPTY_LEAF, Leaf, LeafEntry, TreeReader, decode_leaf
from appliance.repository.served_chunks import ServedChunks

_CACHED_LEAVES = 4096  # 32 GiB of disk; about 20 KiB each when full
_MAPPED_SEGMENTS = 64  # per answer of map_extents


class ImageReader:
    def __init__(
        self,
        chunks: ChunkStore,
        root: bytes,
        size_bytes: int,
        served: ServedChunks,
        *,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._chunks = chunks
        self._tree = TreeReader(root, chunks.load)
        self._size_bytes = size_bytes
        self._served = served
        self._leaves: OrderedDict[int, Leaf] = OrderedDict()
        self._on_close = on_close

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def tree(self) -> TreeReader:
        return self._tree

    def close(self) -> None:
        on_close, self._on_close = self._on_close, lambda: None
        on_close()

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self._size_bytes)
        at_once = self._read_inside(offset, length, self._served.get)
        if at_once is not None:
            return bytes(at_once)
        pieces: list[bytes | memoryview] = []
        done = 0
        while done < length:
            segment, start = divmod(offset + done, SEGMENT_BYTES)
            part = min(SEGMENT_BYTES - start, length - done)
            entries = _overlapping(self._leaf(segment), start, start + part)
            raw_of = self._chunks_of(entries)
            pieces += _pieces(start, part, entries, [raw_of[entry.digest] for entry in entries])
            done += part
        return b"".join(pieces)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self._size_bytes)
        buffer[:] = self.read_at(offset, len(buffer))

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        check_range(offset, length, self._size_bytes)
        inside = self._read_inside(offset, length, self._served.near)
        if inside is not None:
            return inside
        entries = self._near_entries(offset, length)
        if entries is None:
            return None
        start = offset % SEGMENT_BYTES
        raws: list[bytes] = []
        for entry in entries:
            raw = self._served.get(entry.digest)
            if raw is None:
                return None
            raws.append(raw)
        return b"".join(_pieces(start, length, entries, raws))

    def read_near_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview | None]:
        entries_of = [self._near_entries(offset, length) for offset, length in ranges]
        raw_of = self._served.near_many(
            {entry.digest for entries in entries_of for entry in entries or ()}
        )
        found: list[bytes | memoryview | None] = []
        for (offset, length), entries in zip(ranges, entries_of, strict=True):
            if entries is None or not all(entry.digest in raw_of for entry in entries):
                found.append(None)
                continue
            raws = [raw_of[entry.digest] for entry in entries]
            pieces = _pieces(offset % SEGMENT_BYTES, length, entries, raws)
            found.append(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        return found

    def _near_entries(self, offset: int, length: int) -> list[LeafEntry] | None:
        """What a range consists of; None: its leaf is not in memory, or it has several."""
        check_range(offset, length, self._size_bytes)
        segment, start = divmod(offset, SEGMENT_BYTES)
        leaf = self._leaves.get(segment)
        if leaf is None or start + length > SEGMENT_BYTES:
            return None
        return _overlapping(leaf, start, start + length)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self._size_bytes)
        end = offset + length
        first, last = offset // SEGMENT_BYTES, -(-end // SEGMENT_BYTES)
        mapped: list[MappedExtent] = []
        position = offset
        for looked_at, (segment, digest) in enumerate(self._tree.leaves(first, last)):
            if looked_at == _MAPPED_SEGMENTS:
                break
            base = segment * SEGMENT_BYTES
            for start, stop in _data_runs(self._leaf(segment, digest)):
                low, high = max(base + start, position), min(base + stop, end)
                if low < high:
                    _add(mapped, position, low, ExtentKind.ZERO)
                    _add(mapped, low, high, ExtentKind.DATA)
                    position = high
        else:
            _add(mapped, position, end, ExtentKind.ZERO)
            return mapped
        _add(mapped, position, min(segment * SEGMENT_BYTES, end), ExtentKind.ZERO)
        return mapped

    def prefetch(self, offset: int, length: int) -> None:
        """Bring the range into the chunk cache; what lies outside the disk is left out.

        Raises: as `read_at`.
        """
        end = min(offset + length, self._size_bytes)
        for segment in range(offset // SEGMENT_BYTES, -(-end // SEGMENT_BYTES)):
            base = segment * SEGMENT_BYTES
            low, high = max(offset - base, 0), min(end - base, SEGMENT_BYTES)
            self._chunks_of(_overlapping(self._leaf(segment), low, high))

    def _read_inside(
        self, offset: int, length: int, get: Callable[[bytes], bytes | None]
    ) -> bytes | memoryview | None:
        """Serve a range that lies inside one chunk or hole, the common small read."""
        segment, start = divmod(offset, SEGMENT_BYTES)
        leaf = self._leaves.get(segment)
        if leaf is None:
            return None
        number = leaf.first_at_or_after(start // BLOCK_BYTES)
        if number == len(leaf.entries):
            return bytes(length) if start + length <= SEGMENT_BYTES else None
        entry = leaf.entries[number]
        begin = start - entry.start * BLOCK_BYTES
        if begin < 0:
            return bytes(length) if begin + length <= 0 else None
        if begin + length > entry.blocks * BLOCK_BYTES:
            return None
        raw = get(entry.digest)
        return None if raw is None else memoryview(raw)[begin : begin + length]

    def _chunks_of(self, entries: list[LeafEntry]) -> dict[bytes, bytes]:
        return self._served.many(entry.digest for entry in entries)

    def _leaf(self, segment: int, digest: bytes | None = None) -> Leaf:
        leaf = self._leaves.get(segment)
        if leaf is None:
            digest = self._tree.leaf_digest(segment) if digest is None else digest
            leaf = EMPTY_LEAF if digest == EMPTY_DIGEST else decode_leaf(self._chunks.load(digest))
            self._leaves[segment] = leaf
            if len(self._leaves) > _CACHED_LEAVES:
                self._leaves.popitem(last=False)
        return leaf


def _overlapping(leaf: Leaf, start: int, end: int) -> list[LeafEntry]:
    """The entries that touch bytes [start, end) of the segment."""
    first = leaf.first_at_or_after(start // BLOCK_BYTES)
    stop = -(-end // BLOCK_BYTES)
    number = first
    while number < len(leaf.entries) and leaf.entries[number].start < stop:
        number += 1
    return list(leaf.entries[first:number])


def _pieces(
    start: int, length: int, entries: list[LeafEntry], raws: list[bytes]
) -> list[bytes | memoryview]:
    """The bytes [start, start + length) of a segment, as parts of chunks and zeros for holes."""
    pieces: list[bytes | memoryview] = []
    position, end = start, start + length
    for entry, raw in zip(entries, raws, strict=True):
        begin = entry.start * BLOCK_BYTES
        if begin > position:
            pieces.append(bytes(begin - position))
            position = begin
        high = min(begin + len(raw), end)
        whole = position == begin and high == begin + len(raw)
        pieces.append(raw if whole else memoryview(raw)[position - begin : high - begin])
        position = high
    if position < end:
        pieces.append(bytes(end - position))
    return pieces


def _data_runs(leaf: Leaf) -> list[tuple[int, int]]:
    """Byte runs of a segment that chunks cover, neighbours joined."""
    runs: list[tuple[int, int]] = []
    for entry in leaf.entries:
        start, end = entry.start * BLOCK_BYTES, entry.end * BLOCK_BYTES
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return runs


def _add(mapped: list[MappedExtent], start: int, end: int, kind: ExtentKind) -> None:
    """Append [start, end), joined to the last one when it is of the same kind."""
    if start >= end:
        return
    if mapped and mapped[-1].kind is kind:
        start = mapped.pop().offset
    mapped.append(MappedExtent(start, end - start, kind))
