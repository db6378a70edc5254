"""Runs of jobs, and the runs for single VMs that they consist of."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, Field

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.api.routes.jobs import RunBrief
from appliance.base.ids import RunId
from appliance.base.run_context import ProgressSnapshot
from appliance.jobs.live_run import LiveSnapshot

table = RouteTable("runs")


class ProgressShown(Shown):
    done_bytes: int
    total_bytes: int
    seconds: float
    bytes_per_s: float
    eta_s: float | None
    bottleneck: str | None = Field(description="read, compress or write: what takes most time")


class LiveDiskShown(ProgressShown):
    vm: str
    disk: str


class LiveShown(ProgressShown):
    """A run as it is now; `disks` are those that are being read or written."""

    run_id: str
    step: str
    vm_count: int
    ended_vm_count: int
    disks: tuple[LiveDiskShown, ...]


class VmRunShown(Shown):
    """One attempt for one VM: a backup, a restore, a verification."""

    run_id: str
    kind: str
    vm: str
    host: str | None
    job_run: str | None
    started_at: AwareDatetime
    ended_at: AwareDatetime | None
    outcome: str | None
    error_code: str | None


class VmRunDetail(VmRunShown):
    result: dict[str, Any]


class RunDetail(RunBrief):
    """`repeats`: the run that this one repeats."""

    repeats: str | None
    result: dict[str, Any]
    live: LiveShown | None
    vm_runs: tuple[VmRunShown, ...]


class RunQuery(Body):
    job: str | None = Field(default=None, max_length=63)
    before: int | None = Field(default=None, ge=0, description="`seq` of the last one shown")
    limit: int = Field(default=100, ge=1, le=1000)


class VmRunQuery(Body):
    vm: str | None = Field(default=None, max_length=255)
    limit: int = Field(default=100, ge=1, le=1000)


@table.add("GET", "/runs", Permission.VIEW, query=RunQuery, response=list[RunBrief])
def list_runs(call: Call) -> list[RunBrief]:
    """The runs of jobs, newest first; `before` goes on after a page."""
    query = call.query_as(RunQuery)
    found = call.services.jobs.runs(job=query.job, before=query.before, limit=query.limit)
    return [RunBrief.model_validate(run) for run in reversed(found)]


@table.add("GET", "/live-runs", Permission.VIEW, response=list[LiveShown])
def list_live_runs(call: Call) -> list[LiveShown]:
    """The runs that go on: disks, rates, what is left, what limits them."""
    return [live_shown(snapshot) for snapshot in call.services.jobs.live()]


@table.add("GET", "/runs/{run}", Permission.VIEW, response=RunDetail)
def show_run(call: Call) -> RunDetail:
    """One run with its result, its VMs and, while it goes on, its progress."""
    view = call.services.jobs.run(call.path["run"])
    run = view.run
    return RunDetail(
        **RunBrief.model_validate(run).model_dump(),
        repeats=None if run.first_run == run.run_id else run.first_run,
        result=run.result,
        live=live_shown(view.live) if view.live else None,
        vm_runs=tuple(VmRunShown.model_validate(each) for each in view.vm_runs),
    )


@table.add("POST", "/runs/{run}/cancel", Permission.RUN)
def cancel_run(call: Call) -> None:
    """Ask a run to end; what is not done gets no recovery point."""
    call.services.jobs.cancel(call.path["run"])


@table.add("GET", "/vm-runs", Permission.VIEW, query=VmRunQuery, response=list[VmRunShown])
def list_vm_runs(call: Call) -> list[VmRunShown]:
    """What was tried for single VMs, newest first: backups, restores, verifications."""
    query = call.query_as(VmRunQuery)
    found = call.services.catalog.runs.list(vm=query.vm, limit=query.limit)
    return [VmRunShown.model_validate(each) for each in reversed(found)]


@table.add("GET", "/vm-runs/{run}", Permission.VIEW, response=VmRunDetail)
def show_vm_run(call: Call) -> VmRunDetail:
    """One attempt for one VM with its result."""
    return VmRunDetail.model_validate(call.services.catalog.runs.get(RunId(call.path["run"])))


def live_shown(snapshot: LiveSnapshot) -> LiveShown:
    return LiveShown(
        run_id=snapshot.run_id,
        step=snapshot.step,
        vm_count=snapshot.vm_count,
        ended_vm_count=snapshot.ended_vm_count,
        disks=tuple(
            LiveDiskShown(vm=disk.vm, disk=disk.disk, **_progress(disk.progress))
            for disk in snapshot.disks
        ),
        **_progress(snapshot.whole),
    )


def _progress(now: ProgressSnapshot) -> dict[str, Any]:
    return {name: getattr(now, name) for name in ProgressShown.model_fields}
