"""Damaged and hostile VHDX and VHD files end in a typed error or in bytes, within bounds.

Header, region table and log have checksums: a flipped byte there never changes what is read. Block
table, metadata and bitmaps have none: there the promise is a typed error or some disk, never an
exception of another kind, and no memory that the file did not pay for.
"""

from __future__ import annotations

import contextlib
import functools
import random
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hyperv.vhdx.errors import DiskFileError
from hyperv.vhdx.reader import open_disk_file
from tests.support.memory_source import MemorySource
from tests.support.vhdx_files import (
    BAT_AT,
    LOG_AT,
    METADATA_AT,
    MIB,
    PAGE,
    PARTIAL,
    PRESENT,
    MadeVhdx,
    with_log,
)

MOST_READ = 3 * MIB


@functools.cache
def sample(kind: str) -> tuple[bytes, bytes, bytes]:
    """Return file, parent's file and content of the disk."""
    rng = random.Random(4)
    old, new = rng.randbytes(2 * MIB), rng.randbytes(2 * MIB)
    parent = MadeVhdx(disk_bytes=2 * MIB, blocks={0: (PRESENT, old[:MIB]), 1: (PRESENT, old[MIB:])})
    if kind == "plain":
        return parent.build(), b"", old
    child = MadeVhdx(
        disk_bytes=2 * MIB, parent=parent,
        blocks={0: (PRESENT, new[:MIB]), 1: (PARTIAL, new[MIB:])}, bits={1: [1] * 1024},
    )  # fmt: skip
    file = child.build()
    if kind == "dirty":
        table = file[BAT_AT : BAT_AT + PAGE]
        stale = file[:BAT_AT] + bytes(PAGE) + file[BAT_AT + PAGE :]
        file = with_log(stale, [[(BAT_AT, 2 * PAGE)], [(BAT_AT, table)]], at=3 * PAGE)
    return file, parent.build(), new[: MIB + MIB // 2] + old[MIB + MIB // 2 :]


def read(kind: str, change: Callable[[bytearray], None]) -> bytes:
    """Raises: only DiskFileError."""
    file, parent, _ = sample(kind)
    changed = bytearray(file)
    change(changed)
    disk = open_disk_file(MemorySource(bytes(changed)), lambda _: MemorySource(parent))
    length = min(disk.size_bytes, MOST_READ)
    disk.map_extents(0, disk.size_bytes)
    return disk.read_at(0, length)


def flip(at: int, bits: int) -> Callable[[bytearray], None]:
    def change(file: bytearray) -> None:
        file[at] ^= bits

    return change


CHECKED = st.one_of(
    st.integers(0, 7), st.integers(64 << 10, (64 << 10) + 100), st.integers(128 << 10, 132 << 10),
    st.integers(192 << 10, 320 << 10),
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(at=CHECKED, bits=st.integers(1, 255), kind=st.sampled_from(["plain", "child", "dirty"]))
def test_a_flipped_byte_under_a_checksum_is_found_or_mended(at: int, bits: int, kind: str) -> None:
    """The right bytes from the other copy, or a typed error."""
    try:
        found = read(kind, flip(at, bits))
    except DiskFileError:
        return
    assert found == sample(kind)[2]


@settings(max_examples=120, deadline=None)
@given(at=st.integers(0, 6 * PAGE), bits=st.integers(1, 255))
@example(at=3 * PAGE, bits=1)
@example(at=5 * PAGE + 8, bits=255)
def test_a_flipped_byte_in_the_log_is_found(at: int, bits: int) -> None:
    """A broken entry makes the log invalid, or ends it as one that was never finished does."""
    try:
        found = read("dirty", flip(LOG_AT + at, bits))
    except DiskFileError:
        return
    all_present, after_first_entry = sample("dirty")[2], sample("plain")[2]  # nothing in the child
    assert found in (all_present, after_first_entry)


@settings(max_examples=250, deadline=None)
@given(
    where=st.sampled_from([(METADATA_AT, 32 * 7), (METADATA_AT + (64 << 10), 400), (BAT_AT, 16),
                           (BAT_AT + 4096 * 8, 8), (BAT_AT + 3 * MIB, 300)]),
    part=st.floats(0, 0.999), new=st.binary(min_size=1, max_size=8),
    kind=st.sampled_from(["plain", "child"]),
)  # fmt: skip
def test_what_has_no_checksum_ends_in_a_typed_error_or_a_disk(
    where: tuple[int, int], part: float, new: bytes, kind: str
) -> None:
    """No other exception, whatever stands there."""
    at = where[0] + int(where[1] * part)

    def change(file: bytearray) -> None:
        file[at : at + len(new)] = new

    with contextlib.suppress(DiskFileError):
        read(kind, change)


@settings(max_examples=100, deadline=None)
@given(length=st.one_of(st.integers(0, 600_000), st.integers(MIB, 6 * MIB)))
def test_a_file_cut_anywhere_is_found(length: int) -> None:
    """The right bytes or a typed error."""

    def cut(file: bytearray) -> None:
        del file[length:]

    with contextlib.suppress(DiskFileError):
        assert read("child", cut) == sample("child")[2]


@pytest.mark.parametrize("seed", range(3))
def test_no_file_makes_the_reader_allocate_what_it_claims(seed: int) -> None:
    """Sizes of 8 bytes of 0xff in every field: less than 64 MiB are ever allocated."""
    rng = random.Random(seed)
    tracemalloc.start()
    try:
        for _ in range(60):
            base, length = rng.choice([(METADATA_AT, 300), (METADATA_AT + 65536, 80), (BAT_AT, 16)])
            at = base + rng.randrange(length)

            def change(file: bytearray, at: int = at) -> None:
                file[at : at + rng.choice([1, 4, 8])] = b"\xff" * 8

            with contextlib.suppress(DiskFileError):
                read("child", change)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * MIB
