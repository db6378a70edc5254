"""XDR: what the wire looks like. Everything is big-endian in units of four bytes.

A decoder reads in place from one request and checks every length against what is there and against
the caller's limit before it takes anything. Encoding is done with the `Struct`s and functions here
straight into the list of buffers that becomes the reply.
Source: RFC 4506.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

from nfs_server.errors import XdrError

U32 = Struct(">I")
U64 = Struct(">Q")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length % 4

FALSE = U32.pack(0)
TRUE = U32.pack(1)


def opaque(data: bytes | bytearray | memoryview) -> bytes:
    """Variable-length opaque or string: length, data, padding."""
    return b"".join((U32.pack(len(data)), data, _PADDING[len(data) % 4]))


def padding(length: int) -> bytes:
    return _PADDING[length % 4]


class Decoder:
    """Reads values one after another. Raises XdrError for whatever does not fit."""

    __slots__ = ("_data", "_end", "_position")

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0
        self._end = len(data)

    @property
    def remaining(self) -> memoryview:
        return self._data[self._position :]

    def u32(self) -> int:
        start = self._advance(4)
        value: int = U32.unpack_from(self._data, start)[0]
        return value

    def u64(self) -> int:
        start = self._advance(8)
        value: int = U64.unpack_from(self._data, start)[0]
        return value

    def boolean(self) -> bool:
        value = self.u32()
        if value > 1:
            raise XdrError(f"boolean {value}")
        return bool(value)

    def fixed(self, length: int) -> bytes:
        start = self._advance(length + -length % 4)
        return bytes(self._data[start : start + length])

    def opaque(self, limit: int) -> bytes:
        return bytes(self.opaque_view(limit))

    def opaque_view(self, limit: int) -> memoryview:
        """Without a copy; the padding must be there, its content is not looked at."""
        length = self.u32()
        if length > limit:
            raise XdrError(f"opaque of {length} bytes where {limit} are allowed")
        start = self._advance(length + -length % 4)
        return self._data[start : start + length]

    def whole(self, form: Struct) -> tuple[Any, ...] | None:
        """All that is left, if it is as long as `form`."""
        if self._end - self._position != form.size:
            return None
        values = form.unpack_from(self._data, self._position)
        self._position = self._end
        return values

    def finish(self) -> None:
        """Raises XdrError when something is left over."""
        if self._position != self._end:
            raise XdrError(f"{self._end - self._position} bytes too many")

    def _advance(self, length: int) -> int:
        start = self._position
        if length > self._end - start:
            raise XdrError(f"{length} bytes wanted, {self._end - start} left")
        self._position = start + length
        return start
