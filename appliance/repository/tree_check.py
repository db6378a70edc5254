"""Walking the trees of all recovery points without stopping at damage.

First walk: every node is loaded and decoded once; what the points need is collected. Second walk,
only after damage was found: which disks, at which bytes, need a damaged digest.

Thread model: one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from appliance.base.run_context import CancelToken
from appliance.repository.errors import ChunkMissingError, CorruptError, UnreadableError
from appliance.repository.format import BLOCK_BYTES, EMPTY_DIGEST, NODE_CHILDREN, SEGMENT_BYTES
from appliance.repository.image_tree import ROOT_LEVEL, Leaf, decode_inner, decode_leaf
from appliance.repository.index_rows import prefixes_of
from appliance.repository.manifest import Manifest
from appliance.repository.mark import PrefixSet
from appliance.repository.pack_check import require_storage

if TYPE_CHECKING:
    from appliance.repository.repository import Repository

_LEAVES_AT_ONCE = 128


class Hit(NamedTuple):
    """A damaged digest that a disk needs, and the bytes of the disk that it stands for."""

    digest: bytes
    point_id: str
    vm: str
    disk: int
    offset: int
    length: int


class TreeCheck:
    def __init__(self, repository: Repository, cancel: CancelToken) -> None:
        self.needed = PrefixSet()
        self.bad_nodes: dict[bytes, str] = {}  # digest -> reason
        self.missing_nodes: set[bytes] = set()
        self.nodes = 0
        self._repository = repository
        self._chunks = repository.chunks
        self._cancel = cancel
        self._visited: set[bytes] = {EMPTY_DIGEST}

    def walk(self, manifests: Sequence[Manifest]) -> None:
        """Raises: CancelledError, StorageError."""
        for manifest in manifests:
            for disk in manifest.disks:
                self._inner([disk.root], ROOT_LEVEL)

    def _inner(self, digests: Sequence[bytes], level: int) -> None:
        fresh = [digest for digest in dict.fromkeys(digests) if digest not in self._visited]
        self._visited.update(fresh)
        for digest in fresh:
            self._cancel.check()
            self.needed.add(prefixes_of([digest]))
            raw = self._load(digest)
            if raw is None:
                continue
            try:
                children = list(decode_inner(raw, level).values())
            except CorruptError as error:
                self.bad_nodes[digest] = str(error)
                continue
            if level > 1:
                self._inner(children, level - 1)
            else:
                self._leaves(children)

    def _leaves(self, digests: Sequence[bytes]) -> None:
        fresh = [digest for digest in dict.fromkeys(digests) if digest not in self._visited]
        self._visited.update(fresh)
        for start in range(0, len(fresh), _LEAVES_AT_ONCE):
            batch = fresh[start : start + _LEAVES_AT_ONCE]
            self.needed.add(prefixes_of(batch))
            for digest, raw in self._load_many(batch).items():
                try:
                    leaf = decode_leaf(raw)
                except CorruptError as error:
                    self.bad_nodes[digest] = str(error)
                else:
                    self.needed.add(prefixes_of([entry.digest for entry in leaf.entries]))

    def _load_many(self, digests: Sequence[bytes]) -> dict[bytes, bytes]:
        try:
            loaded = self._chunks.load_many(digests)
            self.nodes += len(loaded)
            return loaded
        except CorruptError:
            found = ((digest, self._load(digest)) for digest in digests)
            return {digest: raw for digest, raw in found if raw is not None}

    def _load(self, digest: bytes) -> bytes | None:
        try:
            try:
                raw = self._chunks.load(digest)
            except UnreadableError:
                require_storage(self._repository)
                raw = self._chunks.load(digest)
        except ChunkMissingError:
            self.missing_nodes.add(digest)
            return None
        except CorruptError as error:
            self.bad_nodes[digest] = str(error)[:400]
            return None
        self.nodes += 1
        return raw


def find_hits(
    repository: Repository,
    manifests: Sequence[Manifest],
    bad: Collection[bytes],
    prefixes: PrefixSet | None = None,
) -> list[Hit]:
    """Return where the disks need a digest of `bad`, or one whose prefix is in `prefixes`."""
    search = _Search(repository, bad, prefixes or PrefixSet())
    hits = []
    for manifest in manifests:
        for disk in manifest.disks:
            for digest, segment, segments in search.below(disk.root, ROOT_LEVEL, 0):
                offset, length = segment, segments
                if offset >= disk.size_bytes:
                    continue
                length = min(length, disk.size_bytes - offset)
                hits.append(
                    Hit(digest, manifest.point_id, manifest.vm, disk.number, offset, length)
                )
    return hits


class _Search:
    def __init__(self, repository: Repository, bad: Collection[bytes], prefixes: PrefixSet) -> None:
        self._chunks = repository.chunks
        self._bad = frozenset(bad)
        self._prefixes = prefixes
        self._clean: set[bytes] = {EMPTY_DIGEST}  # subtrees without a hit

    def below(self, digest: bytes, level: int, first: int) -> list[tuple[bytes, int, int]]:
        """Return (digest, byte offset, bytes) of the hits; node (level) begins at `first`."""
        if digest in self._clean:
            return []
        span = NODE_CHILDREN**level
        if self._is_bad(digest):
            return [(digest, first * SEGMENT_BYTES, span * SEGMENT_BYTES)]
        try:
            raw = self._chunks.load(digest)
            if level == 0:
                found = self._in_leaf(decode_leaf(raw), first)
            else:
                found = [
                    hit
                    for number, child in decode_inner(raw, level).items()
                    for hit in self.below(
                        child, level - 1, first + number * NODE_CHILDREN ** (level - 1)
                    )
                ]
        except CorruptError:
            return [(digest, first * SEGMENT_BYTES, span * SEGMENT_BYTES)]
        if not found:
            self._clean.add(digest)
        return found

    def _in_leaf(self, leaf: Leaf, segment: int) -> list[tuple[bytes, int, int]]:
        base = segment * SEGMENT_BYTES
        return [
            (entry.digest, base + entry.start * BLOCK_BYTES, entry.blocks * BLOCK_BYTES)
            for entry in leaf.entries
            if self._is_bad(entry.digest)
        ]

    def _is_bad(self, digest: bytes) -> bool:
        if digest in self._bad:
            return True
        return bool(len(self._prefixes.array())) and bool(
            self._prefixes.contains(prefixes_of([digest]))[0]
        )
