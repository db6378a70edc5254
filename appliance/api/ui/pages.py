"""The pages: a table of address, permission, template and what to show in it.

Pages only read; what changes something is a form that `app.js` sends to the API. Whoever is not
logged in gets the login page in place of any other.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from appliance.api.errors import NotFoundError, NotLoggedInError
from appliance.api.gate import Gate
from appliance.api.permissions import OF_ROLE, Permission, may
from appliance.api.route import Call, Principal
from appliance.api.routes import accounts, audit, hosts, points, recoveries, runs, tokens
from appliance.api.services import Services
from appliance.api.ui.charts import Bar, bars, calendar
from appliance.base.units import format_size
from appliance.catalog.accounts import Role

_FOLDER = Path(__file__).parent
_MENU = (
    ("/vms", "Virtual machines", Permission.VIEW),
    ("/runs", "Runs", Permission.VIEW),
    ("/recoveries", "Recovery sessions", Permission.VIEW),
    ("/repository", "Repository", Permission.VIEW),
    ("/hosts", "Hypervisors", Permission.VIEW),
    ("/accounts", "Accounts", Permission.ADMINISTER),
    ("/audit", "Audit log", Permission.ADMINISTER),
)
_DAYS = 30
Show = Callable[[Call], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    address: str
    template: str
    permission: Permission
    show: Show
    reload_s: int = 0


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["size"] = format_size
    environment.filters["when"] = _when
    return environment


def _when(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def add_pages(application: web.Application, services: Services, gate: Gate) -> None:
    environment = _environment()
    for page in PAGES:
        application.router.add_get(page.address, _endpoint(page, services, gate, environment))
    application.router.add_static("/static/", _FOLDER / "static")


def _endpoint(
    page: Page, services: Services, gate: Gate, environment: Environment
) -> Callable[[web.Request], Awaitable[web.Response]]:
    def render(request: web.Request) -> str:
        try:
            principal = gate.require(request, page.permission, changes=False)
        except NotLoggedInError:
            needs_setup = not services.catalog.accounts.any()
            shown = {"me": None, "csrf": None, "reload": 0, "needs_setup": needs_setup}
            return environment.get_template("login.html").render(shown)
        call = Call(
            services=services,
            principal=principal,
            address=request.remote or "-",
            path={name: unquote(value) for name, value in request.match_info.items()},
            body=None,
            query=None,
        )
        call.path = {**call.path, **{f"?{name}": value for name, value in request.query.items()}}
        shown = _frame(page, services, principal) | page.show(call)
        return environment.get_template(page.template).render(shown)

    async def endpoint(request: web.Request) -> web.Response:
        gate.count(request.remote or "-", login=False)
        text = await asyncio.to_thread(render, request)
        return web.Response(text=text, content_type="text/html")

    return endpoint


def _frame(page: Page, services: Services, principal: Principal) -> dict[str, Any]:
    secret = principal.session_secret
    session = services.catalog.web_sessions.find(secret) if secret else None
    return {
        "me": {"name": principal.name, "permissions": [str(p) for p in OF_ROLE[principal.role]]},
        "csrf": session.csrf if session else None,
        "here": page.address,
        "reload": page.reload_s,
        "menu": [(at, text) for at, text, needed in _MENU if may(principal.role, needed)],
    }


def _dashboard(call: Call) -> dict[str, Any]:
    services = call.services
    now = services.catalog.clock.now()
    manifests = services.repository.points.list()
    call.query = hosts.VmQuery()
    inventory = hosts.list_vms(call)
    recent = [
        run
        for run in services.catalog.runs.list(limit=1000)
        if now - run.started_at < timedelta(days=1)
    ]
    outcomes = Counter(str(run.outcome) if run.outcome else "running" for run in recent)
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
    sessions = recoveries.list_recoveries(call)
    attention = [(f"{name} cannot be reached", "/hosts") for name in inventory.failures]
    attention += [
        (f"{vm.name} has no recovery point", "/vms")
        for vm in inventory.vms
        if vm.newest_point is None
    ]
    attention += [
        (f"{run.kind} of {run.vm} failed: {run.error_code}", f"/runs/{run.run_id}")
        for run in recent
        if run.outcome == "failed"
    ]
    attention += [
        (f"session {each.session_id}: {each.failure}", "/recoveries")
        for each in sessions
        if each.failure
    ]
    return {
        "vm_count": len(inventory.vms),
        "protected": sum(vm.newest_point is not None for vm in inventory.vms),
        "failures": inventory.failures,
        "good": outcomes["success"] + outcomes["warning"],
        "bad": outcomes["failed"],
        "warned": outcomes["warning"],
        "running": outcomes["running"],
        "point_count": len(manifests),
        "newest": _when(manifests[-1].created_at) if manifests else None,
        "sessions": sessions,
        "attention": attention[:20],
        "chart": bars(f"Bytes stored on each of the last {_DAYS} days", days),
        "chart_first": days[0].label,
        "chart_last": days[-1].label,
        "chart_most": format_size(max(stored.values(), default=0)),
        "runs": list(reversed(recent))[:10],
    }


def _vms(call: Call) -> dict[str, Any]:
    call.query = hosts.VmQuery()
    found = hosts.list_vms(call)
    return {"vms": found.vms, "failures": found.failures}


def _vm(call: Call) -> dict[str, Any]:
    name = call.path["name"]
    call.query = points.PointQuery(vm=name, limit=1000)
    found = points.list_points(call)
    if not found:
        raise NotFoundError(f"there is no recovery point of {name!r}")
    counts = Counter(point.created_at.date() for point in found)
    call.query = runs.RunQuery(vm=name, limit=20)
    today = call.services.catalog.clock.now().date()
    chart = calendar(f"Recovery points of {name} by day", dict(counts), today)
    return {"name": name, "points": found, "calendar": chart, "runs": runs.list_runs(call)}


def _point(call: Call) -> dict[str, Any]:
    return {"point": points.show_point(call)}


def _runs(call: Call) -> dict[str, Any]:
    call.query = runs.RunQuery()
    return {"runs": runs.list_runs(call)}


def _run(call: Call) -> dict[str, Any]:
    run = runs.show_run(call)
    found = [*run.result.get("reasons", [])]
    for disk in run.result.get("disks", []):
        found += disk.get("reasons", [])
    return {"run": run, "reasons": found, "result": json.dumps(run.result, indent=1)}


def _recoveries(call: Call) -> dict[str, Any]:
    return {"sessions": recoveries.list_recoveries(call)}


def _repository(call: Call) -> dict[str, Any]:
    disk = shutil.disk_usage(call.services.repository_path)
    return {"stats": points.show_repository(call), "free": disk.free, "total": disk.total}


def _hosts(call: Call) -> dict[str, Any]:
    return {
        "hosts": hosts.list_hosts(call),
        "configure": may(call.caller.role, Permission.CONFIGURE),
    }


def _accounts(call: Call) -> dict[str, Any]:
    return {
        "accounts": accounts.list_accounts(call),
        "tokens": tokens.list_tokens(call),
        "roles": [str(role) for role in reversed(Role)],
    }


def _audit(call: Call) -> dict[str, Any]:
    before = call.path.get("?before", "")
    call.query = audit.AuditPage(before=int(before) if before.isdecimal() and int(before) else None)
    broken = audit.check_audit(call).first_broken
    return {"entries": audit.list_audit(call), "broken": broken}


PAGES = (
    Page(
        address="/",
        template="dashboard.html",
        permission=Permission.VIEW,
        show=_dashboard,
        reload_s=60,
    ),
    Page(address="/vms", template="vms.html", permission=Permission.VIEW, show=_vms),
    Page(address="/vms/{name}", template="vm.html", permission=Permission.VIEW, show=_vm),
    Page(address="/points/{point}", template="point.html", permission=Permission.VIEW, show=_point),
    Page(
        address="/runs", template="runs.html", permission=Permission.VIEW, show=_runs, reload_s=15
    ),
    Page(address="/runs/{run}", template="run.html", permission=Permission.VIEW, show=_run),
    Page(
        address="/recoveries",
        template="recoveries.html",
        permission=Permission.VIEW,
        show=_recoveries,
        reload_s=15,
    ),
    Page(
        address="/repository",
        template="repository.html",
        permission=Permission.VIEW,
        show=_repository,
    ),
    Page(address="/hosts", template="hosts.html", permission=Permission.VIEW, show=_hosts),
    Page(
        address="/accounts",
        template="accounts.html",
        permission=Permission.ADMINISTER,
        show=_accounts,
    ),
    Page(address="/audit", template="audit.html", permission=Permission.ADMINISTER, show=_audit),
)
