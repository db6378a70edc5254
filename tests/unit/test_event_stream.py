"""The queue of a client that listens to events."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from appliance.api.errors import NotLoggedInError
from appliance.api.event_stream import EventStreams, _listener
from appliance.api.gate import Gate
from appliance.api.route import Principal
from appliance.service.live_feed import Event, EventKind, LiveFeed


def test_a_slow_client_loses_events_and_is_told_to_look_again() -> None:
    """Its queue never grows beyond its bound."""

    async def scenario() -> list[Event | None]:
        queue: asyncio.Queue[Event | None] = asyncio.Queue(3)
        listen = _listener(queue, {EventKind.RUN})
        for number in range(5):
            listen(Event(kind=EventKind.RUN, fields={"number": number}))
            listen(Event(kind=EventKind.SESSION, fields={}))
        await asyncio.sleep(0)
        return [queue.get_nowait() for _ in range(queue.qsize())]

    found = asyncio.run(scenario())
    assert [event.kind for event in found if event] == [EventKind.RESYNC, EventKind.RUN]
    assert found[-1] is not None and found[-1].fields == {"number": 4}


def test_a_stream_ends_with_its_login_however_much_there_is_to_tell() -> None:
    """A run's progress comes every second; that does not put the look at the login off."""

    class Refusing(Gate):
        def __init__(self) -> None:
            pass

        def require(self, *_: object, **__: object) -> Principal:
            raise NotLoggedInError("the token was revoked")

    queue: asyncio.Queue[Event | None] = asyncio.Queue()
    told = Event(kind=EventKind.PROGRESS, fields={})

    class Reading(web.StreamResponse):
        written = 0

        async def write(self, data: bytes | bytearray | memoryview) -> None:
            self.written += 1
            assert self.written < 100_000, "the stream goes on without a login"
            queue.put_nowait(told)
            await asyncio.sleep(0)

    async def scenario() -> None:
        feed = cast(LiveFeed, None)
        streams = EventStreams(feed, Refusing(), heartbeat_s=0.05)
        await streams._write(make_mocked_request("GET", "/"), Reading(), queue)

    with pytest.raises(NotLoggedInError):
        asyncio.run(scenario())
