"""Runs: what was tried, when, and how it ended."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, Field

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.base.ids import RunId

table = RouteTable("runs")


class RunShown(Shown):
    run_id: str
    kind: str
    vm: str
    host: str | None
    started_at: AwareDatetime
    ended_at: AwareDatetime | None
    outcome: str | None
    error_code: str | None


class RunDetail(RunShown):
    result: dict[str, Any]


class RunQuery(Body):
    vm: str | None = Field(default=None, max_length=255)
    limit: int = Field(default=100, ge=1, le=1000)


@table.add("GET", "/runs", Permission.VIEW, query=RunQuery, response=list[RunShown])
def list_runs(call: Call) -> list[RunShown]:
    """The newest runs, newest first."""
    query = call.query_as(RunQuery)
    found = call.services.catalog.runs.list(vm=query.vm, limit=query.limit)
    return [RunShown.model_validate(each) for each in reversed(found)]


@table.add("GET", "/runs/{run}", Permission.VIEW, response=RunDetail)
def show_run(call: Call) -> RunDetail:
    """One run with its result."""
    return RunDetail.model_validate(call.services.catalog.runs.get(RunId(call.path["run"])))
