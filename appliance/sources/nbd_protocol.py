"""NBD on the wire, the client's half: constants, structs and the handshake.

Source: the NBD project's doc/proto.md, sections "Newstyle negotiation", "Request message" and
"Structured reply chunk message". Big-endian. Only what `nbd_client` uses stands here.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from struct import Struct

from appliance.base.units import KIB, MIB
from appliance.sources.errors import NbdError

_GREETING = Struct(">QQH")
_OPTION = Struct(">QII")  # magic option length
_OPTION_REPLY = Struct(">QIII")  # magic option type length
_MAGIC, _HAVE_OPTION, _REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO, _OPT_STRUCTURED, _OPT_SET_META = 7, 8, 10
_REP_ACK, _REP_INFO, _REP_META = 1, 3, 4
_REP_ERROR = 1 << 31
_INFO_EXPORT = 0
_OPTION_LIMIT_BYTES = 64 * KIB
_ALLOCATION = b"base:allocation"

REQUEST = Struct(">IHHQQI")  # magic flags type cookie offset length
SIMPLE_REPLY = Struct(">IIQ")  # magic error cookie
CHUNK_REST = Struct(">I")  # a chunk's length, after 16 bytes as long as a simple reply:
CHUNK_START = Struct(">IHHQ")  # magic flags type cookie
assert (REQUEST.size, SIMPLE_REPLY.size, CHUNK_START.size) == (28, 16, 16)
REQUEST_MAGIC, SIMPLE_MAGIC, CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
READ, WRITE, DISCONNECT, FLUSH, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 2, 3, 6, 7
CHUNK_DONE = 1
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_ERROR = 0, 1, 2, 5, 1 << 15
STATE_ZERO = 2  # base:allocation: reads as zeros
FLAG_READ_ONLY, FLAG_ZEROES, FLAG_MULTI_CONN = 1 << 1, 1 << 6, 1 << 8
PAYLOAD_LIMIT_BYTES = 32 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What the handshake found out."""

    size_bytes: int
    flags: int
    context_id: int | None  # of base:allocation; None: the server does not tell


def receive(sock: socket.socket, length: int) -> bytearray:
    """Return exactly `length` bytes; the caller has bounded it. Raises NbdError."""
    buffer = bytearray(length)
    receive_into(sock, memoryview(buffer))
    return buffer


def receive_into(sock: socket.socket, view: memoryview) -> None:
    while view:
        try:
            got = sock.recv_into(view, 0, socket.MSG_WAITALL)
        except BlockingIOError as error:
            raise NbdError("the NBD server does not answer") from error
        except OSError as error:
            raise NbdError(f"NBD connection: {error.strerror}") from error
        if not got:
            raise NbdError("the NBD server closed the connection")
        view = view[got:]


def handshake(sock: socket.socket, name: bytes = b"") -> Export:
    """Negotiate structured replies, base:allocation and the export. Raises NbdError."""
    magic, have_option, flags = _GREETING.unpack(receive(sock, _GREETING.size))
    if magic != _MAGIC or have_option != _HAVE_OPTION or not flags & _FIXED_NEWSTYLE:
        raise NbdError("not a fixed newstyle NBD server")
    _send(sock, (flags & (_FIXED_NEWSTYLE | _NO_ZEROES)).to_bytes(4, "big"))
    if _option(sock, _OPT_STRUCTURED, b"") is None:
        raise NbdError("the NBD server has no structured replies")
    named = len(name).to_bytes(4, "big") + name
    query = len(_ALLOCATION).to_bytes(4, "big") + _ALLOCATION
    contexts = _option(sock, _OPT_SET_META, named + (1).to_bytes(4, "big") + query) or []
    chosen = [data for kind, data in contexts if kind == _REP_META and data[4:] == _ALLOCATION]
    # Without a question for block sizes qemu-nbd accepts requests of any alignment.
    infos = _option(sock, _OPT_GO, named + (0).to_bytes(2, "big"))
    if infos is None:
        raise NbdError("the NBD server does not know GO")
    return _export(infos, int.from_bytes(chosen[0][:4], "big") if chosen else None)


def _export(infos: list[tuple[int, bytes]], context_id: int | None) -> Export:
    size_bytes, flags = None, 0
    for kind, data in infos:
        info = int.from_bytes(data[:2], "big") if kind == _REP_INFO and len(data) >= 2 else None
        if info == _INFO_EXPORT and len(data) == 12:
            size_bytes = int.from_bytes(data[2:10], "big")
            flags = int.from_bytes(data[10:12], "big")
    if size_bytes is None or size_bytes >= 1 << 63:
        raise NbdError("the NBD server names no size")
    return Export(size_bytes=size_bytes, flags=flags, context_id=context_id)


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError as error:
        raise NbdError(f"NBD connection: {error.strerror}") from error


def _option(sock: socket.socket, option: int, data: bytes) -> list[tuple[int, bytes]] | None:
    """Return the replies before the ACK, None when the server does not know the option."""
    _send(sock, _OPTION.pack(_HAVE_OPTION, option, len(data)) + data)
    replies: list[tuple[int, bytes]] = []
    while len(replies) < 64:
        head = receive(sock, _OPTION_REPLY.size)
        magic, answered, kind, length = _OPTION_REPLY.unpack(head)
        if magic != _REPLY_MAGIC or answered != option or length > _OPTION_LIMIT_BYTES:
            raise NbdError("malformed NBD option reply")
        payload = bytes(receive(sock, length))
        if kind == _REP_ACK:
            return replies
        if kind == _REP_ERROR + 1:  # ERR_UNSUP
            return None
        if kind & _REP_ERROR:
            raise NbdError(
                f"NBD option {option} refused: {payload[:1024].decode(errors='replace')}"
            )
        replies.append((kind, payload))
    raise NbdError("the NBD server floods the negotiation")
