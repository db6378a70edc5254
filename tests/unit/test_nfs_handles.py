"""File handles: the same for good, and nobody can make one up."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nfs_server.handles import HANDLE_BYTES, FileRef, HandleCodec

KEY = bytes(range(32))
U64 = st.integers(0, (1 << 64) - 1)


def test_a_handle_stays_what_it_is() -> None:
    """Golden bytes: hosts keep handles over our upgrades."""
    fields = "484e4601 0000000000000007 000000000000002a 00000000"
    tag = "e31621aecd30ad12061ba8edfedc52bf"
    assert HandleCodec(KEY).encode(7, 42) == bytes.fromhex(fields + tag)


@given(U64, U64)
def test_every_handle_names_its_file(tree_id: int, number: int) -> None:
    """40 bytes that decode in any other process with the same key."""
    handle = HandleCodec(KEY).encode(tree_id, number)
    assert len(handle) == HANDLE_BYTES <= 56
    assert HandleCodec(KEY).decode(handle) == FileRef(tree_id, number)


@given(U64, U64, st.integers(0, HANDLE_BYTES * 8 - 1))
def test_any_flipped_bit_makes_it_no_handle(tree_id: int, number: int, bit: int) -> None:
    """A file number cannot be changed into another one."""
    codec = HandleCodec(KEY)
    handle = bytearray(codec.encode(tree_id, number))
    handle[bit // 8] ^= 1 << bit % 8
    assert codec.decode(bytes(handle)) is None


@given(st.binary(max_size=64))
@example(bytes(HANDLE_BYTES))
@example(b"")
def test_arbitrary_bytes_are_no_handle(raw: bytes) -> None:
    """Whatever a client sends."""
    assert HandleCodec(KEY).decode(raw) is None


def test_another_key_makes_other_handles() -> None:
    """An appliance takes none of another one's."""
    handle = HandleCodec(KEY).encode(7, 42)
    assert HandleCodec(bytes(32)).decode(handle) is None


def test_a_key_has_32_bytes() -> None:
    """A short key would be a weak one."""
    with pytest.raises(ValueError, match="32 bytes"):
        HandleCodec(KEY[1:])
