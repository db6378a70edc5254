"""The first page: what is protected, how the last night went, what needs attention."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from appliance.api.permissions import Permission
from appliance.api.routes import hosts, recoveries, runs
from appliance.api.ui.charts import Bar, bars
from appliance.api.ui.page import Page, PageCall, when
from appliance.base.units import format_size

_DAYS = 30
_ATTENTION_MOST = 20


def _overview(page: PageCall) -> dict[str, Any]:
    services = page.services
    now = services.catalog.clock.now()
    manifests = services.repository.points.list()
    inventory = page.ask(hosts.list_vms, query=hosts.VmQuery())
    recent = [
        run
        for run in page.ask(runs.list_runs, query=runs.RunQuery(limit=1000))
        if now - run.queued_at < timedelta(days=1)
    ]
    outcomes = Counter(str(run.outcome or run.state) for run in recent)
    stored: Counter[int] = Counter()
    for manifest in manifests:
        age = (now.date() - manifest.created_at.date()).days
        if 0 <= age < _DAYS:
            stored[age] += sum(disk.stored_bytes for disk in manifest.disks)
    days = [
        Bar(
            label=(now.date() - timedelta(days=age)).isoformat(),
            value=stored[age],
            text=format_size(stored[age]),
        )
        for age in reversed(range(_DAYS))
    ]
    sessions = page.ask(recoveries.list_recoveries)
    attention = [(f"{name} cannot be reached", "/hosts") for name in inventory.failures]
    attention += [
        (f"{run.kind} run of job {run.job} failed: {run.error_code}", f"/runs/{run.run_id}")
        for run in recent
        if run.outcome == "failed"
    ]
    attention += [
        (f"Recovery session of {each.vm}: {each.stuck or each.failure}", "/recoveries")
        for each in sessions
        if each.stuck or each.failure
    ]
    unprotected = [vm for vm in inventory.vms if vm.newest_point is None]
    attention += [
        (f"{vm.name} has no recovery point", f"/vms?show={quote('unprotected')}")
        for vm in unprotected
    ]
    return {
        "vm_count": len(inventory.vms),
        "unprotected": len(unprotected),
        "protected": len(inventory.vms) - len(unprotected),
        "failures": inventory.failures,
        "outcomes": outcomes,
        "point_count": len(manifests),
        "newest": when(manifests[-1].created_at) if manifests else None,
        "sessions": sessions,
        "attention": attention[:_ATTENTION_MOST],
        "attention_more": max(0, len(attention) - _ATTENTION_MOST),
        "chart": bars(f"Bytes stored on each of the last {_DAYS} days", days),
        "chart_first": days[0].label,
        "chart_last": days[-1].label,
        "chart_most": format_size(max(stored.values(), default=0)),
        "runs": recent[:10],
        "job_count": len(services.catalog.jobs.list()),
        "host_count": len(services.catalog.hosts.list()),
    }


PAGES = (
    Page(
        address="/",
        template="overview.html",
        permission=Permission.VIEW,
        show=_overview,
        live=("run", "session"),
    ),
)
