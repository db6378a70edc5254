"""Where chunks end: each rule against its definition, and against what it has always given."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from appliance.repository.chunker import CHUNK_RULES, Chunker, ChunkRule
from appliance.repository.format import BLOCK_BYTES

SEED = 15264143974859410720
ALWAYS_GIVEN = {
    1: [
        6,
        7,
        25,
        19,
        10,
        7,
        7,
        7,
        12,
        6,
        29,
        4,
        7,
        10,
        11,
        45,
        28,
        5,
        12,
        4,
        27,
        13,
        11,
        9,
        18,
        12,
        4,
        45,
    ],
    2: [
        12,
        19,
        10,
        11,
        12,
        6,
        6,
        10,
        14,
        14,
        16,
        9,
        9,
        10,
        9,
        10,
        16,
        10,
        13,
        24,
        5,
        11,
        7,
        11,
        14,
        10,
        14,
        9,
        17,
        13,
        4,
        23,
        15,
        7,
    ],
}


def numbered_blocks(count: int) -> memoryview:
    """Blocks of which none is like another."""
    blocks = [number.to_bytes(8, "little") * (BLOCK_BYTES // 8) for number in range(1, count + 1)]
    return memoryview(b"".join(blocks))


def mixed_blocks(source: random.Random, count: int) -> memoryview:
    """Runs of zeros, of one block over and over, of blocks none like another."""
    data = bytearray()
    while len(data) < count * BLOCK_BYTES:
        run = source.randrange(1, 90)
        kind = source.randrange(3)
        same = source.randbytes(8) * (BLOCK_BYTES // 8)
        for _ in range(run):
            data += (bytes(BLOCK_BYTES), same, source.randbytes(8) * (BLOCK_BYTES // 8))[kind]
    return memoryview(data)[: count * BLOCK_BYTES]


def by_definition(data: memoryview, seed: int, rule: ChunkRule) -> list[tuple[int, int]]:
    """The chunks, block by block, as `docs/format.md` says it."""
    chunks, length = [], 0
    count = len(data) // BLOCK_BYTES
    for number in range(count):
        block = data[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
        zero = not any(block)
        if zero and length:
            chunks.append((number - length, length))
        length = 0 if zero else length + 1
        one_in = rule.strict_one_in if length < rule.normal_blocks else rule.lax_one_in
        small = xxh3_64_intdigest(block, seed) < 2**64 // one_in
        last = length == rule.max_blocks or number + 1 == count
        if length and (last or (small and length >= rule.min_blocks)):
            chunks.append((number + 1 - length, length))
            length = 0
    return chunks


@pytest.mark.parametrize("number", CHUNK_RULES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), blocks=st.integers(1, 500))
def test_chunks_end_where_the_rule_says(number: int, seed: int, blocks: int) -> None:
    """The marks and searches of the chunker give what looking at block after block gives."""
    rule = CHUNK_RULES[number]
    data = mixed_blocks(random.Random(seed), blocks)
    assert list(Chunker(seed, rule).chunks(data)) == by_definition(data, seed, rule)


@pytest.mark.parametrize("number", CHUNK_RULES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**64 - 1))
def test_the_end_of_a_chunk_is_known_as_soon_as_its_blocks_are(number: int, seed: int) -> None:
    """With fewer blocks known it is not; with any more it is the same one."""
    chunker = Chunker(seed, CHUNK_RULES[number])
    data = bytes(numbered_blocks(1)) + mixed_blocks(random.Random(seed), 99)
    marks = chunker.classify(memoryview(data))
    [(_, found), *_] = chunker.chunks(memoryview(data))
    needed = found + marks.zeros[found]  # a zero block is looked at to end the chunk before it
    for known in range(1, 101):
        assert chunker.next_end(marks, 0, known) == (found if known >= needed else None)


@pytest.mark.parametrize("number", CHUNK_RULES)
def test_a_rule_cuts_as_it_always_has(number: int) -> None:
    """Else backups would find nothing of what their repository holds: make a new rule instead."""
    chunks = list(Chunker(SEED, CHUNK_RULES[number]).chunks(numbered_blocks(400)))
    assert [blocks for _, blocks in chunks] == ALWAYS_GIVEN[number]
    assert all(one[0] + one[1] == other[0] for one, other in pairwise(chunks))
