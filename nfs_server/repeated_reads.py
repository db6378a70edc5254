"""READs that differ from an earlier one of their connection only in xid, offset and count.

That is nearly all that a guest's disk sends: the rest of the record (program, credential, handle)
is the same bytes again, so what it was found to mean is looked up instead of decoded.

    | xid | program … credential, verifier, handle: the key | offset | count |

Invariants: a key is remembered only after the same bytes were decoded and their handle resolved for
this client, and is forgotten with the export table that it was resolved in. Whatever is not
answered here at once is left to the decoder, errors included.

Everything here runs on the event loop. Source: RFC 5531 section 9, RFC 1813 section 3.3.6.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from nfs_server import rpc
from nfs_server.errors import VfsError
from nfs_server.exports import ExportTable
from nfs_server.procedures_data import clipped, plain_handle
from nfs_server.request import Request, Surroundings
from nfs_server.results import OK, Target
from nfs_server.rpc import Call
from nfs_server.vfs import Buffer

_XID = Struct(">I")
_TAIL = Struct(">QI")  # offset, count
_RECORD_BYTES_MAX = 640  # with the longest credential that is taken, and our handle
_KNOWN_MAX = 256
_JOINED_BYTES_MAX = 16 << 10  # copying that much costs less than one more buffer on its way out


class Answered(NamedTuple):
    reply: list[Buffer]
    reply_bytes: int


class RepeatedReads:
    """Of one connection, whose client was admitted to what is remembered."""

    def __init__(self, requests: Surroundings) -> None:
        self._requests = requests
        self._table: ExportTable | None = None
        self._known: dict[bytes, Target] = {}

    def answer(self, record: memoryview) -> Answered | None:
        """The whole reply; None: not known, or not to be had without blocking."""
        if len(record) > _RECORD_BYTES_MAX:
            return None
        target = self._known.get(_key(record))
        if target is None or self._table is not self._requests.exports():
            return None
        offset, count = _TAIL.unpack_from(record, len(record) - _TAIL.size)
        try:
            wanted = clipped(target, offset, count, self._requests.transfer_bytes_max)
            data = target.tree.try_read(target.number, wanted.offset, wanted.length)
        except Exception:  # the decoder's way meets it again and reports it
            return None
        if data is None or not wanted.length:
            return None
        body: list[Buffer] = [OK, *wanted.reply(data)]
        body_bytes = sum(map(len, body))
        reply = rpc.success(_XID.unpack_from(record)[0], body, body_bytes)
        if body_bytes <= _JOINED_BYTES_MAX:
            reply = [b"".join(reply)]
        return Answered(reply, body_bytes)

    def learn(self, record: memoryview, call: Call, request: Request) -> None:
        """Remember a READ that was answered."""
        handle = plain_handle(call.arguments)
        if handle is None or len(record) > _RECORD_BYTES_MAX:
            return
        try:
            target = request.resolve(handle)
        except VfsError:
            return
        table = self._requests.exports()
        if table is not self._table or len(self._known) >= _KNOWN_MAX:
            self._table, self._known = table, {}
        self._known[_key(record)] = target


def _key(record: memoryview) -> bytes:
    return bytes(record[_XID.size : -_TAIL.size])
