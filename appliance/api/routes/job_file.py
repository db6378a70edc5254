"""Policies and jobs as one TOML text: shown, compared and applied as a whole.

Hosts stand in it as `job export` writes them; they are added by the route for hosts, because their
passwords are files of the appliance that no request may name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.api.script_rule import refuse_new_scripts
from appliance.base.errors import UsageError
from appliance.service.job_file import parse_job_file, write_job_file

table = RouteTable("jobs")


class JobFileText(Shown):
    text: str


class JobFileBody(Body):
    text: str = Field(max_length=1 << 19)
    dry_run: bool = True


class ChangedField(Shown):
    field: str
    old: Any
    new: Any


class ChangedEntry(Shown):
    section: str
    name: str
    action: str
    fields: tuple[ChangedField, ...]


class JobFileResult(Shown):
    dry_run: bool
    changed: tuple[ChangedEntry, ...]
    not_in_file: tuple[str, ...]


@table.add("GET", "/job-file", Permission.VIEW, response=JobFileText)
def export_job_file(call: Call) -> JobFileText:
    """All hosts, policies and jobs as a TOML text, without passwords."""
    return JobFileText(text=write_job_file(call.services.jobs.book.as_file()))


@table.add("POST", "/job-file", Permission.CONFIGURE, body=JobFileBody, response=JobFileResult)
def apply_job_file(call: Call) -> JobFileResult:
    """Make policies and jobs as a TOML text says, or show what that would change."""
    body, book = call.body_as(JobFileBody), call.services.jobs.book
    file = parse_job_file(body.text, Path())
    named = [entry.name for entry in file.hosts if entry.password_file is not None]
    if named:
        raise UsageError(f"host.{named[0]}: password_file is for `holdfast job apply` only")
    changes = book.changes(file)
    hosts = [entry.name for entry in changes.changed if entry.section == "host"]
    if hosts:
        raise UsageError(f"host.{hosts[0]} differs; change it where hypervisors are kept")
    refuse_new_scripts(call, file.policies)
    if not body.dry_run:
        book.apply(file)
        call.services.jobs.look()
    return JobFileResult(
        dry_run=body.dry_run,
        changed=tuple(map(ChangedEntry.model_validate, changes.changed)),
        not_in_file=tuple(changes.not_in_file),
    )
