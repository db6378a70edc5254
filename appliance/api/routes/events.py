"""Events as they happen."""

from __future__ import annotations

from pydantic import Field

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable
from appliance.base.errors import UsageError
from appliance.service.live_feed import EventKind

table = RouteTable("events")


class EventQuery(Body):
    kinds: str = Field(
        default="",
        max_length=200,
        description="run, progress, operation, session, job; several with commas; none: all",
    )


@table.add("GET", "/events", Permission.VIEW, query=EventQuery, streams=True)
def stream_events(call: Call) -> frozenset[EventKind]:
    """Server-sent events: run state, progress, operations, recovery sessions, jobs."""
    words = [word for word in call.query_as(EventQuery).kinds.split(",") if word]
    unknown = sorted(set(words) - set(EventKind))
    if unknown:
        raise UsageError(f"no events of kind {unknown[0]!r}; there are {', '.join(EventKind)}")
    return frozenset(map(EventKind, words)) or frozenset(EventKind)
