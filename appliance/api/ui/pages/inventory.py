"""Pages of what is protected: virtual machines, their recovery points, the repository."""

from __future__ import annotations

import shutil
from collections import Counter
from datetime import timedelta
from typing import Any

from appliance.api.errors import NotFoundError
from appliance.api.permissions import Permission
from appliance.api.routes import hosts, jobs, points, runs
from appliance.api.ui.charts import Bar, bars, calendar
from appliance.api.ui.page import Page, PageCall, when
from appliance.base.units import format_duration, format_size

_VMS_MOST = 500
_GROWTH_DAYS = 30
_FORECAST_FROM_DAYS = 3
_FORECAST_DAYS = 5 * 365


def _vms(page: PageCall) -> dict[str, Any]:
    found = page.ask(hosts.list_vms, query=hosts.VmQuery())
    q, show = page.text("q")[:255], page.text("show")
    wanted = [
        vm
        for vm in found.vms
        if q.casefold() in vm.name.casefold() and (show != "unprotected" or vm.newest_point is None)
    ]
    kept = page.services.repository.points.list()
    there = {vm.point_name for vm in found.vms}
    return {
        "vms": wanted[:_VMS_MOST],
        "more": max(0, len(wanted) - _VMS_MOST),
        "total": len(found.vms),
        "failures": found.failures,
        "q": q,
        "show": show or q,
        "gone": [] if show or q else sorted({each.vm for each in kept} - there),
    }


def _vm(page: PageCall) -> dict[str, Any]:
    name = page.call.path["name"]
    found = page.ask(points.list_points, query=points.PointQuery(vm=name, limit=1000))
    if not found:
        raise NotFoundError(f"there is no recovery point of {name!r}")
    counts = Counter(point.created_at.date() for point in found)
    today = page.services.catalog.clock.now().date()
    trend = page.services.catalog.verifications.trend(name, limit=30)
    return {
        "name": name,
        "points": found,
        "calendar": calendar(f"Recovery points of {name} by day", dict(counts), today),
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
    disk = shutil.disk_usage(page.services.repository_path)
    now = page.services.catalog.clock.now()
    stored: Counter[int] = Counter()
    for manifest in page.services.repository.points.list():
        age = (now.date() - manifest.created_at.date()).days
        if 0 <= age < _GROWTH_DAYS:
            stored[age] += sum(each.stored_bytes for each in manifest.disks)
    seen = max(stored, default=-1) + 1
    per_day = sum(stored.values()) / seen if seen else 0.0
    return {
        "stats": page.ask(points.show_repository),
        "free": disk.free,
        "total": disk.total,
        "forecast": _forecast(disk.free, per_day, seen),
        "growth": bars(
            "Bytes stored by each day's recovery points",
            [
                Bar(
                    label=(now.date() - timedelta(days=age)).isoformat(),
                    value=stored[age],
                    text=format_size(stored[age]),
                )
                for age in reversed(range(_GROWTH_DAYS))
            ],
        )
        if stored
        else None,
        "growth_words": f"{format_size(int(per_day))} a day on average, before anything is removed",
        "upkeep": [
            job for job in page.ask(jobs.list_jobs) if job.kind in ("gc", "check", "retention")
        ],
    }


def _forecast(free_bytes: int, per_day: float, days_seen: int) -> str:
    """In words, by the average of the days there are; removal of old points is not counted."""
    if days_seen < _FORECAST_FROM_DAYS or per_day < 1:
        return "Too few days are known for a forecast."
    days = int(free_bytes / per_day)
    if days > _FORECAST_DAYS:
        return "At the present rate it lasts for years."
    return f"At the present rate, and if nothing were removed, it is full in {days} days."


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
