"""One TCP connection: records in, replies out, in as few steps as can be.

Data path: whole records are taken from the stream; what answers from memory (and READs whose data
is there) is answered in the same callback with one `writelines`; the rest goes to the worker pools
in batches and is answered in any order.

Invariants:
- What a connection holds (calls not answered, replies not taken) stays below its share of the
  server's memory plus one record: above it nothing is parsed and reading is paused.
- A call that must not be done twice is in the replay cache from its arrival to long after its
  reply.
- A client's new connection is not read while calls of its lost one still run: a write that comes
  late must not undo a newer one.

Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import cast

from nfs_server import nfs3, rpc
from nfs_server.errors import RpcError, XdrError
from nfs_server.lane_queue import CALL_COST_BYTES, LaneQueue, Pending
from nfs_server.limits import Counters, Limits
from nfs_server.nfs3 import Lane, Service
from nfs_server.programs import Programs
from nfs_server.protocol import AcceptStatus, Procedure
from nfs_server.replay_cache import ReplayCache, key_of
from nfs_server.request import Request, Surroundings
from nfs_server.rpc import Call
from nfs_server.vfs import Buffer
from nfs_server.xdr import Decoder

log = logging.getLogger(__name__)

TURN_CALLS = 64
_READ = nfs3.SERVICES[Procedure.READ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What a connection shares with the others of its server."""

    requests: Surroundings
    pools: dict[Lane, Executor]
    limits: Limits
    counters: Counters
    replays: ReplayCache
    share_bytes: Callable[[], int]
    client_busy: Callable[[str], bool]  # lost connections of this client still have calls running
    changed: Callable[[Connection], None]  # it was lost, or the last call of a lost one ended


class Connection(asyncio.Protocol):
    def __init__(self, programs: Programs, shared: Shared) -> None:
        self._programs = programs
        self._shared = shared
        self._records = rpc.RecordBuffer(shared.limits.record_bytes)
        self._lanes: dict[Lane, LaneQueue] = {}
        self._replies: list[Buffer] = []
        self._held_bytes = 0
        self._writing_paused = False
        self._reading_paused = False
        self._turn_due = False
        self._draining = False
        self.client = ""
        self.lost = False

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if peer else ""
        limits = self._shared.limits
        self._lanes = {
            lane: LaneQueue(pool, limits.batches_per_connection, self._done)
            for lane, pool in self._shared.pools.items()
        }

    def data_received(self, data: bytes) -> None:
        self._records.feed(data)
        self.process()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._replies.clear()
        for lane in self._lanes.values():
            for pending in lane.clear():
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
    def busy(self) -> bool:
        return any(lane.busy for lane in self._lanes.values())

    def process(self) -> None:
        """Do what can be done now with what was received; pause or resume reading."""
        if self.lost:
            return
        turns = TURN_CALLS
        try:
            while turns and self._may_take():
                record = self._records.take()
                if record is None:
                    break
                turns -= 1
                self._serve(record)
        except RpcError as error:
            log.info("connection of %s broken off: %s", self.client, error)
            self._transport.abort()
            return
        self._shared.counters.calls += TURN_CALLS - turns
        for lane in self._lanes.values():
            lane.dispatch()
        self._send()
        if self._draining and not self.busy:
            self._transport.close()
            return
        self._set_reading(bool(turns) and self._may_take())
        if not turns and not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._next_turn)

    def drain(self) -> None:
        """Take no more calls, answer the outstanding ones, close. Idempotent."""
        self._draining = True
        self.process()

    def abort(self) -> None:
        self._transport.abort()

    def _next_turn(self) -> None:
        self._turn_due = False
        self.process()

    def _may_take(self) -> bool:
        shared = self._shared
        return not (
            self._draining
            or self._writing_paused
            or self._held_bytes + self._transport.get_write_buffer_size() > shared.share_bytes()
            or shared.client_busy(self.client)
        )

    def _set_reading(self, wanted: bool) -> None:
        if wanted is self._reading_paused:
            self._reading_paused = not wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _serve(self, record: memoryview) -> None:
        call = rpc.parse_call(record)
        if isinstance(call, rpc.Rejected):
            self._replies += call.reply
            return
        request = Request(
            self._shared.requests, self.client, call.uid, call.gid, Decoder(call.arguments)
        )
        service = self._programs.find(call, lambda: request)
        if not isinstance(service, Service):
            self._replies += service
            return
        try:
            body = self._at_once(service, request)
        except XdrError as error:
            self._garbage(call.xid, error)
            return
        if body is not None:
            self._replies += rpc.success(call.xid, body)
        else:
            self._hand_over(call, service, len(record))

    def _at_once(self, service: Service, request: Request) -> list[Buffer] | None:
        if service is _READ:
            body = nfs3.try_read(request)
            if body is not None:
                self._shared.counters.read_bytes += sum(map(len, body))
            return body
        if service.lane is Lane.LOOP:
            return cast(list[Buffer], nfs3.serve(service, request))
        return None

    def _hand_over(self, call: Call, service: Service, record_bytes: int) -> None:
        key = None
        if not service.repeatable:
            key = key_of(self.client, call)
            known = self._shared.replays.begin(key)
            if known is not None:
                self._shared.counters.replayed += 1
                if known:
                    self._replies.append(known)
                return
        reply_bytes = self._shared.limits.transfer_bytes if service is _READ else 0
        cost_bytes = CALL_COST_BYTES + record_bytes + reply_bytes
        self._held_bytes += cost_bytes
        request = Request(
            self._shared.requests, self.client, call.uid, call.gid, Decoder(call.arguments)
        )
        self._lanes[service.lane].add(Pending(call.xid, service, request, cost_bytes, key))

    def _done(self, batch: list[Pending], replies: list[list[Buffer] | XdrError]) -> None:
        counters = self._shared.counters
        for pending, body in zip(batch, replies, strict=True):
            self._held_bytes -= pending.cost_bytes
            if isinstance(body, XdrError):
                reply = self._garbage(pending.xid, body)
            else:
                reply = rpc.success(pending.xid, body)
                self._replies += reply
            if pending.replay_key is not None:
                self._shared.replays.finish(pending.replay_key, reply)
            if pending.service is _READ and not isinstance(body, XdrError):
                counters.read_bytes += sum(map(len, body))
        if self.lost:
            self._replies.clear()
            self._shared.changed(self)
        else:
            self.process()

    def _garbage(self, xid: int, error: XdrError) -> list[Buffer]:
        log.info("%s sent garbage: %s", self.client, error)
        reply = rpc.failure(xid, AcceptStatus.GARBAGE_ARGS)
        self._replies += reply
        return reply

    def _send(self) -> None:
        if self._replies:
            replies, self._replies = self._replies, []
            self._transport.writelines(replies)
