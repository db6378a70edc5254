"""The disk in a VHDX file and its parents, compared with a bytearray."""

from __future__ import annotations

import functools
import random
import struct
import uuid
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperv.vhdx.errors import (
    CorruptDiskFileError,
    DiskFileError,
    NotADiskFileError,
    ParentMismatchError,
    ParentMissingError,
    TruncatedDiskFileError,
    UnsupportedDiskFileError,
)
from hyperv.vhdx.parent_reference import ParentReference
from hyperv.vhdx.reader import DiskReader, ExtentKind, open_disk_file
from hyperv.vhdx.source import ByteSource, Wanted, read_ranges
from tests.support.memory_source import BatchMemorySource, MemorySource
from tests.support.vhdx_files import (
    BAT_AT,
    BAT_GUID,
    METADATA_AT,
    MIB,
    PARTIAL,
    PRESENT,
    MadeVhdx,
    guid,
    made_header,
    sealed,
)


def opened(*chain: MadeVhdx) -> DiskReader:
    """`chain`: newest first."""
    parents = iter([MemorySource(made.build()) for made in chain[1:]])
    return open_disk_file(MemorySource(chain[0].build()), lambda _: next(parents))


@functools.cache
def content(seed: int, length: int = MIB) -> bytes:
    return random.Random(seed).randbytes(length)


def check(disk: DiskReader, expected: bytes, seed: int = 0) -> None:
    """Whole and random ranges, buffers that were not zeros, and a map that does not lie."""
    assert disk.size_bytes == len(expected)
    assert disk.read_at(0, len(expected)) == expected
    rng = random.Random(seed)
    for _ in range(20):
        offset = rng.randrange(len(expected))
        length = rng.randrange(len(expected) - offset + 1)
        buffer = bytearray(b"\xee" * length)
        disk.read_into(offset, memoryview(buffer))
        assert buffer == expected[offset : offset + length]
        at = offset
        for extent in disk.map_extents(offset, length):
            assert extent.offset == at
            at = extent.end
            if extent.kind is ExtentKind.ZERO:
                assert not any(expected[extent.offset : extent.end])
        assert at == offset + length


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@pytest.mark.parametrize("block_bytes", [MIB, 4 * MIB])
def test_blocks_of_every_state_read_as_what_they_are(sector_bytes: int, block_bytes: int) -> None:
    """Present blocks have their bytes wherever they stand; all other states are zeros."""
    size = 5 * block_bytes + 3 * sector_bytes  # the last block is not full
    last = content(2, 3 * sector_bytes)
    made = MadeVhdx(
        disk_bytes=size, block_bytes=block_bytes, sector_bytes=sector_bytes,
        blocks={5: (PRESENT, last), 1: (PRESENT, content(1, block_bytes)), 2: 1, 3: 2, 4: 3},
    )  # fmt: skip
    disk = opened(made)
    expected = bytes(block_bytes) + content(1, block_bytes) + bytes(3 * block_bytes) + last
    check(disk, expected)
    assert disk.facts.logical_sector_bytes == sector_bytes
    assert disk.facts.disk_id == made.disk_id
    assert [e.kind.value for e in disk.map_extents(0, size)] == ["zero", "data", "zero", "data"]


