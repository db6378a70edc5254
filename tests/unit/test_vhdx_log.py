"""The log of a VHDX file is replayed in memory; what is stale in the file is never seen."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperv.vhdx.errors import (
    CorruptDiskFileError,
    DiskFileError,
    TruncatedDiskFileError,
    UnsupportedDiskFileError,
)
from hyperv.vhdx.header import Header, read_header
from hyperv.vhdx.log import replayed
from hyperv.vhdx.reader import open_disk_file
from tests.support.memory_source import MemorySource
from tests.support.vhdx_files import (
    BAT_AT,
    LOG_AT,
    LOG_BYTES,
    LOG_ID,
    METADATA_AT,
    MIB,
    PAGE,
    PRESENT,
    MadeVhdx,
    Update,
    log_entry,
    with_log,
)

CONTENT = random.Random(1).randbytes(2 * MIB)


def made_file() -> bytes:
    blocks = {1: (PRESENT, CONTENT[:MIB]), 0: (PRESENT, CONTENT[MIB:])}
    return MadeVhdx(disk_bytes=2 * MIB, blocks=dict(blocks)).build()


def page(file: bytes, at: int) -> Update:
    return at, file[at : at + PAGE]


def without(file: bytes, *pages: int) -> bytes:
    made = bytearray(file)
    for at in pages:
        made[at : at + PAGE] = b"\xbb" * PAGE
    return bytes(made)


@pytest.mark.parametrize("at", [0, 5 * PAGE, LOG_BYTES - 2 * PAGE], ids=["start", "middle", "wrap"])
def test_tables_that_are_only_in_the_log_are_used(at: int) -> None:
    """Block table and metadata are stale in the file; the disk reads right, wherever the log is."""
    file = made_file()
    item = METADATA_AT + (64 << 10)
    stale = without(file, BAT_AT, item)
    entries = [[page(file, item)], [(BAT_AT, b"\xcc" * PAGE)], [page(file, BAT_AT)]]
    disk = open_disk_file(MemorySource(with_log(stale, entries, at=at)))
    assert disk.read_at(0, 2 * MIB) == CONTENT[MIB:] + CONTENT[:MIB]


def test_the_file_is_never_written_and_content_may_be_in_the_log() -> None:
    """An update of a block of the disk is seen; zero descriptors clear what they cover."""
    file = made_file()
    block = file.index(CONTENT[:1000])
    dirty = with_log(file, [[(block + PAGE, b"\x01" * PAGE), (block + 8 * PAGE, 3 * PAGE)]])
    expected = bytearray(CONTENT[:MIB])
    expected[PAGE : 2 * PAGE] = b"\x01" * PAGE
    expected[8 * PAGE : 11 * PAGE] = bytes(3 * PAGE)
    disk = open_disk_file(MemorySource(dirty))
    assert disk.read_at(MIB, MIB) == expected
    assert disk.read_at(MIB + PAGE - 3, 10) == expected[PAGE - 3 : PAGE + 7]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_later_updates_win(data: st.DataObject) -> None:
    """Pages and zeroed ranges in any order read as a bytearray they were applied to."""
    file = MadeVhdx(disk_bytes=2 * MIB, blocks={0: (PRESENT, CONTENT[:MIB])}).build()
    start = len(file) - MIB
    expected = bytearray(file[start:])
    update = st.tuples(st.integers(0, 15), st.one_of(st.integers(1, 255), st.integers(-9, -1)))
    entries = []
    for drawn in data.draw(st.lists(st.lists(update, max_size=8), min_size=1, max_size=5)):
        updates: list[Update] = []
        for number, what in drawn:
            at = number * PAGE
            if what > 0:
                expected[at : at + PAGE] = bytes([what]) * PAGE
                updates.append((start + at, bytes([what]) * PAGE))
            else:
                expected[at : at - what * PAGE] = bytes(-what * PAGE)
                updates.append((start + at, -what * PAGE))
        entries.append(updates)
    disk = open_disk_file(MemorySource(with_log(file, entries)))
    assert disk.read_at(0, MIB) == expected
    at = data.draw(st.integers(0, 30 * PAGE))
    assert disk.read_at(at, PAGE + 7) == expected[at : at + PAGE + 7]


def replay(log: bytes, file_bytes: int = 4 * MIB) -> int:
    """Return the size of a file with this log, replayed."""
    header = Header(
        place=64 << 10,
        sequence=1, file_write_id=LOG_ID, data_write_id=LOG_ID, log_id=LOG_ID,
        log_offset=LOG_AT, log_bytes=len(log),
    )  # fmt: skip
    file = (bytes(MIB) + log).ljust(file_bytes, b"\0")
    return replayed(MemorySource(file), header).size_bytes


def test_the_sequence_with_the_highest_number_is_the_one_in_force() -> None:
    """Leftovers of older sequences, before and behind, and one that lacks its tail are not used."""
    log = bytearray(LOG_BYTES)

    def put(at: int, sequence: int, tail: int, last_bytes: int) -> None:
        entry = log_entry(sequence, tail, [(3 * MIB, PAGE)], MIB, last_bytes)
        log[at : at + len(entry)] = entry

    put(0, 7, 0, 5 * MIB)
    put(8 * PAGE, 20, 8 * PAGE, 6 * MIB)
    put(9 * PAGE, 21, 8 * PAGE, 7 * MIB)
    put(10 * PAGE, 9, 9 * PAGE, 8 * MIB)  # older than what stands before it
    put(30 * PAGE, 40, 29 * PAGE, 9 * MIB)  # its tail was overwritten
    assert replay(bytes(log)) == 7 * MIB


def test_a_file_shorter_than_the_log_says_is_truncated() -> None:
    """The log was written when the file was longer."""
    with pytest.raises(TruncatedDiskFileError, match="4194304"):
        replay(log_entry(3, 0, [(MIB, PAGE)], 4 * MIB).ljust(LOG_BYTES, b"\0"), 2 * MIB)


@pytest.mark.parametrize(
    ("entry", "kind", "words"),
    [
        (log_entry(3, 0, [(4 * MIB, PAGE)], MIB), CorruptDiskFileError, "at 4194304"),
        (log_entry(3, 0, [(64 << 10, PAGE)], MIB), CorruptDiskFileError, "at 65536"),
        (log_entry(3, 0, [(3 * MIB, 1 << 63)], MIB), CorruptDiskFileError, "update"),
        (log_entry(3, 0, [(3 * MIB, 100)], MIB), CorruptDiskFileError, "descriptor 0"),
        (log_entry(3, 0, [(3 * MIB + 1, PAGE)], MIB), CorruptDiskFileError, "descriptor 0"),
        (log_entry(3, 0, [], MIB, 1 << 60), UnsupportedDiskFileError, "1152921504606846976"),
    ],
)
def test_an_update_that_makes_no_sense_is_refused(
    entry: bytes, kind: type[DiskFileError], words: str
) -> None:
    """Behind the file, over the headers, not whole pages: named, and nothing is allocated."""
    with pytest.raises(kind, match=words):
        replay(entry.ljust(LOG_BYTES, b"\0"))


def test_a_log_that_was_made_to_be_slow_is_refused() -> None:
    """Entries in every sector that claim the whole log are not all hashed."""
    sector = struct.pack("<4sIIIQII", b"loge", 0, LOG_BYTES, 0, 3, 0, 0) + LOG_ID.bytes_le
    with pytest.raises(CorruptDiskFileError, match="overlap"):
        replay(sector.ljust(PAGE, b"\0") * (LOG_BYTES // PAGE))


def test_a_log_too_long_to_be_replayed_is_refused_before_it_is_read() -> None:
    """1 GiB of log costs one comparison."""
    file = MemorySource(made_file())
    header = read_header(file)
    file.reads.clear()
    long = Header(
        place=64 << 10,
        sequence=1, file_write_id=LOG_ID, data_write_id=LOG_ID, log_id=LOG_ID,
        log_offset=header.log_offset, log_bytes=1 << 30,
    )  # fmt: skip
    with pytest.raises(UnsupportedDiskFileError, match="1073741824"):
        replayed(file, long)
    assert file.reads == []
