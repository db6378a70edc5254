"""Content-defined chunk boundaries on 4 KiB blocks of one segment.

A `ChunkRule` says where: after a block whose XXH3-64 (seeded per repository) lies below a
threshold, once the chunk has its least length; at the most a cut is forced; a zero block ends a
chunk and belongs to none. The threshold is strict before the wanted length and lax from there on
(normalised chunking: Xia et al., FastCDC, USENIX ATC 2016), so that chunks are alike in length. The
decision depends on the start of the chunk and the blocks since, on nothing before: that is what
makes re-chunking around a change fall back in step with the old boundaries.

A repository keeps the rule it was made with, or new chunks would match next to none of its old
ones. So the numbers of a rule that is in use never change; a better one gets a new number. Any
reader takes any chunk of up to 64 blocks (`format.py`), whatever the rule.

The hash of a block costs 0.2 us in Python (*measured*), the hot part of this module; a comparison
with a threshold a tenth of that, everything else is per chunk. Pure and thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from appliance.repository.format import BLOCK_BYTES, CHUNK_MAX_BLOCKS, CHUNK_MAX_BYTES

_ZEROS = bytes(CHUNK_MAX_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRule:
    """Where chunks end; all lengths in blocks, the one that may end the chunk counted in.

    From `min_blocks` on one block in `strict_one_in` ends the chunk, from `normal_blocks` on one
    in `lax_one_in`; `max_blocks` is the most.
    """

    min_blocks: int
    normal_blocks: int
    max_blocks: int
    strict_one_in: int
    lax_one_in: int

    def __post_init__(self) -> None:
        assert 1 <= self.min_blocks <= self.normal_blocks <= self.max_blocks <= CHUNK_MAX_BLOCKS
        assert self.strict_one_in >= self.lax_one_in >= 1


CHUNK_RULES = {
    1: ChunkRule(min_blocks=4, normal_blocks=4, max_blocks=64, strict_one_in=12, lax_one_in=12),
    2: ChunkRule(min_blocks=4, normal_blocks=10, max_blocks=32, strict_one_in=32, lax_one_in=4),
}
"""The rules by the number that `config.json` holds: the one place where they stand."""

NEW_REPOSITORY_RULE = 2


@dataclass(frozen=True, slots=True)
class BlockMarks:
    """One byte (0 or 1) per block of a run: may it end a chunk, is it zero?

    `strict` and `lax` are one and the same where the rule has only one threshold.
    """

    strict: bytearray
    lax: bytearray
    zeros: bytearray

    @classmethod
    def none(cls, blocks: int) -> BlockMarks:
        return cls(bytearray(blocks), bytearray(blocks), bytearray(blocks))

    def put(self, first: int, marks: BlockMarks) -> None:
        """Take over `marks` for the blocks from `first` on."""
        end = first + len(marks.zeros)
        self.strict[first:end] = marks.strict
        self.lax[first:end] = marks.lax
        self.zeros[first:end] = marks.zeros


def is_zero(data: memoryview) -> bool:
    """Whether up to 256 KiB are all zero; a copy and a memcmp, as views compare bytewise."""
    return not (data[0] or data[-1]) and bytes(data) == _ZEROS[: len(data)]


class Chunker:
    def __init__(self, seed: int, rule: ChunkRule) -> None:
        self.rule = rule
        self._seed = seed
        self._strict_below = (1 << 64) // rule.strict_one_in
        self._lax_below = (1 << 64) // rule.lax_one_in
        self._zero_hash = xxh3_64_intdigest(_ZEROS[:BLOCK_BYTES], seed)

    def classify(self, data: memoryview) -> BlockMarks:
        """Return the marks of the blocks of `data`, which is a whole number of blocks.

        A zero run is confirmed byte by byte: a hash alone must never decide that data is dropped.
        (Two blocks with the hash of zeros and other content would at worst be stored as data.)
        """
        seed, zero_hash, hash_of = self._seed, self._zero_hash, xxh3_64_intdigest
        strict_below, lax_below = self._strict_below, self._lax_below
        hashes = [
            hash_of(data[start : start + BLOCK_BYTES], seed)
            for start in range(0, len(data), BLOCK_BYTES)
        ]
        lax = strict = bytearray([value < lax_below for value in hashes])
        if strict_below != lax_below:
            strict = bytearray([value < strict_below for value in hashes])
        zeros = bytearray(len(hashes))
        if zero_hash in hashes:
            looks_zero = bytearray([value == zero_hash for value in hashes])
            start = looks_zero.find(1)
            while start >= 0:
                end = looks_zero.find(0, start, start + CHUNK_MAX_BLOCKS)
                end = end if end >= 0 else min(start + CHUNK_MAX_BLOCKS, len(hashes))
                if is_zero(data[start * BLOCK_BYTES : end * BLOCK_BYTES]):
                    zeros[start:end] = looks_zero[start:end]
                start = looks_zero.find(1, end)
        return BlockMarks(strict, lax, zeros)

    def next_end(self, marks: BlockMarks, start: int, known: int) -> int | None:
        """Return the end (a block number) of the chunk that starts at `start`, not a zero block.

        None when it does not end within the blocks before `known`, where the marks stop.
        """
        rule = self.rule
        most = start + rule.max_blocks
        normal = start + rule.normal_blocks - 1
        stop = most if most < known else known
        strict_stop = normal if normal < stop else stop
        cut = marks.strict.find(1, start + rule.min_blocks - 1, strict_stop)
        if cut < 0:
            cut = marks.lax.find(1, normal, stop)
        end = cut + 1 if cut >= 0 else stop
        zero = marks.zeros.find(1, start, end)
        if zero >= 0:
            return zero
        return end if cut >= 0 or end == most else None

    def chunks(self, data: memoryview) -> Iterator[tuple[int, int]]:
        """Yield (first block, block count) of every chunk of a segment, in order."""
        marks = self.classify(data)
        limit = len(marks.zeros)
        start = marks.zeros.find(0)
        while start >= 0:
            end = self.next_end(marks, start, limit) or limit
            yield start, end - start
            start = marks.zeros.find(0, end)
