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

Thread model: everything runs on the event loop but `_work`, which runs on a worker thread and
touches nothing that changes. Source: doc/proto.md, "Transmission phase".
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from nbd_server import protocol
from nbd_server.backend import Buffer
from nbd_server.handshake import Session
from nbd_server.limits import Counters
from nbd_server.operations import Outcome, failure_reply, perform
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

log = logging.getLogger(__name__)

TURN_REQUESTS = 256
INLINE_BYTES = 1 << 20  # longer reads are copied on a worker thread
BATCH_REQUESTS = 32
BATCH_BYTES = 1 << 20
_REQUEST_COST_BYTES = 4096  # bookkeeping of one request; bounds how many may be outstanding

_UNSENT_POLL_S = 0.002

_REQUEST_BYTES = protocol.REQUEST.size
_unpack_request = protocol.REQUEST.unpack_from
_pack_simple = protocol.SIMPLE_REPLY.pack
_pack_data = protocol.DATA_CHUNK.pack
_READ = int(Command.READ)  # plain integers: looking up an enum member costs as much as a parse
_OFFSET_DATA = int(ChunkType.OFFSET_DATA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a connection shares with the others."""

    pool: Executor
    counters: Counters
    share_bytes: Callable[[], int]
    jobs: int  # batches of one connection on the pool at once
    linger_s: float  # for the client to take its last replies


class Transmission:
    def __init__(
        self,
        session: Session,
        transport: asyncio.Transport,
        received: ReceiveBuffer,
        shared: Surroundings,
    ) -> None:
        self._session = session
        self._transport = transport
        self._received = received
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._incoming: IncomingWrite | None = None
        self._skip_bytes = 0  # of a refused payload
        self._after_skip = b""  # its reply: libnbd takes one that comes earlier for a bug
        self._queue: deque[Request] = deque()
        self._jobs = 0
        self._held_bytes = 0
        self._out: list[Buffer] = []
        self._reading_paused = False
        self._writing_paused = False
        self._turn_scheduled = False
        self._draining = False
        self._lost = False
        self._linger: asyncio.TimerHandle | None = None

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
        if self._draining or self._lost:
            return
        room = self._room_bytes()
        turns = TURN_REQUESTS
        if room > 0:
            room, turns = self._parse(room)
            self._dispatch()
            self._send()
            if self._draining:
                self._close_when_done()
                return
        self._set_reading(room > 0 and turns > 0 and not self._writing_paused)
        if self._reading_paused and not self._writing_paused:
            if turns <= 0:
                self._next_turn(0)
            elif not self._busy:  # nothing will call back: unsent replies are on their way out
                self._next_turn(_UNSENT_POLL_S)

    def _room_bytes(self) -> int:
        """How much more this connection may take on; its unsent replies count."""
        if self._writing_paused:
            return 0
        unsent = self._transport.get_write_buffer_size()
        return self._shared.share_bytes() - self._held_bytes - unsent

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
        received, out = self._received, self._out
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
            room -= length + _REQUEST_COST_BYTES
            try:
                found = try_read(offset, length)
            except Exception:  # the blocking read meets it again and reports it
                found = None
            if found is None or len(found) != length:
                self._enqueue(Request(command, flags, cookie, offset, length))
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
                self._out.append(self._after_skip)
        return not (self._skip_bytes or self._incoming or self._draining or self._lost)

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
                self._out.append(reply)
            return _REQUEST_COST_BYTES
        if request.command == Command.WRITE:
            return self._accept_write(request)
        return self._enqueue(request)

    def _accept_write(self, request: Request) -> int:
        if request.length <= len(self._received):
            return self._enqueue(request._replace(payload=self._received.take(request.length)))
        self._incoming = incoming = IncomingWrite(request)
        while self._incoming and self._received:
            self._payload_arrived(incoming, self._received.move_to(incoming.room()))
        return _cost_bytes(request)

    def _payload_arrived(self, incoming: IncomingWrite, count: int) -> None:
        piece = incoming.received(count)
        if incoming.complete:
            self._incoming = None
        if piece:
            self._enqueue(piece)

    # work that blocks

    def _enqueue(self, request: Request) -> int:
        cost = _cost_bytes(request)
        self._held_bytes += cost
        self._queue.append(request)
        return cost

    @property
    def _busy(self) -> bool:
        return bool(self._jobs or self._queue)

    def _dispatch(self) -> None:
        """Share the queue out over the jobs that this connection may still start."""
        while self._queue and self._jobs < self._shared.jobs:
            fair = -(-len(self._queue) // (self._shared.jobs - self._jobs))
            batch = [self._queue.popleft()]
            batch_bytes = _cost_bytes(batch[0])
            while self._queue and len(batch) < min(fair, BATCH_REQUESTS):
                batch_bytes += _cost_bytes(self._queue[0])
                if batch_bytes > BATCH_BYTES:
                    break
                batch.append(self._queue.popleft())
            self._jobs += 1
            self._shared.pool.submit(self._work, batch)

    def _work(self, batch: list[Request]) -> None:
        outcomes = perform(batch, self._session)
        self._loop.call_soon_threadsafe(self._done, outcomes)

    def _done(self, outcomes: list[Outcome]) -> None:
        self._jobs -= 1
        counters = self._shared.counters
        for request, reply, failure in outcomes:
            self._held_bytes -= _cost_bytes(request)
            if request.whole is not None:
                self._piece_done(request.whole, failure)
            else:
                self._out += reply
            if failure is None and request.command == Command.READ:
                counters.read_bytes += request.length
            elif failure is None and request.command == Command.WRITE:
                counters.written_bytes += request.length
        if self._lost:
            return
        self._dispatch()
        self._send()
        if self._draining:
            self._close_when_done()
        else:
            self.process()

    def _piece_done(self, whole: PartialWrite, failure: Refusal | None) -> None:
        """The last piece answers for the whole WRITE, after its flush where FUA asks for one."""
        whole.outstanding -= 1
        whole.failure = whole.failure or failure
        if not whole.done:
            return
        answer = Request(Command.WRITE, 0, whole.cookie, 0, 0)
        if whole.failure:
            self._out.append(failure_reply(answer, whole.failure, self._session))
        elif whole.flags & CommandFlag.FUA:
            self._enqueue(answer._replace(command=Command.FLUSH))
        else:
            self._out.append(simple_reply(whole.cookie))

    # output and ends

    def _send(self) -> None:
        if self._out and not self._lost:
            self._transport.writelines(self._out)
        self._out = []

    def writing_paused(self) -> None:
        self._writing_paused = True

    def writing_resumed(self) -> None:
        self._writing_paused = False
        self.process()

    def _set_reading(self, wanted: bool) -> None:
        if wanted and self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        elif not wanted and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _next_turn(self, delay_s: float) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_later(delay_s, self._turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        self.process()

    def drain(self) -> None:
        """Take no more requests, answer the outstanding ones, close. Idempotent."""
        self._draining = True
        self._close_when_done()

    def _close_when_done(self) -> None:
        self._set_reading(False)
        if self._busy or self._lost or self._linger:
            return
        self._linger = self._loop.call_later(self._shared.linger_s, self._transport.abort)
        self._transport.close()  # after what is still unsent

    def _break(self, reason: str) -> None:
        log.info("connection broken off: %s", reason)
        self._draining = True
        self._transport.abort()

    def lost(self) -> None:
        """The connection is gone; what has not reached a worker is dropped."""
        self._lost = True
        self._queue.clear()
        self._incoming = None
        self._received.clear()
        if self._linger:
            self._linger.cancel()


def _cost_bytes(request: Request) -> int:
    carried = request.length if request.command == _READ else len(request.payload)
    return _REQUEST_COST_BYTES + carried
