"""Replies of the transmission phase, as lists of buffers to be written in one go.

Pure functions. Once structured replies are negotiated, READ and BLOCK_STATUS are answered with
chunks, even when they fail; other commands use the shorter simple reply, as the protocol allows.
Source: doc/proto.md, "Simple reply message", "Structured reply chunk message".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nbd_server import protocol
from nbd_server.backend import Buffer
from nbd_server.protocol import (
    CHUNK_DONE,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ChunkType,
    Command,
    NbdErrno,
    Status,
)

HOLE_GRANULE_BYTES = 64 << 10  # zeros are looked for in pieces of this size
MAX_STATUS_EXTENTS = 8192  # 64 KiB of reply; the client asks on from where it ends
_MAX_MESSAGE_BYTES = 256

ZEROS = bytes(1 << 20)
"""`ZEROS.startswith(data)` is a memcmp that stops at the first differing byte: about 90 ns for
data that are not zeros, 140 ns for 4 KiB of zeros (measured)."""

_pack_data = protocol.DATA_CHUNK.pack
_pack_hole = protocol.HOLE_CHUNK.pack


def simple_reply(cookie: int, errno: int = 0) -> bytes:
    return protocol.SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, errno, cookie)


def none_chunk(cookie: int) -> bytes:
    return protocol.CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, ChunkType.NONE, cookie, 0)


def error_reply(
    *, command: int, cookie: int, errno: NbdErrno, message: str, structured: bool
) -> bytes:
    if not structured or command not in (Command.READ, Command.BLOCK_STATUS):
        return simple_reply(cookie, errno)
    text = message.encode()[:_MAX_MESSAGE_BYTES]
    text = text.decode(errors="ignore").encode()  # never half a character
    header = protocol.ERROR_CHUNK.pack(
        STRUCTURED_REPLY_MAGIC,
        CHUNK_DONE,
        ChunkType.ERROR,
        cookie,
        6 + len(text),
        errno,
        len(text),
    )
    return header + text


def read_reply(
    cookie: int,
    offset: int,
    data: Buffer,
    *,
    structured: bool,
    fragment: bool,
    last: bool = True,
) -> list[Buffer]:
    """`fragment`: zeros may be sent as holes (the client did not set DF).

    `last`: with structured replies, whether these chunks are the end of the answer.
    """
    if not structured:
        return [simple_reply(cookie), data]
    if not data:
        return [none_chunk(cookie)]
    if not fragment:
        return [data_header(CHUNK_DONE, cookie, offset, len(data)), data]
    buffers: list[Buffer] = []
    pieces = _zero_runs(data)
    for number, (start, end, is_zero) in enumerate(pieces, 1):
        flags = CHUNK_DONE if last and number == len(pieces) else 0
        if is_zero:
            buffers.append(_hole_chunk(flags, cookie, offset + start, end - start))
        else:
            piece = data if end - start == len(data) else memoryview(data)[start:end]
            buffers += [data_header(flags, cookie, offset + start, end - start), piece]
    return buffers


def data_header(flags: int, cookie: int, offset: int, length: int) -> bytes:
    """The start of an OFFSET_DATA chunk, to be followed by `length` bytes of data."""
    return _pack_data(
        STRUCTURED_REPLY_MAGIC, flags, ChunkType.OFFSET_DATA, cookie, 8 + length, offset
    )


def status_reply(cookie: int, extents: Iterable[tuple[int, Status]]) -> bytes:
    """`extents`: what `status_extents` returned."""
    body = b"".join([protocol.STATUS_EXTENT.pack(length, flags) for length, flags in extents])
    header = protocol.STATUS_CHUNK.pack(
        STRUCTURED_REPLY_MAGIC,
        CHUNK_DONE,
        ChunkType.BLOCK_STATUS,
        cookie,
        4 + len(body),
        protocol.ALLOCATION_CONTEXT_ID,
    )
    return header + body


def status_extents(
    extents: Sequence[tuple[int, bool]], length: int, *, one: bool
) -> list[tuple[int, Status]]:
    """Join equal neighbours and end with the request at the latest, so lengths fit 32 bits."""
    result: list[tuple[int, Status]] = []
    left = length
    for extent_bytes, is_hole in extents:
        status = Status.HOLE | Status.ZERO if is_hole else Status.DATA
        taken = min(extent_bytes, left)
        if taken <= 0:
            continue
        if result and result[-1][1] == status:
            result[-1] = (result[-1][0] + taken, status)
        elif result and (one or len(result) == MAX_STATUS_EXTENTS):
            break
        else:
            result.append((taken, status))
        left -= taken
    if not result:  # a backend that says nothing: "data" is always legal
        result.append((length, Status.DATA))
    return result


def _zero_runs(data: Buffer) -> list[tuple[int, int, bool]]:
    """Cut `data` into (start, end, all zeros), neighbours differing."""
    length = len(data)
    if length <= HOLE_GRANULE_BYTES:
        return [(0, length, ZEROS.startswith(data))]
    view = memoryview(data)
    runs: list[tuple[int, int, bool]] = []
    for start in range(0, length, HOLE_GRANULE_BYTES):
        end = min(start + HOLE_GRANULE_BYTES, length)
        is_zero = ZEROS.startswith(view[start:end])
        if runs and runs[-1][2] == is_zero:
            runs[-1] = (runs[-1][0], end, is_zero)
        else:
            runs.append((start, end, is_zero))
    return runs


def _hole_chunk(flags: int, cookie: int, offset: int, length: int) -> bytes:
    return _pack_hole(
        STRUCTURED_REPLY_MAGIC, flags, ChunkType.OFFSET_HOLE, cookie, 12, offset, length
    )
