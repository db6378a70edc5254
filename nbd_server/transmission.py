"""The transmission phase of one connection: requests in, replies out, in as few steps as can be.

Data path: every complete request in the receive buffer is parsed in place. Reads that the backend
serves at once are answered here, all of them with one `writelines`; the rest of that buffer goes
to the worker threads in a few batches, and each batch is answered when it is done, in any order.

Invariants:
- What a connection holds (requests handed over, replies not sent) stays below its share of the
  server's memory plus one request: above it nothing is parsed and reading is paused.
- Replies leave whole: only the event loop writes, header and data in the same call.
- A connection works through at most TURN_REQUESTS requests before others get their turn.
- The payload of a refused WRITE is skipped, so the stream stays in step.

Everything here runs on the event loop. Source: doc/proto.md, "Transmission phase".
"""

from __future__ import annotations

import asyncio
import logging

from nbd_server import protocol
from nbd_server.backend import Buffer
from nbd_server.flow import Flow
from nbd_server.handshake import Session
from nbd_server.operations import Outcome, failure_reply
from nbd_server.protocol import (
    CHUNK_DONE,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ChunkType,
    Command,
    CommandFlag,
)
from nbd_server.receive import IncomingWrite, ReceiveBuffer
from nbd_server.replies import HOLE_GRANULE_BYTES, ZEROS, read_reply, simple_reply
from nbd_server.requests import PartialWrite, Refusal, Request, refusal
from nbd_server.streamed_read import STREAM_ABOVE_BYTES, STREAM_PIECE_BYTES, StreamedRead
from nbd_server.work_queue import REQUEST_COST_BYTES, Surroundings, WorkQueue

log = logging.getLogger(__name__)

TURN_REQUESTS = 64  # deeper queues than clients use by default
INLINE_BYTES = 1 << 20  # longer reads are copied on a worker thread

_UNSENT_POLL_S = 0.002

_REQUEST_BYTES = protocol.REQUEST.size
_unpack_request = protocol.REQUEST.unpack_from
_pack_simple = protocol.SIMPLE_REPLY.pack
_pack_data = protocol.DATA_CHUNK.pack
_READ = int(Command.READ)  # plain integers: looking up an enum member costs as much as a parse
_OFFSET_DATA = int(ChunkType.OFFSET_DATA)


