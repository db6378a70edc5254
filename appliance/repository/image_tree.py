"""A disk as a tree: leaves that list the chunks of a segment, inner nodes of 1024 children.

The tree of every disk has the same height: a root of level 3 covers 8 PiB, so a disk may grow
without its tree changing shape. Level 0 is a leaf (8 MiB of disk), level 1 covers 8 GiB, level 2
8 TiB. A child that is all zeros is absent. Nodes are named by their content like chunks, which
makes unchanged subtrees shared and the comparison of two points a walk over what differs.

Node (level, n) covers segments [n * 1024**level, (n + 1) * 1024**level).

Thread model: `TreeReader` may be shared (its cache is a plain dict, filled idempotently);
`TreeBuilder` belongs to one thread.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from appliance.repository.errors import CorruptError
from appliance.repository.format import (
    CHUNK_MAX_BLOCKS,
    EMPTY_DIGEST,
    INNER_ENTRY,
    INNER_MAGIC,
    LEAF_ENTRY,
    LEAF_MAGIC,
    NODE_CHILDREN,
    NODE_HEADER,
    REPOSITORY_VERSION,
    SEGMENT_BLOCKS,
    SEGMENT_BYTES,
)

ROOT_LEVEL = 3
MAX_SEGMENTS = NODE_CHILDREN**ROOT_LEVEL
_CACHED_NODES = 256  # of about 100 KB when full: 25 MiB at the very most

LoadNode = Callable[[bytes], bytes]
"""Return the raw node of a digest, verified; raises ChunkCorruptError, ChunkMissingError."""
StoreNode = Callable[[int, bytes], bytes]
"""Store a raw node of a level; return its digest."""


class LeafEntry(NamedTuple):
    """One chunk: its first block and length in blocks within the segment, and its digest."""

    start: int
    blocks: int
    digest: bytes

    @property
    def end(self) -> int:
        return self.start + self.blocks


@dataclass(frozen=True, slots=True)
class Leaf:
    """The chunks of one segment, ordered; blocks that no entry covers are zero."""

    entries: tuple[LeafEntry, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, entries: Sequence[LeafEntry]) -> Leaf:
        return cls(tuple(entries), tuple(entry.start for entry in entries))

    def first_at_or_after(self, block: int) -> int:
        """Return the number of the first entry that ends after `block`."""
        number = bisect_right(self.starts, block)
        return number - 1 if number and self.entries[number - 1].end > block else number


EMPTY_LEAF = Leaf((), ())


def encode_leaf(entries: Sequence[LeafEntry]) -> bytes:
    header = NODE_HEADER.pack(LEAF_MAGIC, REPOSITORY_VERSION, 0, len(entries))
    return header + b"".join([LEAF_ENTRY.pack(*entry) for entry in entries])


def decode_leaf(raw: bytes) -> Leaf:
    """Raises CorruptError: not a leaf, or its entries overlap or leave the segment."""
    _check_header(raw, LEAF_MAGIC, 0, LEAF_ENTRY.size)
    entries = [LeafEntry(*fields) for fields in LEAF_ENTRY.iter_unpack(raw[NODE_HEADER.size :])]
    end = 0
    for entry in entries:
        if entry.start < end or not 0 < entry.blocks <= CHUNK_MAX_BLOCKS:
            raise CorruptError(f"leaf entry at block {entry.start} is out of order")
        end = entry.end
    if end > SEGMENT_BLOCKS:
        raise CorruptError(f"leaf reaches block {end} of {SEGMENT_BLOCKS}")
    return Leaf.of(entries)


def encode_inner(level: int, children: Mapping[int, bytes]) -> bytes:
    header = NODE_HEADER.pack(INNER_MAGIC, REPOSITORY_VERSION, level, len(children))
    return header + b"".join(
        [INNER_ENTRY.pack(number, children[number]) for number in sorted(children)]
    )


def decode_inner(raw: bytes, level: int) -> dict[int, bytes]:
    """Raises CorruptError: not an inner node of this level, or its entries are out of order."""
    _check_header(raw, INNER_MAGIC, level, INNER_ENTRY.size)
    children: dict[int, bytes] = {}
    last = -1
    for number, digest in INNER_ENTRY.iter_unpack(raw[NODE_HEADER.size :]):
        if not last < number < NODE_CHILDREN or digest == EMPTY_DIGEST:
            raise CorruptError(f"inner node entry {number} is out of order")
        children[number] = digest
        last = number
    return children


def _check_header(raw: bytes, magic: bytes, level: int, entry_bytes: int) -> None:
    if len(raw) < NODE_HEADER.size:
        raise CorruptError("tree node is cut short")
    found, version, written_level, count = NODE_HEADER.unpack_from(raw)
    if found != magic or version != REPOSITORY_VERSION or written_level != level:
        raise CorruptError(f"not a tree node of level {level}")
    if len(raw) != NODE_HEADER.size + count * entry_bytes:
        raise CorruptError("tree node has another length than its entries")


class TreeReader:
    """Walks one tree; inner nodes are kept in a small cache."""

    def __init__(self, root: bytes, load: LoadNode) -> None:
        self.root = root
        self._load = load
        self._cache: OrderedDict[bytes, dict[int, bytes]] = OrderedDict()

    def inner(self, digest: bytes, level: int) -> dict[int, bytes]:
        """Return the children of an inner node; an empty digest has none. Do not change it."""
        if digest == EMPTY_DIGEST:
            return {}
        children = self._cache.get(digest)
        if children is None:
            children = decode_inner(self._load(digest), level)
            self._cache[digest] = children
            if len(self._cache) > _CACHED_NODES:
                self._cache.popitem(last=False)
        return children

    def node(self, level: int, number: int) -> bytes:
        """Return the digest of node (level, number), EMPTY_DIGEST where all is zero."""
        digest = self.root
        for above in range(ROOT_LEVEL, level, -1):
            child = number // NODE_CHILDREN ** (above - 1 - level) % NODE_CHILDREN
            digest = self.inner(digest, above).get(child, EMPTY_DIGEST)
        return digest

    def leaf_digest(self, segment: int) -> bytes:
        return self.node(0, segment)

    def leaf(self, segment: int) -> Leaf:
        """Raises ChunkMissingError, CorruptError."""
        return self.load_leaf(self.leaf_digest(segment))

    def load_leaf(self, digest: bytes) -> Leaf:
        return EMPTY_LEAF if digest == EMPTY_DIGEST else decode_leaf(self._load(digest))

    def leaves(self, first: int = 0, end: int = MAX_SEGMENTS) -> Iterator[tuple[int, bytes]]:
        """Yield (segment, leaf digest) of the leaves in [first, end) that are not all zero."""
        yield from self._leaves(self.root, ROOT_LEVEL, 0, first, end)

    def _leaves(
        self, digest: bytes, level: int, base: int, first: int, end: int
    ) -> Iterator[tuple[int, bytes]]:
        span = NODE_CHILDREN ** (level - 1)
        for number, child in self.inner(digest, level).items():
            start = base + number * span
            if start + span <= first or start >= end:
                continue
            if level == 1:
                yield start, child
            else:
                yield from self._leaves(child, level - 1, start, first, end)


def diff_trees(old: TreeReader, new: TreeReader) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (segment, old leaf, new leaf) where they differ; equal subtrees are not entered."""
    yield from _diff(old, new, old.root, new.root, ROOT_LEVEL, 0)


