"""What comes in: the buffer that requests are parsed in, and payloads too large for it.

Bytes are received into place: into the connection's one fixed buffer, or, while a large WRITE is
coming in, straight into the piece that will be written. Nothing is joined, and a client that
announces 32 MiB and stops holds one piece of memory at the most.
"""

from __future__ import annotations

from nbd_server.protocol import Command
from nbd_server.requests import PartialWrite, Request

BUFFER_BYTES = 256 << 10
PIECE_BYTES = 1 << 20  # a WRITE above it is done in pieces of this size
_COMPACT_BELOW_BYTES = 64 << 10


class ReceiveBuffer:
    """Bytes [start, end) of `data` are received and not consumed."""

    __slots__ = ("data", "end", "start", "view")

    def __init__(self) -> None:
        self.data = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.data)
        self.start = 0
        self.end = 0

    def __len__(self) -> int:
        return self.end - self.start

    def room(self) -> memoryview:
        """Where to receive next; never empty unless BUFFER_BYTES are waiting."""
        if self.start == self.end:
            self.start = self.end = 0
        elif BUFFER_BYTES - self.end < _COMPACT_BELOW_BYTES and self.start:
            waiting = self.end - self.start
            self.data[:waiting] = self.data[self.start : self.end]
            self.start, self.end = 0, waiting
        return self.view[self.end :]

    def take(self, count: int) -> bytes:
        """Consume `count` bytes, which must be there."""
        data = bytes(self.view[self.start : self.start + count])
        self.start += count
        return data

    def drop(self, count: int) -> int:
        """Consume up to `count` bytes; return how many there were."""
        dropped = min(count, self.end - self.start)
        self.start += dropped
        return dropped

    def move_to(self, target: memoryview) -> int:
        """Consume into `target` as much as there is and fits; return how much."""
        count = min(len(target), self.end - self.start)
        target[:count] = self.view[self.start : self.start + count]
        self.start += count
        return count

    def clear(self) -> None:
        self.start = self.end = 0


class IncomingWrite:
    """Collects the payload of one WRITE and cuts it into requests to the backend."""

    __slots__ = ("_filled", "_left", "_offset", "_piece", "_request", "_whole")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._offset = request.offset
        self._left = request.length  # not yet part of a finished piece
        self._whole = (
            PartialWrite(cookie=request.cookie, flags=request.flags)
            if request.length > PIECE_BYTES
            else None
        )
        self._next_piece()

    @property
    def complete(self) -> bool:
        return not self._left

    def room(self) -> memoryview:
        """Where the next bytes of the payload belong; never empty before `complete`."""
        return self._piece[self._filled :]

    def received(self, count: int) -> Request | None:
        """Note that `count` bytes were put into `room`; return the piece that became full."""
        self._filled += count
        if self._filled < len(self._piece):
            return None
        piece, offset = self._piece, self._offset
        self._left -= len(piece)
        self._offset += len(piece)
        if self._whole is None:
            return self._request._replace(payload=piece)
        self._whole.outstanding += 1
        self._whole.received = self.complete
        if self._left:
            self._next_piece()
        return Request(Command.WRITE, 0, 0, offset, len(piece), piece, self._whole)

    def _next_piece(self) -> None:
        self._piece = memoryview(bytearray(min(self._left, PIECE_BYTES)))
        self._filled = 0