class Transmission:
    def __init__(
        self,
        session: Session,
        transport: asyncio.Transport,
        received: ReceiveBuffer,
        shared: Surroundings,
    ) -> None:
        self._session = session
        self._received = received
        self._shared = shared
        self._flow = Flow(
            transport, self.process, answered=shared.answered, linger_s=shared.linger_s
        )
        self._incoming: IncomingWrite | None = None
        self._skip_bytes = 0  # of a refused payload
        self._after_skip = b""  # its reply: libnbd takes one that comes earlier for a bug
        self._stream: StreamedRead | None = None
        self._work = WorkQueue(session, shared, self._done)
        self._behind_stream: list[Buffer] = []  # nothing may come between its pieces
        self._draining = False

    # input

    def room(self) -> memoryview:
        return self._incoming.room() if self._incoming else self._received.room()

    def arrived(self, count: int) -> None:
        """`count` bytes were put into `room`."""
        if self._incoming is None:
            self._received.end += count
        else:
            self._payload_arrived(self._incoming, count)
        self.process()

    def process(self) -> None:
        """Do what can be done now with what was received; pause or resume reading."""
        flow = self._flow
        if flow.lost:
            return
        room, turns = self._room_bytes(), TURN_REQUESTS
        if room > 0:
            self._continue_stream()
            room, turns = self._parse(room)
        self._work.dispatch()
        flow.send()
        if self._draining:
            self._close_when_done()
        else:
            able = room > 0 and turns > 0 and self._stream is None
            flow.set_reading(able and not flow.writing_paused)
        if flow.reading_paused and not flow.writing_paused and not flow.closing:
            self._schedule_turn(turns)

    def _schedule_turn(self, turns: int) -> None:
        """Come back when nobody else will call: neither the client nor a finished batch."""
        may_parse = self._stream is None and not self._draining
        if turns <= 0 or (may_parse and self._room_bytes() > 0):
            self._flow.next_turn(0)
        elif not self._work.busy:  # unsent replies are on their way out
            self._flow.next_turn(_UNSENT_POLL_S)

    def _room_bytes(self) -> int:
        """How much more this connection may take on; its unsent replies count."""
        if self._flow.writing_paused:
            return 0
        return self._shared.share_bytes() - self._work.held_bytes - self._flow.unsent_bytes

    def _parse(self, room: int) -> tuple[int, int]:
        """Serve or queue buffered requests; return the room and the turns that are left."""
        received = self._received
        turns = TURN_REQUESTS
        while room > 0 and turns > 0 and self._in_step() and len(received) >= _REQUEST_BYTES:
            room, served = self._serve_reads(room, turns)
            turns -= served
            if room <= 0 or turns <= 0 or len(received) < _REQUEST_BYTES:
                break
            header = _unpack_request(received.data, received.start)
            if header[0] != REQUEST_MAGIC:
                self._break(f"request magic {header[0]:#010x}")
                break
            received.start += _REQUEST_BYTES
            turns -= 1
            _, flags, command, cookie, offset, length = header
            room -= self._accept(Request(command, flags, cookie, offset, length))
        self._shared.counters.requests += TURN_REQUESTS - turns
        return room, turns

    def _serve_reads(self, room: int, turns: int) -> tuple[int, int]:
        """Serve buffered reads up to the first other request; return room left, requests served.

        The hot loop: everything it needs is in local names, and it calls little.
        """
        received, out = self._received, self._flow.replies
        data, start, last = received.data, received.start, received.end - _REQUEST_BYTES
        backend, structured = self._session.export.backend, self._session.structured
        try_read, size_bytes = backend.try_read, backend.size_bytes
        served = read_bytes = 0
        while start <= last and room > 0 and served < turns:
            magic, flags, command, cookie, offset, length = _unpack_request(data, start)
            if (
                command != _READ
                or flags
                or magic != REQUEST_MAGIC
                or not 0 < length <= INLINE_BYTES
                or offset + length > size_bytes
            ):
                break
            start += _REQUEST_BYTES
            served += 1
            room -= length + REQUEST_COST_BYTES
            try:
                found = try_read(offset, length)
            except Exception:  # the blocking read meets it again and reports it
                found = None
            if found is None or len(found) != length:
                self._work.add(Request(command, flags, cookie, offset, length))
                continue
            read_bytes += length
            if not structured:
                out.append(_pack_simple(SIMPLE_REPLY_MAGIC, 0, cookie))
                out.append(found)
            elif length > HOLE_GRANULE_BYTES or ZEROS.startswith(found):
                out += read_reply(cookie, offset, found, structured=True, fragment=True)
            else:
                out.append(
                    _pack_data(
                        STRUCTURED_REPLY_MAGIC,
                        CHUNK_DONE,
                        _OFFSET_DATA,
                        cookie,
                        length + 8,
                        offset,
                    )
                )
                out.append(found)
        received.start = start
        self._shared.counters.read_bytes += read_bytes
        return room, served

    def _in_step(self) -> bool:
        """Whether the next byte in the buffer begins a request; drops a refused payload."""
        if self._skip_bytes:
            self._skip_bytes -= self._received.drop(self._skip_bytes)
            if not self._skip_bytes:
                self._flow.replies.append(self._after_skip)
        waiting = self._skip_bytes or self._incoming or self._stream
        return not (waiting or self._draining or self._flow.lost)

    def _accept(self, request: Request) -> int:
        """Take on one request of any kind; return what it costs the connection's room."""
        if request.command == Command.DISC:
            self._draining = True
            return 0
        refused = refusal(
            request,
            self._session.export.backend,
            structured=self._session.structured,
            allocation=self._session.allocation,
        )
        if refused:
            reply = failure_reply(request, refused, self._session)
            if request.command == Command.WRITE and request.length:
                self._skip_bytes, self._after_skip = request.length, reply
            else:
                self._flow.replies.append(reply)
            return REQUEST_COST_BYTES
        if request.command == Command.WRITE:
            return self._accept_write(request)
        if request.command == Command.READ and request.length > STREAM_ABOVE_BYTES:
            self._stream = StreamedRead(request, self._session)
            self._continue_stream()
            return STREAM_PIECE_BYTES
        return self._work.add(request)

    def _accept_write(self, request: Request) -> int:
        if request.length <= len(self._received):
            return self._work.add(request._replace(payload=self._received.take(request.length)))
        self._incoming = incoming = IncomingWrite(request)
        while self._incoming and self._received:
            self._payload_arrived(incoming, self._received.move_to(incoming.room()))
        return REQUEST_COST_BYTES + request.length

    def _continue_stream(self) -> None:
        if self._stream is not None and not self._stream.waiting:
            self._work.add(self._stream.next_piece())

    def _payload_arrived(self, incoming: IncomingWrite, count: int) -> None:
        piece = incoming.received(count)
        if incoming.complete:
            self._incoming = None
        if piece:
            self._work.add(piece)

    # finished work

    def _done(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            whole = outcome.request.part_of
            if isinstance(whole, PartialWrite):
                self._piece_written(whole, outcome.failure)
            elif isinstance(whole, StreamedRead):
                self._piece_read(whole, outcome)
            else:
                self._answer(outcome.reply)
        self._flow.send()
        self.process()

    def _answer(self, reply: list[Buffer]) -> None:
        if self._stream is None:
            self._flow.replies += reply
        else:
            self._behind_stream += reply

    def _piece_read(self, whole: StreamedRead, outcome: Outcome) -> None:
        reply = whole.absorb(outcome)
        if whole.broken:
            self._break("a large read failed half way")
            return
        self._flow.replies += reply
        if whole.finished:
            self._stream = None
            self._flow.replies += self._behind_stream
            self._behind_stream = []

    def _piece_written(self, whole: PartialWrite, failure: Refusal | None) -> None:
        """The last piece answers for the whole WRITE, after its flush where FUA asks for one."""
        whole.outstanding -= 1
        whole.failure = whole.failure or failure
        if not whole.done:
            return
        answer = Request(Command.WRITE, 0, whole.cookie, 0, 0)
        if whole.failure:
            self._answer([failure_reply(answer, whole.failure, self._session)])
        elif whole.flags & CommandFlag.FUA:
            self._work.add(answer._replace(command=Command.FLUSH))
        else:
            self._answer([simple_reply(whole.cookie)])

    # ends

    def writing_paused(self) -> None:
        self._flow.writing_paused = True

    def writing_resumed(self) -> None:
        self._flow.writing_paused = False
        self.process()

    def drain(self) -> None:
        """Take no more requests, answer the outstanding ones, close. Idempotent."""
        self._draining = True
        self._close_when_done()

    def _close_when_done(self) -> None:
        self._flow.set_reading(False)
        if not (self._work.busy or self._stream):
            self._flow.close()

    def _break(self, reason: str) -> None:
        log.info("connection broken off: %s", reason)
        self._draining = True
        self._flow.abort()

    def lost(self) -> None:
        """The connection is gone; what has not reached a worker is dropped."""
        self._flow.connection_lost()
        self._work.clear()
        self._incoming = None
        self._received.clear()
