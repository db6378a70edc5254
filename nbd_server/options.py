"""Data of the negotiation options, parsed: bytes in, values out, nothing else.

Source: doc/proto.md, "Option types". Everything a client claims about lengths and counts is
checked against the bytes that are there before anything is built from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from nbd_server.errors import NbdServerError
from nbd_server.protocol import MAX_NAME_BYTES

_U32 = Struct(">I")
_U16 = Struct(">H")


class OptionDataError(NbdServerError):
    """The data of an option are malformed; the client gets ERR_INVALID and may go on."""

    code = "nbd.option-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoRequest:
    """Data of INFO and GO."""

    name: bytes
    info_types: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextQuery:
    """Data of LIST_META_CONTEXT and SET_META_CONTEXT."""

    name: bytes
    queries: tuple[bytes, ...]


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise OptionDataError(f"{length} bytes announced, {self.left} there")
        self._at += length
        return self._data[self._at - length : self._at]

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u16(self) -> int:
        return int(_U16.unpack(self.take(2))[0])

    def text(self) -> bytes:
        length = self.u32()
        if length > MAX_NAME_BYTES:
            raise OptionDataError(f"a string of {length} bytes")
        return self.take(length)

    def end(self) -> None:
        if self.left:
            raise OptionDataError(f"{self.left} bytes too many")


def parse_info_request(data: bytes) -> InfoRequest:
    """Raises OptionDataError."""
    cursor = _Cursor(data)
    name = cursor.text()
    info_types = frozenset([cursor.u16() for _ in range(cursor.u16())])
    cursor.end()
    return InfoRequest(name=name, info_types=info_types)


def parse_context_query(data: bytes) -> ContextQuery:
    """Raises OptionDataError."""
    cursor = _Cursor(data)
    name = cursor.text()
    count = cursor.u32()
    if count * 4 > cursor.left:
        raise OptionDataError(f"{count} queries announced in {cursor.left} bytes")
    queries = tuple([cursor.text() for _ in range(count)])
    cursor.end()
    return ContextQuery(name=name, queries=queries)
