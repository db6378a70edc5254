"""The queue of a client that listens to events."""

from __future__ import annotations

import asyncio

from appliance.api.event_stream import _listener
from appliance.service.live_feed import Event, EventKind


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