def _diff(
    old: TreeReader, new: TreeReader, left: bytes, right: bytes, level: int, base: int
) -> Iterator[tuple[int, bytes, bytes]]:
    if left == right:
        return
    if level == 0:
        yield base, left, right
        return
    span = NODE_CHILDREN ** (level - 1)
    lefts, rights = old.inner(left, level), new.inner(right, level)
    for number in sorted(lefts.keys() | rights.keys()):
        pair = lefts.get(number, EMPTY_DIGEST), rights.get(number, EMPTY_DIGEST)
        yield from _diff(old, new, *pair, level - 1, base + number * span)


class TreeBuilder:
    """Writes the nodes above a set of leaves, starting from a parent's tree or from nothing.

    Memory: one level-1 node, and one digest per 8 GiB of disk touched.
    """

    def __init__(self, parent: TreeReader, store: StoreNode) -> None:
        self._parent = parent
        self._store = store
        self._open_number = -1
        self._open: dict[int, bytes] = {}
        self._done: dict[int, bytes] = {}  # level-1 node -> digest

    def set_leaf(self, segment: int, digest: bytes) -> None:
        """Segments must come in ascending order. EMPTY_DIGEST makes the segment all zero."""
        number, child = divmod(segment, NODE_CHILDREN)
        if number != self._open_number:
            self._close_open()
            self._open_number = number
        self._open[child] = digest

    def finish(self) -> bytes:
        """Return the root's digest; EMPTY_DIGEST for a disk of zeros."""
        self._close_open()
        changed = self._done
        for level in range(2, ROOT_LEVEL + 1):
            groups: dict[int, dict[int, bytes]] = {}
            for number, digest in changed.items():
                groups.setdefault(number // NODE_CHILDREN, {})[number % NODE_CHILDREN] = digest
            changed = {
                number: self._write(level, number, group) for number, group in groups.items()
            }
        return changed.get(0, self._parent.root)

    def _close_open(self) -> None:
        if self._open:
            self._done[self._open_number] = self._write(1, self._open_number, self._open)
            self._open = {}

    def _write(self, level: int, number: int, changes: dict[int, bytes]) -> bytes:
        before = self._parent.inner(self._parent.node(level, number), level)
        children = {
            child: digest for child, digest in (before | changes).items() if digest != EMPTY_DIGEST
        }
        if children == before:
            return self._parent.node(level, number)
        return self._store(level, encode_inner(level, children)) if children else EMPTY_DIGEST


def segment_count(size_bytes: int) -> int:
    return -(-size_bytes // SEGMENT_BYTES)
