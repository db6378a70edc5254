"""ONC RPC over TCP and UDP: record marks, calls, replies.

Framing is strict: a record longer than the limit, or a message that is no call, ends the
connection. A call that cannot be served gets the reply that RFC 5531 has for it. Pure but for
`RecordBuffer`, which belongs to one connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from struct import Struct

from nfs_server import xdr
from nfs_server.errors import RpcError, XdrError
from nfs_server.protocol import (
    AUTH_BYTES_MAX,
    GROUPS_MAX,
    RPC_VERSION,
    AcceptStatus,
    AuthFlavor,
    AuthStatus,
    MessageType,
    RejectStatus,
    ReplyStatus,
)
from nfs_server.vfs import Buffer

_LAST_FRAGMENT = 1 << 31
_FRAGMENTS_MAX = 64  # of one record; clients send one
_CALL = Struct(">IIIIIIII")  # xid, type, RPC version, program, version, procedure, flavor, length
_ACCEPTED = Struct(">IIIIIII")  # record mark, xid, reply, accepted, verifier (none, empty), status
_ACCEPTED_BYTES = _ACCEPTED.size - 4
_MACHINE_BYTES_MAX = 255
_NO_VERIFIER = bytes(8)  # what AUTH_NONE and AUTH_SYS send: flavor none, no bytes


@dataclass(frozen=True, slots=True)
class Call:
    xid: int
    program: int
    version: int
    procedure: int
    uid: int
    gid: int
    arguments: memoryview

    def kept(self) -> Call:
        """With a copy of the arguments, which may be a view of much more that was received."""
        arguments = memoryview(bytes(self.arguments))
        identity = (self.xid, self.program, self.version, self.procedure)
        return Call(*identity, self.uid, self.gid, arguments)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A call that is answered without being looked at further."""

    reply: list[Buffer]


class RecordBuffer:
    """Bytes of a TCP stream become records.

    A record that came in one piece is a view of what was received, so whoever keeps it for long
    copies it; one that came in several is put together once, in a buffer of its size.
    """

    def __init__(self, record_bytes_max: int) -> None:
        self._limit_bytes = record_bytes_max
        self._received = memoryview(b"")
        self._record = bytearray()  # fragments of an unfinished record
        self._filled = 0  # of it
        self._last = False  # its last fragment is on its way
        self._fragments = 0

    def __len__(self) -> int:
        return len(self._received) + len(self._record)

    def feed(self, data: bytes | memoryview) -> None:
        if self._received:
            data = bytes(self._received) + data
        self._received = memoryview(data)

    def take(self) -> memoryview | None:
        """The next whole record, None when it has not arrived. Raises RpcError."""
        while True:
            if self._filled < len(self._record):
                self._fill()
                if self._filled < len(self._record):
                    return None
            if self._last:
                whole, self._record = self._record, bytearray()
                self._filled = self._fragments = 0
                self._last = False
                return memoryview(whole)
            received = self._received
            if len(received) < 4:
                return None
            mark: int = xdr.U32.unpack_from(received)[0]
            length = mark & ~_LAST_FRAGMENT
            self._check(length)
            end = 4 + length
            if mark & _LAST_FRAGMENT and not self._record and end <= len(received):
                self._fragments = 0
                self._received = received[end:]
                return received[4:end]
            self._received = received[4:]
            self._fragments += 1
            self._last = bool(mark & _LAST_FRAGMENT)
            self._record += bytes(length)

    def _check(self, length: int) -> None:
        if len(self._record) + length > self._limit_bytes:
            raise RpcError(f"record of more than {self._limit_bytes} bytes")
        if self._fragments >= _FRAGMENTS_MAX:
            raise RpcError(f"record of more than {_FRAGMENTS_MAX} fragments")

    def _fill(self) -> None:
        part = self._received[: len(self._record) - self._filled]
        self._record[self._filled : self._filled + len(part)] = part
        self._filled += len(part)
        self._received = self._received[len(part) :]


