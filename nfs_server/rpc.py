"""ONC RPC over TCP and UDP: record marks, calls, replies.

Framing is strict: a record longer than the limit, or a message that is no call, ends the
connection. A call that cannot be served gets the reply that RFC 5531 has for it. Pure but for
`RecordBuffer`, which belongs to one connection.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Call:
    xid: int
    program: int
    version: int
    procedure: int
    uid: int
    gid: int
    arguments: memoryview


@dataclass(frozen=True, slots=True)
class Rejected:
    """A call that is answered without being looked at further."""

    reply: list[Buffer]


class RecordBuffer:
    """Bytes of a TCP stream become records."""

    def __init__(self, record_bytes_max: int) -> None:
        self._limit_bytes = record_bytes_max
        self._data = bytearray()
        self._record = bytearray()  # fragments of an unfinished record
        self._fragments = 0

    def __len__(self) -> int:
        return len(self._data) + len(self._record)

    def feed(self, data: bytes | memoryview) -> None:
        self._data += data

    def take(self) -> memoryview | None:
        """The next whole record, None when it has not arrived. Raises RpcError."""
        start = 0
        try:
            while len(self._data) - start >= 4:
                mark = xdr.U32.unpack_from(self._data, start)[0]
                length = mark & ~_LAST_FRAGMENT
                self._fragments += 1
                if len(self._record) + length > self._limit_bytes:
                    raise RpcError(f"record of more than {self._limit_bytes} bytes")
                if self._fragments > _FRAGMENTS_MAX:
                    raise RpcError(f"record of more than {_FRAGMENTS_MAX} fragments")
                end = start + 4 + length
                if end > len(self._data):
                    self._fragments -= 1
                    return None
                fragment = bytes(memoryview(self._data)[start + 4 : end])
                start = end
                if mark & _LAST_FRAGMENT:
                    self._fragments = 0
                    if not self._record:
                        return memoryview(fragment)
                    whole = bytes(self._record) + fragment
                    self._record.clear()
                    return memoryview(whole)
                self._record += fragment
            return None
        finally:
            if start:
                del self._data[:start]


def parse_call(record: memoryview) -> Call | Rejected:
    """Raises RpcError when it is no call: then there is nobody to answer."""
    if len(record) < _CALL.size:
        raise RpcError("message cut short")
    xid, kind, rpc_version, program, version, procedure, flavor, _ = _CALL.unpack_from(record)
    if kind != MessageType.CALL:
        raise RpcError(f"message of type {kind} where a call is due")
    if rpc_version != RPC_VERSION:
        return Rejected(denied(xid, RejectStatus.RPC_MISMATCH, RPC_VERSION, RPC_VERSION))
    if not _taken(flavor, procedure):
        return Rejected(denied(xid, RejectStatus.AUTH_ERROR, AuthStatus.TOOWEAK))
    decoder = xdr.Decoder(record[_CALL.size - 4 :])
    wrong = AuthStatus.BADCRED
    try:
        credential = decoder.opaque_view(AUTH_BYTES_MAX)
        uid, gid = _auth_sys(credential) if flavor == AuthFlavor.SYS else (0, 0)
        wrong = AuthStatus.BADVERF
        decoder.u32()  # flavor of the verifier, which AUTH_NONE and AUTH_SYS leave empty
        decoder.opaque_view(AUTH_BYTES_MAX)
    except XdrError:
        return Rejected(denied(xid, RejectStatus.AUTH_ERROR, wrong))
    return Call(xid, program, version, procedure, uid, gid, decoder.remaining)


def _taken(flavor: int, procedure: int) -> bool:
    """A NULL may carry anything but the beginning of a GSS context."""
    return flavor in (AuthFlavor.NONE, AuthFlavor.SYS) or (
        procedure == 0 and flavor != AuthFlavor.GSS
    )


def _auth_sys(credential: memoryview) -> tuple[int, int]:
    """RFC 5531 appendix A: stamp, machine name, uid, gid, groups."""
    decoder = xdr.Decoder(credential)
    decoder.u32()
    decoder.opaque_view(_MACHINE_BYTES_MAX)
    uid, gid, groups = decoder.u32(), decoder.u32(), decoder.u32()
    if groups > GROUPS_MAX:
        raise XdrError(f"{groups} groups")
    for _ in range(groups):
        decoder.u32()
    decoder.finish()
    return uid, gid


def success(xid: int, body: list[Buffer]) -> list[Buffer]:
    """The record that answers a call; the buffers of `body` are used as they are."""
    return [_accepted(xid, AcceptStatus.SUCCESS, sum(map(len, body))), *body]


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
