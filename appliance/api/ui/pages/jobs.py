"""Pages of jobs and policies: lists, and the forms that show what would be kept while one writes.

A form's address holds its fields, so the preview is the same page asked for again: `app.js` does
that at every change, and without it the button "Preview" does.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta
from typing import Any
from zoneinfo import available_timezones

from pydantic import ValidationError

from appliance.api.permissions import Permission
from appliance.api.routes import hosts, jobs, policies
from appliance.api.ui.charts import Bar, Lane, bars, lanes
from appliance.api.ui.form_fields import document_of, fields_of
from appliance.api.ui.page import Page, PageCall
from appliance.base.errors import ApplianceError
from appliance.catalog.job import Job, RunKind, VerificationJob
from appliance.catalog.schedule import WEEKDAYS
from appliance.catalog.validation import describe

_RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_KINDS = {
    RunKind.BACKUP: "Backup of virtual machines",
    RunKind.CBT_AUDIT: "Audit of changed block tracking",
    RunKind.VERIFICATION: "Verification of recovery points",
    RunKind.RETENTION: "Removal of old recovery points",
    RunKind.CHECK: "Check of the repository",
    RunKind.GC: "Garbage collection",
}
_OF_VMS = (RunKind.BACKUP, RunKind.CBT_AUDIT)
_OF_POINTS = (RunKind.RETENTION, RunKind.VERIFICATION)
_NEW_JOB = {
    "job.kind": "backup",
    "job.select.everything": "true",
    "policy.schedule.at[]": "22:00",
    "policy.retention.keep_daily": "14",
    "policy.retention.keep_weekly": "8",
    "policy.retention.keep_monthly": "12",
}
_EMPTY_ROWS = 2
_HORIZONS = (30, 90, 365, 730)
_NEW_VERIFICATION = {"job.where": "sandbox", "job.hash_share": "0.1"}
_SHOWN = re.compile(
    r"job\.(name|kind|policy|enabled|percent|read_data|wait_minutes|where|host|address|hash_share"
    r"|timeout|memory_mib|cpus|disk_interface"
    r"|check_file_systems|(probes|scripts)\[\]"
    r"|groups\.\d{1,4}\.(name|order\[\])|vms\.\d{1,4}\.((names|probes|scripts)\[\]"
    r"|timeout|memory_mib|cpus|disk_interface)"
    r"|select\.(names|folders|tags|runs_on|hosts|exclude)\[\]"
    r"|select\.everything|select\.exclude\.(names|folders|tags)\[\])"
    r"|policy\.(name|time_zone|windows\[\]|schedule\.(at|days|days_of_month)\[\]"
    r"|schedule\.every_minutes|retention\.keep_\w+|consistency\.(wanted|least)|guest_logs"
    r"|vms_at_once|retries\.(attempts|wait_minutes)|cbt_audit_percent|rto|rpo|evidence_days"
    r"|bandwidth\.\d+\.(limit|window)"
    r"|(before|after)\.(argv\[\]|timeout_s))|days"
)
"""Fields that the forms show; others that are saved go along unseen, so that none is lost."""


def _jobs(page: PageCall) -> dict[str, Any]:
    return {
        "jobs": page.ask(jobs.list_jobs),
        "kinds": _KINDS,
        "configure": page.may(Permission.CONFIGURE),
        "run": page.may(Permission.RUN),
        "host_count": len(page.services.catalog.hosts.list()),
    }


def _job(page: PageCall) -> dict[str, Any]:
    job = page.ask(jobs.show_job)
    own = page.services.jobs.runs(job=job.name, limit=20)
    return {
        "job": job,
        "kinds": _KINDS,
        "fields": {
            name: value
            for name, value in fields_of(job.job.model_dump(mode="json")).items()
            if name not in ("name", "kind", "policy", "enabled") and value != "false"
        },
        "policy_fields": fields_of(
            job.policy_fields.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
        ),
        "runs": [jobs.RunBrief.model_validate(run) for run in reversed(own)],
        "configure": page.may(Permission.CONFIGURE),
        "run": page.may(Permission.RUN),
    }


def _new_job(page: PageCall) -> dict[str, Any]:
    fields = _joined(page.pairs)
    if set(fields) <= {"job.kind"}:
        fields = _NEW_JOB | fields
        if fields["job.kind"] not in _OF_VMS:
            fields.pop("job.select.everything")
        if fields["job.kind"] == RunKind.VERIFICATION:
            fields |= _NEW_VERIFICATION
    return _job_form(page, fields, "POST /jobs", "/jobs/{name}")


def _edit_job(page: PageCall) -> dict[str, Any]:
    job = page.ask(jobs.show_job)
    fields = _joined(page.pairs)
    if not fields:
        fields = fields_of({"job": job.job.model_dump(mode="json")})
        if job.policy == job.name:
            own = job.policy_fields.model_dump(mode="json", exclude_none=True)
            fields |= fields_of({"policy": own})
            fields.pop("job.policy")
    shown = _job_form(page, fields, f"PUT /jobs/{job.name}", f"/jobs/{job.name}")
    return shown | ({"kinds": {}} if _asks_nothing_of_some(job.job) else {})


def _asks_nothing_of_some(job: Job) -> bool:
    """Whether VMs of a verification have no probes or scripts where the others have some.

    A form says nothing by an empty field, so it cannot say that.
    """
    return isinstance(job, VerificationJob) and any(
        () in (entry.probes, entry.scripts) for entry in job.vms
    )


def _job_form(page: PageCall, fields: dict[str, str], api: str, following: str) -> dict[str, Any]:
    kind = fields.get("job.kind", "backup")
    known = page.ask(policies.list_policies)
    document = document_of(fields.items())
    shared = {each.policy.name: each.policy for each in known}.get(fields.get("job.policy", ""))
    policy = shared.model_dump(mode="json") if shared else document.get("policy", {})
    return {
        "f": fields,
        "api": api,
        "next": following,
        "new": api.startswith("POST"),
        "preview": page.address,
        "kind": kind,
        "kinds": _KINDS,
        "of_vms": kind in _OF_VMS,
        "of_points": kind in _OF_POINTS,
        "group_rows": _rows(fields, "job.groups."),
        "vm_rows": _rows(fields, "job.vms."),
        "policies": known,
        "shared": shared,
        "hosts": sorted(
            {each.name for each in page.ask(hosts.list_hosts)}
            | set(fields.get("job.select.hosts[]", "").split("\n")) - {""}
        ),
        "meant": _meant(page, document) if kind in _OF_VMS else None,
        "keeps": _keeps(page, policy, document) if kind in (*_OF_VMS, "retention") else None,
        **_choices(page, fields),
    }


def _rows(fields: dict[str, str], prefix: str) -> list[int]:
    """The numbers of the rows that say something, and of some that are still empty."""
    found = {
        int(number)
        for name in fields
        if name.startswith(prefix)
        and (number := name.removeprefix(prefix).partition(".")[0]).isdecimal()
        and len(number) < 5
    }
    following = max(found, default=-1) + 1
    return [*sorted(found), *range(following, following + _EMPTY_ROWS)]


def _policies(page: PageCall) -> dict[str, Any]:
    return {
        "policies": page.ask(policies.list_policies),
        "configure": page.may(Permission.CONFIGURE),
    }


def _new_policy(page: PageCall) -> dict[str, Any]:
    fields = _joined(page.pairs)
    if not fields:
        fields = {name: value for name, value in _NEW_JOB.items() if name.startswith("policy.")}
    return _policy_form(page, fields, "POST /policies")


def _edit_policy(page: PageCall) -> dict[str, Any]:
    shown = page.ask(policies.show_policy)
    fields = _joined(page.pairs)
    if not fields:
        fields = fields_of({"policy": shown.policy.model_dump(mode="json", exclude_none=True)})
    return _policy_form(page, fields, f"PUT /policies/{shown.policy.name}") | {"used": shown.jobs}


def _policy_form(page: PageCall, fields: dict[str, str], api: str) -> dict[str, Any]:
    document = document_of(fields.items())
    return {
        "f": fields,
        "api": api,
        "next": "/policies",
        "new": api.startswith("POST"),
        "preview": page.address,
        "used": (),
        "keeps": _keeps(page, document.get("policy", {}), document),
        **_choices(page, fields),
    }


def _choices(page: PageCall, fields: dict[str, str]) -> dict[str, Any]:
    return {
        "rules": _RULES,
        "weekdays": [str(day) for day in WEEKDAYS],
        "horizons": _HORIZONS,
        "zones": sorted(available_timezones()),
        "unseen": {name: value for name, value in fields.items() if not _SHOWN.fullmatch(name)},
        "bandwidth_rows": max(3, 1 + sum(_is_limit(name) for name in fields)),
        "scripts": page.may(Permission.ADMINISTER),
    }


def _meant(page: PageCall, document: dict[str, Any]) -> dict[str, Any]:
    """The VMs that the selection means now, or why that cannot be told."""
    select = document.get("job", {}).get("select", {})
    try:
        body = jobs.Selected.model_validate({"select": select})
        return {"found": page.ask(jobs.preview_selection, body=body), "error": None}
    except ValidationError as error:
        return {"found": None, "error": describe(error)}
    except ApplianceError as error:
        return {"found": None, "error": str(error)}


def _keeps(page: PageCall, policy: Any, document: dict[str, Any]) -> dict[str, Any]:
    """What the policy keeps after some time, as charts and as words."""
    days = document.get("days", "365")
    named = {"name": "preview"} | policy if isinstance(policy, dict) else policy
    try:
        body = policies.PreviewBody.model_validate({"policy": named, "days": days})
        found = page.ask(policies.preview_policy, body=body)
    except ValidationError as error:
        return {"found": None, "error": describe(error), "days": days}
    except ApplianceError as error:
        return {"found": None, "error": str(error), "days": days}
    return {"found": found, "error": None, "days": str(body.days), **_pictures(found)}


def _pictures(found: policies.PreviewShown) -> dict[str, Any]:
    counts = Counter(point.rule for point in found.kept)
    rows = [rule for rule in (*_RULES, "newest", "all") if counts[rule]]
    last = found.ends_at.date()
    first = min([found.starts_at.date(), *(point.created_at.date() for point in found.kept)])
    span = max((last - first).days, 1)
    return {
        "lanes": lanes(
            f"Recovery points that exist on {last.isoformat()}, by the rule that keeps them",
            [
                Lane(
                    name=rule,
                    marks=tuple(
                        ((point.created_at.date() - first).days / span, point.reason)
                        for point in found.kept
                        if point.rule == rule
                    ),
                )
                for rule in rows
            ],
            first.isoformat(),
            last.isoformat(),
        ),
        "growth": bars(
            "Number of recovery points of one VM over the coming days",
            [
                Bar(
                    label=day.day.isoformat(), value=day.kept_count, text=f"{day.kept_count} points"
                )
                for day in found.days[:: max(1, len(found.days) // 120)]
            ],
        ),
        "counts": [
            (rule, counts[rule], min(p.created_at for p in found.kept if p.rule == rule))
            for rule in rows
        ],
        "reach": max(
            (last - point.created_at.date() for point in found.kept), default=timedelta(0)
        ).days,
    }


def _is_limit(name: str) -> bool:
    return name.startswith("policy.bandwidth.") and name.endswith(".limit")


def _joined(pairs: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Fields of one name as lines of one field; the form's own are left out."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if not name.startswith("_"):
            found[name] = f"{found[name]}\n{value}" if name in found else value
    return found


PAGES = (
    Page(
        address="/jobs",
        template="jobs.html",
        permission=Permission.VIEW,
        show=_jobs,
        live=("run", "job"),
    ),
    Page(
        address="/new-job",
        template="job_form.html",
        permission=Permission.CONFIGURE,
        show=_new_job,
    ),
    Page(
        address="/jobs/{job}",
        template="job.html",
        permission=Permission.VIEW,
        show=_job,
        live=("run", "job"),
    ),
    Page(
        address="/jobs/{job}/edit",
        template="job_form.html",
        permission=Permission.CONFIGURE,
        show=_edit_job,
    ),
    Page(address="/policies", template="policies.html", permission=Permission.VIEW, show=_policies),
    Page(
        address="/new-policy",
        template="policy_form.html",
        permission=Permission.CONFIGURE,
        show=_new_policy,
    ),
    Page(
        address="/policies/{policy}/edit",
        template="policy_form.html",
        permission=Permission.CONFIGURE,
        show=_edit_policy,
    ),
)
