"""Saved jobs: what is done by itself, to which VMs, under which policy."""

from __future__ import annotations

from typing import Any, Self

from pydantic import AwareDatetime, Field, model_validator

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.api.routes.hosts import ReasonShown
from appliance.api.script_rule import refuse_new_scripts
from appliance.base.errors import UsageError
from appliance.catalog.job import Job, RunKind, VmSelection
from appliance.catalog.job_runs import RunCause, RunState
from appliance.catalog.policy import Policy
from appliance.catalog.runs import RunOutcome
from appliance.service.job_service import JobStatus

table = RouteTable("jobs")


class RunBrief(Shown):
    """A run of a job, in short."""

    seq: int
    run_id: str
    job: str
    kind: RunKind
    cause: RunCause
    state: RunState
    outcome: RunOutcome | None
    attempt: int
    due_at: AwareDatetime | None
    queued_at: AwareDatetime
    started_at: AwareDatetime | None
    ended_at: AwareDatetime | None
    error_code: str | None
    error: str | None
    reasons: tuple[ReasonShown, ...]


class JobShown(Shown):
    name: str
    kind: RunKind
    enabled: bool
    policy: str | None
    schedule: str = Field(description="When it runs and what is kept, in words")
    next_run_at: AwareDatetime | None
    open_run: RunBrief | None
    latest_run: RunBrief | None


class JobDetail(JobShown):
    since: AwareDatetime
    job: Job
    policy_fields: Policy


class NewJob(Body):
    """A job; with `policy`, a policy of its own that is saved with it, by the job's name unless it
    has another."""

    job: Job
    policy: Policy | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_policy(cls, document: Any) -> Any:
        job, policy = (
            document.get(name) if isinstance(document, dict) else None for name in ("job", "policy")
        )
        if not isinstance(job, dict) or not isinstance(policy, dict):
            return document
        named = policy.get("name") or job.get("name")
        return document | {
            "job": {"policy": named} | job,
            "policy": policy | {"name": named},
        }

    @model_validator(mode="after")
    def _goes_by_it(self) -> Self:
        if self.policy is not None and self.job.policy != self.policy.name:
            raise ValueError(
                f"the job goes by policy {self.job.policy!r}; leave out the fields of another"
            )
        return self


class MeantVmShown(Shown):
    host: str
    name: str
    path: str
    point_name: str
    has_points: bool
    size_bytes: int
    obstacles: tuple[ReasonShown, ...]


class MeantShown(Shown):
    vms: tuple[MeantVmShown, ...]
    vm_count: int
    size_bytes: int
    reasons: tuple[ReasonShown, ...]
    failures: dict[str, str]


class Selected(Body):
    select: VmSelection


@table.add("GET", "/jobs", Permission.VIEW, response=list[JobShown])
def list_jobs(call: Call) -> list[JobShown]:
    """All jobs, with their next and latest run."""
    return [_shown(status) for status in call.services.jobs.jobs()]


@table.add("POST", "/jobs", Permission.CONFIGURE, body=NewJob, response=JobDetail)
def create_job(call: Call) -> JobDetail:
    """Save a new job, and a new policy with it if one is given."""
    body = call.body_as(NewJob)
    policies = [body.policy] if body.policy else []
    refuse_new_scripts(call, policies)
    call.services.jobs.book.create(policies, [body.job])
    return _changed(call, body.job.name)


@table.add("POST", "/jobs/preview", Permission.VIEW, body=Selected, response=MeantShown)
def preview_selection(call: Call) -> MeantShown:
    """Which VMs a selection means now; nothing is saved."""
    meant = call.services.jobs.preview.meant(call.body_as(Selected).select)
    return MeantShown(
        vms=tuple(map(MeantVmShown.model_validate, meant.vms)),
        vm_count=meant.vm_count,
        size_bytes=sum(vm.size_bytes for vm in meant.vms),
        reasons=tuple(map(ReasonShown.model_validate, meant.reasons)),
        failures=dict(meant.failures),
    )


@table.add("GET", "/jobs/{job}", Permission.VIEW, response=JobDetail)
def show_job(call: Call) -> JobDetail:
    """One job with its whole policy."""
    return _detail(call.services.jobs.job(call.path["job"]))


@table.add("PUT", "/jobs/{job}", Permission.CONFIGURE, body=NewJob, response=JobDetail)
def change_job(call: Call) -> JobDetail:
    """Replace a job, and the policy that is given with it."""
    name, body = call.path["job"], call.body_as(NewJob)
    call.services.catalog.jobs.get(name)
    if body.job.name != name:
        raise UsageError(f"the job is called {name!r}; its name cannot be changed")
    policies = [body.policy] if body.policy else []
    refuse_new_scripts(call, policies)
    call.services.jobs.book.save(policies, [body.job])
    return _changed(call, name)


@table.add("DELETE", "/jobs/{job}", Permission.CONFIGURE)
def remove_job(call: Call) -> None:
    """Forget a job, and its policy if that has its name; runs and recovery points stay."""
    call.services.jobs.book.remove(call.path["job"])
    call.services.jobs.look()


@table.add("POST", "/jobs/{job}/enable", Permission.CONFIGURE, response=JobDetail)
def enable_job(call: Call) -> JobDetail:
    """Let its schedule count from now on."""
    call.services.jobs.book.enable(call.path["job"])
    return _changed(call, call.path["job"])


@table.add("POST", "/jobs/{job}/disable", Permission.CONFIGURE, response=JobDetail)
def disable_job(call: Call) -> JobDetail:
    """Let it rest; a run that goes on is not ended."""
    call.services.jobs.book.disable(call.path["job"])
    return _changed(call, call.path["job"])


@table.add("POST", "/jobs/{job}/run", Permission.RUN, response=RunBrief)
def run_job(call: Call) -> RunBrief:
    """Begin a run now, whatever its schedule says."""
    return RunBrief.model_validate(call.services.jobs.run_now(call.path["job"]))


def _changed(call: Call, name: str) -> JobDetail:
    call.services.jobs.look()
    return _detail(call.services.jobs.job(name))


def _shown(status: JobStatus) -> JobShown:
    return JobShown(**_fields(status))


def _detail(status: JobStatus) -> JobDetail:
    return JobDetail(
        **_fields(status),
        since=status.saved.since,
        job=status.saved.job,
        policy_fields=status.saved.policy,
    )


def _fields(status: JobStatus) -> dict[str, Any]:
    job = status.saved.job
    return {
        "name": job.name,
        "kind": job.kind,
        "enabled": job.enabled,
        "policy": job.policy,
        "schedule": status.saved.policy.words,
        "next_run_at": status.next_run_at,
        "open_run": _brief(status.open_run),
        "latest_run": _brief(status.latest_run),
    }


def _brief(run: object | None) -> RunBrief | None:
    return None if run is None else RunBrief.model_validate(run)
