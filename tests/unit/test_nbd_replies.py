"""Replies and received payloads as values: nothing lost, nothing twice, nothing too long."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbd_server import protocol
from nbd_server.protocol import ChunkType, Command, NbdErrno, Status
from nbd_server.receive import BUFFER_BYTES, PIECE_BYTES, IncomingWrite, ReceiveBuffer
from nbd_server.replies import (
    HOLE_GRANULE_BYTES,
    MAX_STATUS_EXTENTS,
    error_reply,
    read_reply,
    status_extents,
)
from nbd_server.requests import PartialWrite, Request


def decoded(raw: bytes) -> list[tuple[int, int, bytes]]:
    """Cut structured chunks into (flags, type, payload)."""
    chunks = []
    while raw:
        magic, flags, kind, cookie, length = protocol.CHUNK.unpack_from(raw)
        assert (magic, cookie) == (protocol.STRUCTURED_REPLY_MAGIC, 7)
        chunks.append((flags, kind, raw[20 : 20 + length]))
        raw = raw[20 + length :]
    return chunks


pieces = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from([1, 511, 4096, HOLE_GRANULE_BYTES - 1, HOLE_GRANULE_BYTES, 200_000]),
    ),
    min_size=1,
    max_size=6,
)


@given(pieces)
def test_chunks_of_a_read_carry_exactly_its_bytes(parts: list[tuple[bool, int]]) -> None:
    """Holes and data together give the range back, in order; only the last chunk says DONE."""
    data = b"".join((b"\0" if zero else b"\xa5") * length for zero, length in parts)
    offset = 61 << 40
    raw = b"".join(read_reply(7, offset, data, structured=True, fragment=True))
    chunks, seen = decoded(raw), b""
    for _, kind, payload in chunks:
        (at,) = struct.unpack(">Q", payload[:8])
        assert at == offset + len(seen)
        if kind == ChunkType.OFFSET_HOLE:
            seen += bytes(struct.unpack(">I", payload[8:])[0])
        else:
            assert kind == ChunkType.OFFSET_DATA
            seen += payload[8:]
    assert seen == data
    assert [flags for flags, _, _ in chunks] == [0] * (len(chunks) - 1) + [1]


def test_zeros_cost_one_small_chunk() -> None:
    raw = b"".join(read_reply(7, 0, bytes(32 << 20), structured=True, fragment=True))
    assert len(raw) == 32


def test_a_read_that_must_not_fragment_is_one_data_chunk() -> None:
    data = bytes(HOLE_GRANULE_BYTES) + b"x" * HOLE_GRANULE_BYTES
    raw = b"".join(read_reply(7, 0, data, structured=True, fragment=False))
    assert [(kind, len(payload)) for _, kind, payload in decoded(raw)] == [
        (ChunkType.OFFSET_DATA, 8 + len(data))
    ]


def test_errors_take_the_form_that_was_negotiated() -> None:
    """READ must fail with a chunk once structured replies are on; others may be short."""
    error = {"cookie": 7, "errno": NbdErrno.EIO, "message": "ü" * 500}
    simple = error_reply(command=Command.READ, structured=False, **error)  # type: ignore[arg-type]
    assert simple == struct.pack(">IIQ", protocol.SIMPLE_REPLY_MAGIC, 5, 7)
    write = error_reply(command=Command.WRITE, structured=True, **error)  # type: ignore[arg-type]
    assert write == simple
    chunk = error_reply(command=Command.READ, structured=True, **error)  # type: ignore[arg-type]
    ((flags, kind, payload),) = decoded(chunk)
    errno, length = struct.unpack(">IH", payload[:6])
    assert (flags, kind, errno) == (1, ChunkType.ERROR, 5)
    assert payload[6:].decode() == "ü" * 128 and length == 256


@given(
    st.lists(st.tuples(st.integers(0, 1 << 34), st.booleans()), max_size=20),
    st.integers(1, 0xFFFFFFFF),
    st.booleans(),
)
def test_status_extents_stay_inside_the_request(
    extents: list[tuple[int, bool]], length: int, one: bool
) -> None:
    """Lengths fit 32 bits, neighbours differ, no length is zero, and something is always said."""
    result = status_extents(extents, length, one=one)
    assert 1 <= len(result) <= (1 if one else MAX_STATUS_EXTENTS)
    assert all(0 < taken <= 0xFFFFFFFF for taken, _ in result)
    assert sum(taken for taken, _ in result) <= length
    assert all(a[1] != b[1] for a, b in itertools.pairwise(result))
    model = [is_hole for taken, is_hole in extents if taken]
    if model:
        assert result[0][1] == (Status.HOLE | Status.ZERO if model[0] else Status.DATA)


def test_a_fragmented_disk_does_not_make_an_endless_status_reply() -> None:
    extents = [(512, bool(number % 2)) for number in range(100_000)]
    assert len(status_extents(extents, 0xFFFFFFFF, one=False)) == MAX_STATUS_EXTENTS


@settings(deadline=None)
@given(st.integers(1, 3 * PIECE_BYTES + 5), st.lists(st.integers(9000, PIECE_BYTES), min_size=1))
def test_a_payload_arrives_whole_however_it_is_cut(length: int, cuts: list[int]) -> None:
    """Pieces are contiguous, at most PIECE_BYTES each, and only the last one completes."""
    incoming = IncomingWrite(Request(Command.WRITE, 1, 7, 1000, length))
    offset, number = 1000, 0
    while not incoming.complete:
        count = min(cuts[number % len(cuts)], len(incoming.room()))
        assert count > 0
        incoming.room()[:count] = bytes([number % 251 + 1]) * count
        number += 1
        piece = incoming.received(count)
        if piece is not None:
            assert piece.offset == offset and piece.length == len(piece.payload) <= PIECE_BYTES
            assert 0 not in piece.payload[:1] and piece.payload[-1] != 0
            offset += piece.length
            assert (piece.part_of is None) == (length <= PIECE_BYTES)
            if isinstance(piece.part_of, PartialWrite):
                assert piece.part_of.received == incoming.complete
    assert offset == 1000 + length


@given(st.lists(st.tuples(st.integers(1, 100_000), st.integers(0, 100_000)), max_size=60))
def test_the_receive_buffer_keeps_the_order_of_bytes(steps: list[tuple[int, int]]) -> None:
    buffer, expected, counter = ReceiveBuffer(), b"", 0
    for arriving, taking in steps:
        room = buffer.room()
        arriving = min(arriving, len(room))
        fresh = bytes((counter + n) % 253 for n in range(0, arriving))
        counter += arriving
        room[:arriving] = fresh
        buffer.end += arriving
        expected += fresh
        taking = min(taking, len(expected))
        assert buffer.take(taking) == expected[:taking]
        expected = expected[taking:]
        assert len(buffer) == len(expected) <= BUFFER_BYTES
    assert buffer.take(len(expected)) == expected


@pytest.mark.parametrize("count", [0, 5, 99])
def test_dropping_takes_no_more_than_there_is(count: int) -> None:
    buffer = ReceiveBuffer()
    buffer.room()[:5] = b"abcde"
    buffer.end += 5
    assert buffer.drop(count) == min(count, 5)
