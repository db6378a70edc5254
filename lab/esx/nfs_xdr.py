"""XDR for the lab's NFS client: a reader that never passes the end, and words to build calls of.

Source: RFC 4506. Values, no I/O.
"""

from __future__ import annotations

import struct

from lab.esx.errors import FileFaultError


class NfsProtocolError(FileFaultError):
    """The server's answer breaks a rule that an ESXi host relies on."""


class Reader:
    """Takes a reply apart; every method raises NfsProtocolError where it is too short."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fixed(self, length: int) -> bytes:
        """`length` bytes and their padding."""
        end = self._at + length + -length % 4
        if end > len(self._data):
            raise NfsProtocolError("a reply ends too early")
        found = self._data[self._at : self._at + length]
        self._at = end
        return found

    def u32(self) -> int:
        return int.from_bytes(self.fixed(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.fixed(8), "big")

    def flag(self) -> bool:
        value = self.u32()
        if value > 1:
            raise NfsProtocolError(f"a boolean of {value}")
        return bool(value)

    def opaque(self, limit: int) -> bytes:
        length = self.u32()
        if length > limit:
            raise NfsProtocolError(f"{length} bytes where at most {limit} may be")
        return self.fixed(length)

    def finish(self) -> None:
        """Raises NfsProtocolError where something is left."""
        if self._at != len(self._data):
            raise NfsProtocolError(f"{len(self._data) - self._at} bytes follow a reply")


def u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def u64(value: int) -> bytes:
    return struct.pack(">Q", value)


def opaque(data: bytes | memoryview) -> bytes:
    return b"".join((u32(len(data)), data, bytes(-len(data) % 4)))
