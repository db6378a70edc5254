"""The disk in a VHD file: fixed, dynamic, differencing, damaged."""

from __future__ import annotations

import contextlib
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
from hyperv.vhdx.reader import open_disk_file
from tests.support.memory_source import MemorySource
from tests.support.vhd_files import TABLE_AT, dynamic_vhd, fixed_vhd, with_checksum

MIB = 1 << 20
ALL = [1] * 2048


@functools.cache
def content(seed: int, length: int = MIB) -> bytes:
    return random.Random(seed).randbytes(length)


def read(raw: bytes) -> bytes:
    disk = open_disk_file(MemorySource(raw))
    return disk.read_at(0, disk.size_bytes)


def test_a_fixed_disk_is_all_before_the_footer() -> None:
    """To the sector; its end is not taken from the geometry."""
    assert read(fixed_vhd(content(1, 5 * 512))) == content(1, 5 * 512)


def test_blocks_of_a_dynamic_disk_read_from_where_they_are() -> None:
    """In any order; absent ones are zeros, and the last is as long as the disk needs."""
    last = content(3, 7 * 512)
    raw = dynamic_vhd(3 * MIB + 7 * 512, {3: (last, ALL), 0: (content(2), ALL)})
    assert read(raw) == content(2) + bytes(2 * MIB) + last
    disk = open_disk_file(MemorySource(raw))
    kinds = [extent.kind.value for extent in disk.map_extents(0, disk.size_bytes)]
    assert kinds == ["data", "zero", "data"]


def test_the_copy_of_the_footer_is_used_when_the_file_ends_without_one() -> None:
    """A host failed while the file grew."""
    raw = dynamic_vhd(MIB, {0: (content(2), ALL)})
    assert read(raw[:-512] + bytes(512)) == content(2)
    assert read(raw[:-512]) == content(2)


def test_sectors_of_a_child_come_from_it_or_its_parent() -> None:
    """By the bitmap, highest bit first; the parent is asked for by its path and checked by id."""
    bits = [int(number % 3 == 0) for number in range(2048)]
    parent_id = uuid.uuid4()
    parent = dynamic_vhd(3 * MIB, {0: (content(1), ALL), 1: (content(2), ALL)}, own_id=parent_id)
    child = dynamic_vhd(
        3 * MIB, {0: (content(3), bits), 2: (content(4), ALL)}, parent=(parent_id, ".\\base.vhd")
    )
    asked: list[ParentReference] = []

    def find(reference: ParentReference) -> MemorySource:
        asked.append(reference)
        return MemorySource(parent)

    disk = open_disk_file(MemorySource(child), find)
    mixed = b"".join(
        content(3 if bit else 1)[number * 512 : (number + 1) * 512]
        for number, bit in enumerate(bits)
    )
    assert disk.read_at(0, 3 * MIB) == mixed + content(2) + content(4)
    assert disk.read_at(511, 1026) == mixed[511 : 511 + 1026]
    assert asked[0].file_name == "base.vhd"
    with pytest.raises(ParentMissingError, match=r"base\.vhd"):
        open_disk_file(MemorySource(child))
    with pytest.raises(ParentMismatchError):
        open_disk_file(MemorySource(child), lambda _: MemorySource(dynamic_vhd(3 * MIB, {})))


def entry(block: int, sector: int) -> Callable[[bytes], bytes]:
    at = TABLE_AT + 4 * block
    return lambda raw: raw[:at] + struct.pack(">I", sector) + raw[at + 4 :]


def header_field(at: int, value: int) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        header = raw[512:1536]
        header = header[:at] + struct.pack(">I", value) + header[at + 4 :]
        return raw[:512] + with_checksum(header, 36) + raw[1536:]

    return change


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], type[DiskFileError], str]] = {
    "nothing of a vhd": (lambda raw: bytes(len(raw)), NotADiskFileError, "footer"),
    "empty": (lambda raw: b"", NotADiskFileError, "footer"),
    "both footers damaged": (
        lambda raw: raw[:9] + b"x" + raw[10:-400] + b"x" + raw[-399:],
        CorruptDiskFileError,
        "footer",
    ),
    "header damaged": (
        lambda raw: raw[:600] + b"x" + raw[601:], CorruptDiskFileError, "checksum"),
    "cut in a block": (lambda raw: raw[: TABLE_AT + 5000], TruncatedDiskFileError, "block"),
    "cut in the table": (lambda raw: raw[:TABLE_AT], TruncatedDiskFileError, "table"),
    "blocks overlap": (entry(1, 10), CorruptDiskFileError, "share"),
    "a block over the table": (entry(0, 3), CorruptDiskFileError, "lies over"),
    "a block behind the end": (entry(1, 1 << 31), TruncatedDiskFileError, "block"),
    "too few entries": (header_field(28, 1), CorruptDiskFileError, "1 blocks"),
    "blocks of 3 MiB": (header_field(32, 3 * MIB), UnsupportedDiskFileError, "blocks"),
    "blocks of nothing": (header_field(32, 0), UnsupportedDiskFileError, "blocks"),
    "header of version 2": (header_field(24, 2 << 16), UnsupportedDiskFileError, "version"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str) -> None:
    """Each kind has its error; nothing is read around it."""
    change, kind, words = DAMAGE[name]
    with pytest.raises(kind, match=words):
        read(change(dynamic_vhd(2 * MIB, {0: (content(1), ALL)})))


@settings(max_examples=120, deadline=None)
@given(at=st.integers(0, TABLE_AT + 600), new=st.binary(min_size=1, max_size=8))
def test_whatever_stands_in_its_structures_ends_in_a_typed_error_or_a_disk(
    at: int, new: bytes
) -> None:
    """No other exception; what is under a checksum is found or mended."""
    raw = dynamic_vhd(2 * MIB, {0: (content(1), ALL)})
    changed = raw[:at] + new + raw[at + len(new) :]
    with contextlib.suppress(DiskFileError):
        found = read(changed)
        if at + len(new) <= TABLE_AT:
            assert found == content(1) + bytes(MIB)
