"""Pages of what is protected: virtual machines, their recovery points, the repository."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from appliance.api.errors import NotFoundError
from appliance.api.permissions import Permission
from appliance.api.routes import hosts, jobs, points, runs
from appliance.api.ui.charts import Bar, bars, calendar
from appliance.api.ui.page import Page, PageCall, when
from appliance.api.ui.space import forecast
from appliance.base.units import format_duration, format_size
from appliance.service.repository_figures import repository_disk

_VMS_SHOWN = 100
_GROWTH_DAYS = 30


def _vms(page: PageCall) -> dict[str, Any]:
    q, unprotected = page.text("q")[:255], page.text("show") == "unprotected"
    offset = page.number("offset") or 0
    query = hosts.VmQuery(name=q, unprotected=unprotected, offset=offset, limit=_VMS_SHOWN)
    found = page.ask(hosts.list_vms, query=query)
    filtered = bool(q or unprotected or offset)
    return {
        "vms": found.vms,
        "failures": found.failures,
        "total": found.vm_count,
        "matching": found.match_count,
        "q": q,
        "unprotected": unprotected,
        "filtered": filtered,
        "first": offset + 1,
        "last": offset + len(found.vms),
        "earlier": max(0, offset - _VMS_SHOWN) if offset else None,
        "later": offset + _VMS_SHOWN if offset + _VMS_SHOWN < found.match_count else None,
        "gone": [] if filtered else _gone(page),
    }


def _gone(page: PageCall) -> list[str]:
    """Names of VMs that have points, and that no hypervisor has now."""
    there = {vm.identity.key for vm in page.services.inventory.known()}
    kept = page.services.catalog.points.vms()
    return [each.vm for each in kept if each.vm_key not in there][:_VMS_SHOWN]


def _vm(page: PageCall) -> dict[str, Any]:
    name = page.call.path["name"]
    found = page.ask(points.list_points, query=points.PointQuery(vm=name, limit=1000))
    if not found:
        raise NotFoundError(f"there is no recovery point of {name!r}")
    today = page.services.catalog.clock.now().date()
    counts = page.services.catalog.points.of_days(name, today - timedelta(weeks=26))
    trend = page.services.catalog.verifications.trend(name, limit=30)
    return {
        "name": name,
        "points": found,
        "calendar": calendar(f"Recovery points of {name} by day", counts, today),
        "runs": page.ask(runs.list_vm_runs, query=runs.VmRunQuery(vm=name, limit=20)),
        "trend": trend,
        "verdicts": {each.point_id: each.verdict for each in trend},
        "trend_chart": bars(
            f"Recovery time of {name}, measured in its verifications",
            [
                Bar(
                    label=when(each.started_at),
                    value=each.recovery_s,
                    text=format_duration(each.recovery_s),
                )
                for each in trend
                if each.recovery_s is not None
            ],
        ),
    }


def _point(page: PageCall) -> dict[str, Any]:
    return {"point": page.ask(points.show_point)}


def _repository(page: PageCall) -> dict[str, Any]:
    disk = repository_disk(page.services.repository_path)
    today = page.services.catalog.clock.now().date()
    first = today - timedelta(days=_GROWTH_DAYS - 1)
    stored = page.services.catalog.points.stored_by_day(first)
    days = [first + timedelta(days=number) for number in range(_GROWTH_DAYS)]
    return {
        "stats": page.ask(points.show_repository),
        "free": disk.free_bytes,
        "total": disk.total_bytes,
        "forecast": forecast(disk.free_bytes, stored, today),
        "growth": bars(
            "Bytes stored by each day's recovery points",
            [
                Bar(
                    label=day.isoformat(),
                    value=stored.get(day, 0),
                    text=format_size(stored.get(day, 0)),
                )
                for day in days
            ],
        )
        if stored
        else None,
        "upkeep": [
            job
            for job in page.ask(jobs.list_jobs)
            if job.kind in ("gc", "check", "retention", "verification")
        ],
    }


PAGES = (
    Page(address="/vms", template="vms.html", permission=Permission.VIEW, show=_vms),
    Page(address="/vms/{name}", template="vm.html", permission=Permission.VIEW, show=_vm),
    Page(address="/points/{point}", template="point.html", permission=Permission.VIEW, show=_point),
    Page(
        address="/repository",
        template="repository.html",
        permission=Permission.VIEW,
        show=_repository,
    ),
)
