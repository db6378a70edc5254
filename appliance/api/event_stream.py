"""Server-sent events: what happens, told to browsers and programs as it happens.

    live feed (its thread) -> a bounded queue per client -> one response that does not end

A client that reads too slowly loses events, never memory of ours: its queue is emptied and it is
told to look at the whole again (`resync`). A heartbeat keeps the connection open; with it the login
is looked at again, so a stream ends with its login.
Source: HTML Living Standard, section 9.2, server-sent events.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection
from contextlib import suppress

from aiohttp import web

from appliance.api.errors import NotLoggedInError, TooManyRequestsError
from appliance.api.gate import Gate
from appliance.api.permissions import Permission
from appliance.api.route import Call
from appliance.api.safe_headers import SAFE_HEADERS
from appliance.base.errors import ApplianceError
from appliance.service.live_feed import Event, EventKind, LiveFeed

HEARTBEAT_S = 15.0
_QUEUED_MAX = 256
_WRITE_S = 60.0
_STREAMS_MAX = 200
_STREAMS_OF_CALLER_MAX = 20
_RESYNC = Event(kind=EventKind.RESYNC, fields={})


class EventStreams:
    """All open streams; belongs to one event loop."""

    def __init__(
        self,
        feed: LiveFeed,
        gate: Gate,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        queued_max: int = _QUEUED_MAX,
    ) -> None:
        self._feed = feed
        self._gate = gate
        self._heartbeat_s = heartbeat_s
        self._queued_max = queued_max
        self._open: dict[asyncio.Queue[Event | None], str] = {}

    async def serve(
        self, request: web.Request, call: Call, kinds: Collection[EventKind]
    ) -> web.StreamResponse:
        """Tell of events of these kinds until one side ends it. Raises TooManyRequestsError."""
        name = call.caller.name
        mine = sum(caller == name for caller in self._open.values())
        if len(self._open) >= _STREAMS_MAX or mine >= _STREAMS_OF_CALLER_MAX:
            raise TooManyRequestsError(f"{len(self._open)} streams are open, {mine} of {name}")
        queue: asyncio.Queue[Event | None] = asyncio.Queue(self._queued_max)
        self._open[queue] = name
        unsubscribe = self._feed.subscribe(_listener(queue, frozenset(kinds)))
        try:
            headers = SAFE_HEADERS | {"Content-Type": "text/event-stream; charset=utf-8"}
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            with suppress(ConnectionError, NotLoggedInError, TimeoutError):
                await self._write(request, response, queue)
            return response
        finally:
            unsubscribe()
            del self._open[queue]

    async def close(self, _: web.Application) -> None:
        """End all streams."""
        for queue in list(self._open):
            _empty(queue)
            queue.put_nowait(None)

    async def _write(
        self,
        request: web.Request,
        response: web.StreamResponse,
        queue: asyncio.Queue[Event | None],
    ) -> None:
        """Raises: ConnectionError; NotLoggedInError: the login has ended; TimeoutError: the client
        reads nothing any more."""
        await response.write(b"retry: 3000\n\n")
        loop = asyncio.get_running_loop()
        check_at_s = loop.time() + self._heartbeat_s
        while True:
            try:  # events do not put the look at the login off, however many come
                event = await asyncio.wait_for(queue.get(), check_at_s - loop.time())
            except TimeoutError:
                await self._check(request)
                await self._send(response, b": still here\n\n")
                check_at_s = loop.time() + self._heartbeat_s
                continue
            if event is None:
                return
            data = json.dumps(event.fields, default=str)
            await self._send(response, f"event: {event.kind}\ndata: {data}\n\n".encode())

    async def _send(self, response: web.StreamResponse, raw: bytes) -> None:
        """Raises: ConnectionError, TimeoutError."""
        await asyncio.wait_for(response.write(raw), _WRITE_S)

    async def _check(self, request: web.Request) -> None:
        """Raises NotLoggedInError."""
        try:
            await asyncio.to_thread(self._gate.require, request, Permission.VIEW, changes=False)
        except ApplianceError as error:
            raise NotLoggedInError("the login has ended") from error


def _listener(
    queue: asyncio.Queue[Event | None], kinds: Collection[EventKind]
) -> Callable[[Event], None]:
    loop = asyncio.get_running_loop()

    def put(event: Event) -> None:
        if queue.full():
            _empty(queue)
            event = _RESYNC
        queue.put_nowait(event)

    def listen(event: Event) -> None:
        if event.kind in kinds or event.kind is EventKind.RESYNC:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(put, event)

    return listen


def _empty(queue: asyncio.Queue[Event | None]) -> None:
    while not queue.empty():
        queue.get_nowait()