def test_the_last_block_may_end_with_the_disk() -> None:
    """qemu writes no more of it; the file may end there."""
    made = MadeVhdx(
        disk_bytes=MIB + 512, blocks={0: (PRESENT, content(1)), 1: (PRESENT, b"x" * 512)}
    )
    raw = made.build()[: BAT_AT + 2 * MIB + 512]
    assert open_disk_file(MemorySource(raw)).read_at(MIB, 512) == b"x" * 512


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32), levels=st.integers(1, 4), sector_bytes=st.sampled_from([512, 4096])
)
def test_a_chain_reads_the_newest_of_every_sector(
    seed: int, levels: int, sector_bytes: int
) -> None:
    """Absent blocks and clear bits of a bitmap show the parent; zero blocks hide it."""
    rng = random.Random(seed)
    base_blocks = rng.randrange(1, 5)
    expected = bytearray()
    chain: list[MadeVhdx] = []
    for level in range(levels):
        size = (base_blocks + level) * MIB - rng.randrange(0, 3) * sector_bytes  # children may grow
        expected.extend(bytes(size - len(expected)))
        made = MadeVhdx(
            disk_bytes=size, sector_bytes=sector_bytes, parent=chain[0] if chain else None
        )
        for block in rng.sample(range(-(-size // MIB)), -(-size // MIB)):  # any order in the file
            state = rng.choice([0, 0, 1, 2, 3, PRESENT, *([PARTIAL] * 4 if level else [])])
            start, end = block * MIB, min(size, (block + 1) * MIB)
            mine = rng.randbytes(MIB)
            made.blocks[block] = (state, mine) if state in (PRESENT, PARTIAL) else state
            if state == PRESENT:
                expected[start:end] = mine[: end - start]
            elif state in (1, 2, 3):
                expected[start:end] = bytes(end - start)
            elif state == PARTIAL:
                density = rng.choice([0.01, 0.5, 0.99])
                bits = [int(rng.random() < density) for _ in range(MIB // sector_bytes)]
                made.bits[block] = bits
                for number, bit in enumerate(bits):
                    at = start + number * sector_bytes
                    if bit and at < end:
                        expected[at : at + sector_bytes] = mine[at - start :][:sector_bytes]
        chain.insert(0, made)
    check(opened(*chain), bytes(expected), seed)


def test_bitmaps_beyond_the_first_chunk_are_found() -> None:
    """A chunk has 2^23 sectors; the bitmap of the second stands in its own place of the table."""
    parent = MadeVhdx(disk_bytes=(4096 + 3) * MIB)
    child = MadeVhdx(
        disk_bytes=parent.disk_bytes, parent=parent,
        blocks={4097: (PARTIAL, content(4)), 1: (PARTIAL, content(5))},
        bits={4097: [0, 1] * 1024, 1: [1, 0] * 1024},
    )  # fmt: skip
    disk = opened(child, parent)
    for block, seed, first in ((4097, 4, 512), (1, 5, 0)):
        read = disk.read_at(block * MIB, 1024)
        assert read[first : first + 512] == content(seed)[first : first + 512]
        assert not any(read[512 - first : 1024 - first])


def test_a_parent_is_taken_only_in_the_state_the_child_was_made_of() -> None:
    """Another content id, another sector size or no file at all is a typed error, not a disk."""
    parent = MadeVhdx(disk_bytes=MIB)
    child = MadeVhdx(disk_bytes=MIB, parent=parent, parent_path="..\\base disks\\p.vhdx")
    seen: list[ParentReference] = []

    def nothing(reference: ParentReference) -> ByteSource | None:
        seen.append(reference)
        return None

    with pytest.raises(ParentMissingError, match=r"p\.vhdx"):
        open_disk_file(MemorySource(child.build()), nothing)
    assert seen[0].file_name == "p.vhdx"
    assert seen[0].linkages == (parent.content_id,)
    with pytest.raises(ParentMissingError):
        open_disk_file(MemorySource(child.build()))
    with pytest.raises(ParentMismatchError, match="content id"):
        opened(child, MadeVhdx(disk_bytes=MIB))
    other = MadeVhdx(disk_bytes=MIB, sector_bytes=4096, content_id=parent.content_id)
    with pytest.raises(ParentMismatchError, match="sectors of 4096"):
        opened(child, other)


def test_a_chain_that_leads_to_itself_ends() -> None:
    """A file that names itself as parent is refused after a bounded number of steps."""
    content_id = uuid.uuid4()
    made = MadeVhdx(disk_bytes=MIB, content_id=content_id)
    made.parent = made
    raw = made.build()
    with pytest.raises(CorruptDiskFileError, match="64 files"):
        open_disk_file(MemorySource(raw), lambda _: MemorySource(raw))


def test_scattered_blocks_are_asked_for_in_one_batch() -> None:
    """A source that takes batches gets one; neighbours come in one range, order does not matter."""
    blocks = {number: (PRESENT, content(number)) for number in (0, 9, 4, 5, 2)}
    source = BatchMemorySource(MadeVhdx(disk_bytes=10 * MIB, blocks=dict(blocks)).build())
    disk = open_disk_file(source)
    source.batches.clear()
    assert disk.read_at(4 * MIB, 6 * MIB) == content(4) + content(5) + bytes(3 * MIB) + content(9)
    assert [len(batch) for batch in source.batches] == [1]  # 9, 4 and 5 stand together
    source.batches.clear()
    assert disk.read_at(0, 3 * MIB) == content(0) + bytes(MIB) + content(2)
    assert [len(batch) for batch in source.batches] == [2]


def test_a_block_of_every_other_sector_is_one_read_of_each_file() -> None:
    """Small gaps are read over: 2048 sectors from two files are two reads, not 2048."""
    parent = MadeVhdx(disk_bytes=MIB, blocks={0: (PRESENT, content(1))})
    child = MadeVhdx(
        disk_bytes=MIB, parent=parent, blocks={0: (PARTIAL, content(2))}, bits={0: [0, 1] * 1024}
    )
    sources = [MemorySource(child.build()), MemorySource(parent.build())]
    disk = open_disk_file(sources[0], lambda _: sources[1])
    disk.read_at(0, 512)
    for source in sources:
        source.reads.clear()
    disk.read_at(0, MIB)
    assert [len(source.reads) for source in sources] == [1, 1]


def test_what_is_read_over_gaps_is_bounded() -> None:
    """Many small ranges close together are joined, but no read is longer than 8 MiB."""
    file = content(3) * 20
    source = MemorySource(file)
    buffer = bytearray(20 * MIB)
    wanted = [
        Wanted(at, memoryview(buffer)[at : at + 4096]) for at in range(0, len(file), 32 << 10)
    ]
    read_ranges(source, wanted)
    assert len(source.reads) == 3
    assert max(length for _, length in source.reads) <= 8 * MIB
    for each in wanted:
        assert each.buffer == file[each.offset : each.end]


def patched(raw: bytes, at: int, new: bytes) -> bytes:
    return raw[:at] + new + raw[at + len(new) :]


def resealed(raw: bytes, at: int, new: bytes, *, start: int, length: int) -> bytes:
    """Change a structure and give it the checksum it should then have."""
    raw = patched(raw, at, new)
    return patched(raw, start, sealed(raw[start : start + length]))


def entry(index: int, value: int) -> Callable[[bytes], bytes]:
    return lambda raw: patched(raw, BAT_AT + index * 8, struct.pack("<Q", value))


def item(number: int, value: bytes) -> Callable[[bytes], bytes]:
    """Overwrite the content of a metadata item: 8, 8, 16, 4 and 4 bytes stand in a row."""
    at = METADATA_AT + (64 << 10) + (0, 8, 16, 32, 36)[number]
    return lambda raw: patched(raw, at, value)


def both_headers(field_at: int, value: bytes) -> Callable[[bytes], bytes]:
    return both_copies(field_at, value, starts=(64 << 10, 128 << 10), length=4096)


def both_region_tables(field_at: int, value: bytes) -> Callable[[bytes], bytes]:
    return both_copies(field_at, value, starts=(192 << 10, 256 << 10), length=64 << 10)


def both_copies(
    field_at: int, value: bytes, *, starts: tuple[int, int], length: int
) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        for start in starts:
            raw = resealed(raw, start + field_at, value, start=start, length=length)
        return raw

    return change


PAYLOAD_AT = BAT_AT + MIB
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], type[DiskFileError], str]] = {
    "not a vhdx": (lambda raw: b"x" + raw[1:], NotADiskFileError, "VHD"),
    "both headers damaged": (
        lambda raw: patched(patched(raw, 66000, b"x"), 132000, b"x"),
        CorruptDiskFileError,
        "header",
    ),
    "both region tables damaged": (
        lambda raw: patched(patched(raw, 197000, b"x"), 263000, b"x"),
        CorruptDiskFileError,
        "region table",
    ),
    "a region twice": (
        both_region_tables(48, guid(BAT_GUID)), CorruptDiskFileError, "twice"),
    "no metadata region": (both_region_tables(8, b"\1"), CorruptDiskFileError, "missing"),
    "an unknown required region": (
        both_region_tables(48, b"\1" * 16), UnsupportedDiskFileError, "region 01010101"),
    "a region not in whole MiB": (both_region_tables(32, b"\1"), CorruptDiskFileError, "bytes at"),
    "header of version 2": (
        both_headers(66, struct.pack("<H", 2)), UnsupportedDiskFileError, "version 2"),
    "both headers claim to be the newest": (
        lambda raw: resealed(raw, 65544, struct.pack("<Q", 2), start=65536, length=4096),
        CorruptDiskFileError,
        "both copies",
    ),
    "log named, but empty": (
        both_headers(48, b"\x11" * 16), CorruptDiskFileError, "no valid sequence"),
    "cut in the header section": (lambda raw: raw[:300_000], TruncatedDiskFileError, "section"),
    "cut in the block table": (lambda raw: raw[: BAT_AT + 8], TruncatedDiskFileError, "table"),
    "cut in a block": (lambda raw: raw[:-512], TruncatedDiskFileError, "block"),
    "two blocks in one place": (entry(1, PAYLOAD_AT | 6), CorruptDiskFileError, "two things"),
    "a block over the metadata": (entry(1, METADATA_AT | 6), CorruptDiskFileError, "two things"),
    "a block over the log": (entry(1, MIB | 6), CorruptDiskFileError, "two things"),
    "a block over the headers": (entry(1, 6), CorruptDiskFileError, "offset 0"),
    "a block behind the end": (entry(1, 1 << 60 | 6), TruncatedDiskFileError, "block 1"),
    "reserved bits": (entry(1, PAYLOAD_AT + MIB | 1 << 10 | 6), CorruptDiskFileError, "reserved"),
    "state 5": (entry(1, 5), CorruptDiskFileError, "state 5"),
    "partial without parent": (entry(1, PAYLOAD_AT + MIB | 7), CorruptDiskFileError, "parent"),
    "block of 3 MiB": (item(0, struct.pack("<I", 3 * MIB)), UnsupportedDiskFileError, "blocks"),
    "block of 512 MiB": (item(0, struct.pack("<I", 1 << 29)), UnsupportedDiskFileError, "blocks"),
    "disk of 65 TiB": (item(1, struct.pack("<Q", 65 << 40)), UnsupportedDiskFileError, "disk"),
    "table too small": (item(1, struct.pack("<Q", 60 << 40)), CorruptDiskFileError, "entries"),
    "disk without size": (item(1, bytes(8)), UnsupportedDiskFileError, "0 bytes"),
    "disk of odd size": (item(1, struct.pack("<Q", MIB + 1)), UnsupportedDiskFileError, "disk"),
    "sectors of 1 KiB": (item(3, struct.pack("<I", 1024)), UnsupportedDiskFileError, "sectors"),
    "no metadata table": (
        lambda raw: patched(raw, METADATA_AT, b"x"), CorruptDiskFileError, "signature"),
    "an unknown required item": (
        lambda raw: patched(raw, METADATA_AT + 4 * 32, b"\1" * 16),
        UnsupportedDiskFileError,
        "metadata item 01010101",
    ),
    "an item outside the region": (
        lambda raw: patched(raw, METADATA_AT + 32 + 16, struct.pack("<I", MIB)),
        CorruptDiskFileError,
        "CAA16737".lower(),
    ),
    "an item twice": (
        lambda raw: patched(raw, METADATA_AT + 96, raw[METADATA_AT + 32 : METADATA_AT + 48]),
        CorruptDiskFileError,
        "twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str) -> None:
    """Each kind has its error, which says where; nothing is read around it."""
    change, kind, words = DAMAGE[name]
    made = MadeVhdx(disk_bytes=2 * MIB, blocks={0: (PRESENT, content(1)), 1: (PRESENT, content(2))})
    with pytest.raises(kind, match=words):
        open_disk_file(MemorySource(change(made.build())))


@pytest.mark.parametrize("copy_at", [64 << 10, 128 << 10, 192 << 10, 256 << 10])
def test_one_damaged_copy_of_header_or_region_table_is_no_matter(copy_at: int) -> None:
    """The other copy is used."""
    raw = MadeVhdx(disk_bytes=MIB, blocks={0: (PRESENT, content(1))}).build()
    disk = open_disk_file(MemorySource(patched(raw, copy_at + 20, b"damage")))
    assert disk.read_at(0, MIB) == content(1)


@pytest.mark.parametrize("newer", [64 << 10, 128 << 10])
def test_the_header_with_the_higher_number_is_in_force(newer: int) -> None:
    """Whichever copy it is."""
    raw = MadeVhdx(disk_bytes=MIB).build()
    for at, number in ((64 << 10, 8), (128 << 10, 7)):
        content_id = uuid.UUID(int=9 if at == newer else 1)
        raw = patched(
            raw, at, made_header(number if newer == 64 << 10 else 15 - number, content_id)
        )
    assert open_disk_file(MemorySource(raw)).facts.content_id == uuid.UUID(int=9)


def test_a_bitmap_shares_its_place_with_nothing() -> None:
    """Writes to a block in the place of a bitmap would change whose sectors are whose."""
    parent = MadeVhdx(disk_bytes=2 * MIB)
    child = MadeVhdx(
        disk_bytes=2 * MIB, parent=parent, bits={0: [1] * 2048},
        blocks={0: (PARTIAL, content(1)), 1: (PRESENT, content(2))},
    )  # fmt: skip
    raw = child.build()
    bitmap = raw[BAT_AT + child.chunk_ratio * 8 :][:8]
    with pytest.raises(CorruptDiskFileError, match="two things"):
        open_disk_file(MemorySource(patched(raw, BAT_AT + 8, bitmap)))


def test_a_partial_block_needs_its_bitmap() -> None:
    """Without the bitmap nobody knows whose sectors are whose."""
    parent = MadeVhdx(disk_bytes=MIB)
    child = MadeVhdx(disk_bytes=MIB, parent=parent, blocks={0: (PARTIAL, content(1))})
    with pytest.raises(CorruptDiskFileError, match="bitmap of block 0"):
        opened(child, parent)
