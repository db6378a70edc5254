"""The first page: what is protected, how the last night went, what needs attention."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

from appliance.api.permissions import Permission
from appliance.api.routes import hosts, jobs, proofs, recoveries, runs, verifications
from appliance.api.ui.charts import Bar, bars
from appliance.api.ui.page import Page, PageCall, when
from appliance.api.ui.space import forecast
from appliance.base.errors import ApplianceError
from appliance.base.units import format_size
from appliance.service.repository_figures import repository_disk

_DAYS = 30
_ATTENTION_MOST = 20
_PROOFS_SHOWN = 12
_PROOFS_READ = 500


def _overview(page: PageCall) -> dict[str, Any]:
    services = page.services
    points = services.catalog.points
    now = services.catalog.clock.now()
    today = now.date()
    inventory = page.ask(hosts.list_vms, query=hosts.VmQuery(unprotected=True, limit=1))
    recent = [
        run
        for run in page.ask(runs.list_runs, query=runs.RunQuery(limit=1000))
        if now - run.queued_at < timedelta(days=1)
    ]
    stored = points.stored_by_day(today - timedelta(days=_DAYS - 1))
    days = [today - timedelta(days=age) for age in reversed(range(_DAYS))]
    newest = points.page(limit=1)
    proven = page.ask(proofs.list_latest_proofs, query=proofs.LatestQuery(limit=_PROOFS_READ))
    disk = repository_disk(services.repository_path)
    unprotected = inventory.match_count
    attention = _attention(page, inventory, recent, proven, unprotected)
    return {
        "vm_count": inventory.vm_count,
        "unprotected": unprotected,
        "protected": inventory.vm_count - unprotected,
        "failures": inventory.failures,
        "outcomes": Counter(str(run.outcome or run.state) for run in recent),
        "point_count": points.totals().point_count,
        "newest": when(newest[0].created_at) if newest else None,
        "sessions": page.ask(recoveries.list_recoveries),
        "attention": attention[:_ATTENTION_MOST],
        "attention_more": max(0, len(attention) - _ATTENTION_MOST),
        "proven": sorted(proven, key=lambda each: each.verdict != "failed")[:_PROOFS_SHOWN],
        "proof_counts": Counter(each.verdict for each in proven),
        "pictures": _pictures(page, proven[:_PROOFS_SHOWN]),
        "chart": bars(
            f"Bytes stored on each of the last {_DAYS} days",
            [
                Bar(
                    label=day.isoformat(),
                    value=stored.get(day, 0),
                    text=format_size(stored.get(day, 0)),
                )
                for day in days
            ],
        ),
        "chart_first": days[0].isoformat(),
        "chart_last": days[-1].isoformat(),
        "chart_most": format_size(max(stored.values(), default=0)),
        "free": disk.free_bytes,
        "total": disk.total_bytes,
        "forecast": forecast(disk.free_bytes, stored, today),
        "runs": recent[:10],
        "job_count": len(services.catalog.jobs.list()),
        "host_count": len(services.catalog.hosts.list()),
    }


def _attention(
    page: PageCall,
    inventory: hosts.VmList,
    recent: list[jobs.RunBrief],
    proven: list[proofs.LatestProof],
    unprotected: int,
) -> list[tuple[str, str]]:
    """What somebody should look at, and where."""
    found = [(f"{name} cannot be reached", "/hosts") for name in inventory.failures]
    found += [
        (
            f"{run.kind} run of job {run.job} {run.outcome}: {run.error_code}",
            f"/runs/{run.run_id}",
        )
        for run in recent
        if run.outcome == "failed"
    ]
    found += [
        (f"{each.vm}: no proof, {', '.join(each.reasons) or each.verdict}", _proof_address(each))
        for each in proven
        if each.verdict == "failed"
    ]
    found += [
        (
            f"{each.vm}: ready after {each.recovery_s:.0f} s, {each.rto_s:.0f} s are allowed",
            _proof_address(each),
        )
        for each in proven
        if each.recovery_s is not None and each.rto_s is not None and each.recovery_s > each.rto_s
    ]
    found += [
        (f"Recovery session of {each.vm}: {each.stuck or each.failure}", "/recoveries")
        for each in page.ask(recoveries.list_recoveries)
        if each.stuck or each.failure
    ]
    if unprotected:
        found.append((f"{unprotected} VMs have no recovery point", "/vms?show=unprotected"))
    return found


def _proof_address(proof: proofs.LatestProof) -> str:
    return f"/reports/{proof.certificate}" if proof.certificate else "/reports"


def _pictures(page: PageCall, proven: list[proofs.LatestProof]) -> dict[str, str]:
    """The address of the newest screenshot of each VM that has one."""
    found: dict[str, str] = {}
    bodies: dict[int, dict[str, Any]] = {}
    for proof in proven:
        number = proof.certificate
        if number is None:
            continue
        if number not in bodies:
            bodies[number] = _body(page, number)
        for guest in bodies[number].get("guests", []):
            for kept in guest["evidence"]:
                if guest["vm"] == proof.vm and kept["name"] == "screen.png":
                    found[proof.vm] = f"/api/v1/certificates/{number}/evidence/{kept['sha256']}"
    return found


def _body(page: PageCall, number: int) -> dict[str, Any]:
    """What the certificate says; nothing if it is not there or not genuine."""
    try:
        found: verifications.CertificateFile = page.ask(
            verifications.show_certificate, sequence=str(number)
        )
    except ApplianceError:
        return {}
    return found.body


PAGES = (
    Page(
        address="/",
        template="overview.html",
        permission=Permission.VIEW,
        show=_overview,
        live=("run", "session"),
    ),
)
