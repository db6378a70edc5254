"""A READ too large to be held whole: done in pieces, each after the one before it was sent.

So a client that asks for 32 MiB and does not take them holds one piece of memory at the most. With
structured replies every piece is chunks of its own. A simple reply, and one that must not be
fragmented, announce the whole length first; an error after that can only be told by closing.
"""

from __future__ import annotations

from nbd_server import protocol
from nbd_server.backend import Buffer
from nbd_server.handshake import Session
from nbd_server.operations import Outcome, failure_reply
from nbd_server.protocol import CommandFlag
from nbd_server.replies import data_header, read_reply, simple_reply
from nbd_server.requests import Request

STREAM_ABOVE_BYTES = 4 << 20  # clients ask for up to 2 MiB by default
STREAM_PIECE_BYTES = 2 << 20


class StreamedRead:
    __slots__ = ("_at", "_end", "_request", "_session", "broken", "finished", "waiting")

    def __init__(self, request: Request, session: Session) -> None:
        self._request = request
        self._session = session
        self._at = request.offset  # of the next piece
        self._end = request.offset + request.length
        self.waiting = False  # for a piece
        self.finished = False
        self.broken = False  # failed where the reply has no place for an error

    def next_piece(self) -> Request:
        """Only when neither `waiting` nor `finished`."""
        self.waiting = True
        length = min(STREAM_PIECE_BYTES, self._end - self._at)
        piece = Request(protocol.Command.READ, 0, self._request.cookie, self._at, length)
        return piece._replace(part_of=self)

    def absorb(self, outcome: Outcome) -> list[Buffer]:
        """Return what to send for the piece that was read."""
        self.waiting = False
        piece, failure = outcome.request, outcome.failure
        first = piece.offset == self._request.offset
        if failure is not None:
            self.finished = True
            self.broken = not (first or self._in_chunks)
            return [failure_reply(self._request, failure, self._session)]
        self._at += piece.length
        self.finished = self._at == self._end
        (data,) = outcome.reply
        if self._in_chunks:
            cookie, last = self._request.cookie, self.finished
            return read_reply(cookie, piece.offset, data, structured=True, fragment=True, last=last)
        return [self._header(), data] if first else [data]

    @property
    def _in_chunks(self) -> bool:
        return self._session.structured and not self._request.flags & CommandFlag.DF

    def _header(self) -> bytes:
        request = self._request
        if not self._session.structured:
            return simple_reply(request.cookie)
        return data_header(protocol.CHUNK_DONE, request.cookie, request.offset, request.length)
