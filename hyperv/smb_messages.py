"""The few SMB 2 messages that we pack and take apart ourselves: READ, and every header.

Data path: `smb_reads` packs requests with it, `smb_transport` takes answers apart. The library that
does everything else about SMB builds an object per field, which is too slow for what a disk is made
of. Pure: bytes in, values out. Source: [MS-SMB2] 2.2.1.2, 2.2.19, 2.2.20, 2.2.41.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

PLAIN: Final = b"\xfeSMB"
SEALED: Final = b"\xfdSMB"
HEADER_BYTES: Final = 64
READ_HEAD_BYTES: Final = 80  # header and fixed part of a READ answer; the data follows
SEAL_BYTES: Final = 52  # the transform header before a sealed message
READ: Final = 8
CREDIT_BYTES: Final = 65536
FLAG_ANSWER: Final = 0x1
FLAG_SIGNED: Final = 0x8
FLAG_DFS: Final = 0x10000000
STATUS_PENDING: Final = 0x103

_HEADER = struct.Struct("<4sHHIHHIIQIIQ16s")
_READ_REQUEST = struct.Struct("<HBBIQ16sIIIHHB")
_READ_ANSWER = struct.Struct("<HBBIII")
assert _HEADER.size == HEADER_BYTES
assert _HEADER.size + _READ_ANSWER.size == READ_HEAD_BYTES


class Header(NamedTuple):
    """Of an answer."""

    status: int
    command: int
    credits: int
    flags: int
    next_command: int
    message_id: int


def parse_header(head: bytes | bytearray | memoryview) -> Header:
    """`head`: at least HEADER_BYTES of an unsealed message."""
    fields = _HEADER.unpack_from(head)
    return Header(
        status=fields[3],
        command=fields[4],
        credits=fields[5],
        flags=fields[6],
        next_command=fields[7],
        message_id=fields[8],
    )


def read_data_place(head: bytes | bytearray | memoryview) -> tuple[int, int]:
    """(offset in the message, length) of the data of a READ answer; READ_HEAD_BYTES are needed."""
    _, offset, _, length, _, _ = _READ_ANSWER.unpack_from(head, HEADER_BYTES)
    return offset, length


class ReadRequest(NamedTuple):
    message_id: int
    credits_used: int
    credits_asked: int
    flags: int
    tree_id: int
    session_id: int
    file_id: bytes
    offset: int
    length: int

    def packed(self) -> bytes:
        """The message, its signature zero."""
        return _HEADER.pack(
            PLAIN,
            HEADER_BYTES,
            self.credits_used,
            0,
            READ,
            self.credits_asked,
            self.flags,
            0,
            self.message_id,
            0,
            self.tree_id,
            self.session_id,
            bytes(16),
        ) + _READ_REQUEST.pack(
            49,  # the size that the structure says of itself, with a byte of its empty buffer
            READ_HEAD_BYTES,  # where we should like the data
            0,
            self.length,
            self.offset,
            self.file_id,
            0,
            0,
            0,
            0,
            0,
            0,
        )


def cost(length: int) -> int:
    """Credits of a read, 3.1.5.2."""
    return max(length - 1, 0) // CREDIT_BYTES + 1
