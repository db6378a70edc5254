"""One TCP connection: records in, replies out, in as few steps as can be.

Data path: whole records are taken from the stream; what answers from memory (and READs whose data
is there) is answered in the same callback with one `writelines`; the rest goes to the worker pools
in batches and is answered in any order.

Invariants:
- What a connection holds (calls not answered, replies not taken) stays below its share of the
  server's memory plus one record and one reply: above it nothing is parsed and reading is paused.
- A call that must not be done twice is in the replay cache from its arrival to long after its
  reply.
- While changes of a client's lost connection still run, changes of its new one wait, since a write
  that comes late must not undo a newer one. What changes nothing is served meanwhile: a host's
  heartbeat does not depend on a disk that hangs.

Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import cast

from nfs_server import nfs3, rpc
from nfs_server.errors import RpcError, XdrError
from nfs_server.in_flight import InFlight
from nfs_server.lane_queue import LaneQueue, Pending
from nfs_server.limits import Counters, Limits
from nfs_server.nfs3 import READ, Effect, Lane, Service
from nfs_server.procedures_data import Range
from nfs_server.programs import Programs
from nfs_server.protocol import AcceptStatus
from nfs_server.repeated_reads import RepeatedReads
from nfs_server.replay_cache import ReplayCache, key_of
from nfs_server.request import Request, Surroundings
from nfs_server.rpc import Call
from nfs_server.vfs import Buffer
from nfs_server.xdr import Decoder

log = logging.getLogger(__name__)

TURN_CALLS = 64  # and then the other connections get their turn
TURN_BYTES = 1 << 20  # more at once only costs page faults (4 MiB: half the speed at depth 32)
_DEAD_S = 120  # of silence, until a peer that does not even answer TCP is given up
CALL_COST_BYTES = 4096  # bookkeeping of one call; bounds how many may be outstanding


@dataclass(slots=True, kw_only=True)
class Shared:
    """What a connection shares with the others of its server."""

    requests: Surroundings
    pools: dict[Lane, Executor]
    limits: Limits
    counters: Counters
    replays: ReplayCache
    in_flight: InFlight
    answered: Callable[[], None]  # replies have left
    opened: Callable[[Connection], bool]  # whether it may stay
    changed: Callable[[Connection], None]  # it was lost, or a batch of a lost one ended
    share_bytes: int = 0
    busy_clients: frozenset[str] = frozenset()  # changes of their lost connections still run


class Connection(asyncio.Protocol):
    def __init__(self, programs: Programs, shared: Shared) -> None:
        self._programs = programs
        self._shared = shared
        self._records = rpc.RecordBuffer(shared.limits.record_bytes)
        self._lanes: dict[Lane, LaneQueue] = {}
        self._reads = RepeatedReads(shared.requests)
        self._replies: list[Buffer] = []
        self._reply_bytes = 0
        self._held_bytes = 0
        self._changes = 0  # with the workers
        self._held_back: deque[tuple[Call, Service, int]] = deque()
        self._writing_paused = False
        self._reading_paused = False
        self._turn_due = False
        self._draining = False
        self.client = ""
        self.closing = False
        self.lost = False

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if peer else ""
        batches = self._shared.limits.batches_per_connection
        self._lanes = {
            lane: LaneQueue(pool, batches, self._done) for lane, pool in self._shared.pools.items()
        }
        if not self.client or not self._shared.opened(self):
            self.abort()
            return
        _notice_dead_peers(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self._records.feed(data)
        self.process()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._replies.clear()
        self._held_back.clear()
        for lane in self._lanes.values():
            for pending in lane.clear():
                self._release(pending)
                if pending.replay_key is not None:
                    self._shared.replays.drop(pending.replay_key)
        self._shared.changed(self)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self.process()

    # work

    @property
    def _handed_over(self) -> bool:
        """Whether calls are with the lanes: waiting, or served."""
        return self._held_bytes > 0

    @property
    def busy(self) -> bool:
        return bool(self._held_back) or any(lane.busy for lane in self._lanes.values())

    @property
    def changing(self) -> bool:
        """Whether calls that change something are with the workers."""
        return self._changes > 0

    def process(self) -> None:
        """Do what can be done now with what was received; pause or resume reading."""
        if self.lost or self.closing:
            return
        if self._held_back and self.client not in self._shared.busy_clients:
            self._release_held_back()
        turns = TURN_CALLS
        starved = False  # everything received was looked at
        room = self._room_bytes()
        try:
            while (
                turns
                and self._reply_bytes < TURN_BYTES
                and self._held_bytes + self._reply_bytes <= room
            ):
                record = self._records.take()
                if record is None:
                    starved = True
                    break
                turns -= 1
                self._serve(record)
        except RpcError as error:
            log.info("connection of %s broken off: %s", self.client, error)
            self.abort()
            return
        self._shared.counters.calls += TURN_CALLS - turns
        if self._handed_over:
            for lane in self._lanes.values():
                lane.dispatch()
        self._send()
        if self._draining and not self.busy:
            self.closing = True
            self._transport.close()
            return
        may_take = self._held_bytes <= self._room_bytes()
        self._set_reading(starved and may_take)
        if may_take and not starved and not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._next_turn)

    def drain(self) -> None:
        """Take no more calls, answer the outstanding ones, close. Idempotent."""
        self._draining = True
        self.process()

    def abort(self) -> None:
        self.closing = True
        self._transport.abort()

    def _next_turn(self) -> None:
        self._turn_due = False
        self.process()

    def _room_bytes(self) -> int:
        """What calls and replies may hold; negative when nothing is to be taken."""
        if self._draining or self._writing_paused:
            return -1
        return self._shared.share_bytes - self._transport.get_write_buffer_size()

    def _set_reading(self, wanted: bool) -> None:
        if wanted is self._reading_paused and not self._transport.is_closing():
            self._reading_paused = not wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _serve(self, record: memoryview) -> None:
        answered = self._reads.answer(record)
        if answered is not None:
            self._replies += answered.reply
            self._reply_bytes += answered.reply_bytes
            self._shared.counters.read_bytes += answered.reply_bytes
            return
        call = rpc.parse_call(record)
        if isinstance(call, rpc.Rejected):
            self._reply(call.reply)
            return
        request = self._request(call)
        service = self._programs.find(call, request)
        if not isinstance(service, Service):
            self._reply(service)
            return
        if service is READ:
            self._read(call, request, record)
        elif service.lane is Lane.LOOP:
            self._serve_at_once(call, service, request)
        elif service.effect is Effect.NONE:
            call = call.kept()
            self._hand_over(call, service, self._request(call), len(record))
        else:
            self._change(call.kept(), service, len(record))

    def _request(self, call: Call) -> Request:
        words = Decoder(call.arguments)
        return Request(self._shared.requests, self.client, call.uid, call.gid, words)

    def _serve_at_once(self, call: Call, service: Service, request: Request) -> None:
        try:
            body = cast(list[Buffer], nfs3.serve(service, request))
        except XdrError as error:
            self._garbage(call.xid, error)
        else:
            self._answer(call.xid, service, body)

    def _read(self, call: Call, request: Request, record: memoryview) -> None:
        try:
            found = nfs3.try_read(request)
        except XdrError as error:
            self._garbage(call.xid, error)
            return
        if isinstance(found, list):
            self._answer(call.xid, READ, found)
            self._reads.learn(record, call, request)
        else:
            self._hand_over(call, READ, request, len(record), wanted=found)

    def _change(self, call: Call, service: Service, record_bytes: int) -> None:
        """Begin a call that changes something, unless it is a repeated one."""
        if self._held_back or self.client in self._shared.busy_clients:
            self._held_bytes += CALL_COST_BYTES + record_bytes
            self._held_back.append((call, service, record_bytes))
            return
        key = key_of(self.client, call)
        known = self._shared.replays.begin(key)
        if known is None:
            self._hand_over(call, service, self._request(call), record_bytes, replay_key=key)
            return
        self._shared.counters.replayed += 1
        if known:
            self._reply([known])

    def _release_held_back(self) -> None:
        held_back, self._held_back = self._held_back, deque()
        for call, service, record_bytes in held_back:
            self._held_bytes -= CALL_COST_BYTES + record_bytes
            self._change(call, service, record_bytes)

    def _hand_over(
        self,
        call: Call,
        service: Service,
        request: Request,
        record_bytes: int,
        *,
        wanted: Range | None = None,
        replay_key: tuple[str, int, int, int, int, int] | None = None,
    ) -> None:
        reply_bytes = wanted.length if wanted is not None else 0
        pending = Pending(
            xid=call.xid,
            service=service,
            request=request,
            range=wanted,
            tree_id=self._shared.requests.tree_id_of(call.arguments),
            cost_bytes=CALL_COST_BYTES + record_bytes + reply_bytes,
            replay_key=replay_key,
        )
        self._held_bytes += pending.cost_bytes
        self._changes += service.effect is not Effect.NONE
        self._shared.in_flight.begin(pending.tree_id)
        self._lanes[service.lane].add(pending)

    def _release(self, pending: Pending) -> None:
        self._held_bytes -= pending.cost_bytes
        self._changes -= pending.service.effect is not Effect.NONE
        self._shared.in_flight.end(pending.tree_id)

    def _done(self, batch: list[Pending], replies: list[list[Buffer] | XdrError]) -> None:
        for pending, body in zip(batch, replies, strict=True):
            self._release(pending)
            if isinstance(body, XdrError):
                reply = self._garbage(pending.xid, body)
            else:
                reply = self._answer(pending.xid, pending.service, body)
            self._remember(pending, reply)
        if self.lost:
            self._replies.clear()
            self._shared.changed(self)
        else:
            self.process()

    def _remember(self, pending: Pending, reply: list[Buffer]) -> None:
        if pending.replay_key is None:
            return
        if pending.service.effect is Effect.ONCE:
            self._shared.replays.finish(pending.replay_key, reply)
        else:
            self._shared.replays.drop(pending.replay_key)

    def _garbage(self, xid: int, error: XdrError) -> list[Buffer]:
        log.info("%s sent garbage: %s", self.client, error)
        return self._reply(rpc.failure(xid, AcceptStatus.GARBAGE_ARGS))

    def _answer(self, xid: int, service: Service, body: list[Buffer]) -> list[Buffer]:
        body_bytes = sum(map(len, body))
        reply = rpc.success(xid, body, body_bytes)
        self._replies += reply
        self._reply_bytes += body_bytes
        if service is READ:
            self._shared.counters.read_bytes += body_bytes
        return reply

    def _reply(self, reply: list[Buffer]) -> list[Buffer]:
        self._replies += reply
        self._reply_bytes += sum(map(len, reply))
        return reply

    def _send(self) -> None:
        if self._replies:
            self._transport.writelines(self._replies)
            self._replies = []
            self._reply_bytes = 0
            self._shared.answered()


def _notice_dead_peers(connected: socket.socket) -> None:
    """A host that crashed closes nothing; its connections must not count forever."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _DEAD_S // 2)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _DEAD_S // 8)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_S * 1000)