def parse_call(record: memoryview) -> Call | Rejected:
    """Raises RpcError when it is no call: then there is nobody to answer."""
    if len(record) < _CALL.size:
        raise RpcError("message cut short")
    xid, kind, rpc_version, program, version, procedure, flavor, length = _CALL.unpack_from(record)
    if kind != MessageType.CALL:
        raise RpcError(f"message of type {kind} where a call is due")
    if rpc_version != RPC_VERSION:
        return Rejected(denied(xid, RejectStatus.RPC_MISMATCH, RPC_VERSION, RPC_VERSION))
    if not _taken(flavor, procedure):
        return Rejected(denied(xid, RejectStatus.AUTH_ERROR, AuthStatus.TOOWEAK))
    if length > AUTH_BYTES_MAX:
        return Rejected(denied(xid, RejectStatus.AUTH_ERROR, AuthStatus.BADCRED))
    start = _CALL.size + length + -length % 4
    owner = _owner(flavor, bytes(record[_CALL.size : start]), length)
    if owner is None:
        return Rejected(denied(xid, RejectStatus.AUTH_ERROR, AuthStatus.BADCRED))
    arguments = record[start + len(_NO_VERIFIER) :]
    if record[start : start + len(_NO_VERIFIER)] != _NO_VERIFIER:
        try:
            decoder = xdr.Decoder(record[start:])
            decoder.u32()  # flavor
            decoder.opaque_view(AUTH_BYTES_MAX)
            arguments = decoder.remaining
        except XdrError:
            return Rejected(denied(xid, RejectStatus.AUTH_ERROR, AuthStatus.BADVERF))
    return Call(xid, program, version, procedure, *owner, arguments)


def _taken(flavor: int, procedure: int) -> bool:
    """A NULL may carry anything but the beginning of a GSS context."""
    return flavor in (AuthFlavor.NONE, AuthFlavor.SYS) or (
        procedure == 0 and flavor != AuthFlavor.GSS
    )


@lru_cache(256)  # a client sends the same credential with every call
def _owner(flavor: int, credential: bytes, length: int) -> tuple[int, int] | None:
    """uid and gid of AUTH_SYS (RFC 5531 appendix A), 0 of others; None for a broken credential."""
    if len(credential) != length + -length % 4:
        return None
    if flavor != AuthFlavor.SYS:
        return 0, 0
    decoder = xdr.Decoder(memoryview(credential)[:length])
    try:
        decoder.u32()  # stamp
        decoder.opaque_view(_MACHINE_BYTES_MAX)
        uid, gid, groups = decoder.u32(), decoder.u32(), decoder.u32()
        if groups > GROUPS_MAX:
            return None
        for _ in range(groups):
            decoder.u32()
        decoder.finish()
    except XdrError:
        return None
    return uid, gid


def success(xid: int, body: list[Buffer], body_bytes: int) -> list[Buffer]:
    """The record that answers a call; the buffers of `body` are used as they are."""
    return [_accepted(xid, AcceptStatus.SUCCESS, body_bytes), *body]


def failure(xid: int, status: AcceptStatus, *details: int) -> list[Buffer]:
    """PROG_MISMATCH takes the lowest and the highest version, the others nothing."""
    body = b"".join(map(xdr.U32.pack, details))
    return [_accepted(xid, status, len(body)), body]


def denied(xid: int, status: RejectStatus, *details: int) -> list[Buffer]:
    body = b"".join(
        map(xdr.U32.pack, (xid, MessageType.REPLY, ReplyStatus.DENIED, status, *details))
    )
    return [xdr.U32.pack(_LAST_FRAGMENT | len(body)), body]


def _accepted(xid: int, status: AcceptStatus, body_bytes: int) -> bytes:
    mark = _LAST_FRAGMENT | (_ACCEPTED_BYTES + body_bytes)
    return _ACCEPTED.pack(mark, xid, MessageType.REPLY, ReplyStatus.ACCEPTED, 0, 0, status)
