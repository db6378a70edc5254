"""Policies: when jobs run, what is kept, and how they go about it."""

from __future__ import annotations

from datetime import date

from pydantic import AwareDatetime, Field

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.api.routes.hosts import ReasonShown
from appliance.api.script_rule import refuse_new_scripts
from appliance.base.errors import UsageError
from appliance.catalog.errors import JobExistsError, PolicyNotFoundError
from appliance.catalog.policy import Policy
from appliance.jobs.retention_preview import DAYS_MAX, preview_retention

table = RouteTable("policies")


class PolicyShown(Shown):
    policy: Policy
    words: str
    jobs: tuple[str, ...]


class PolicyBody(Body):
    policy: Policy


class PreviewBody(Body):
    """Plays the policy forward; with `vm`, from the recovery points that this VM has."""

    policy: Policy
    days: int = Field(default=365, ge=1, le=DAYS_MAX)
    vm: str | None = Field(default=None, max_length=255)


class PreviewDayShown(Shown):
    day: date
    made_count: int
    kept_count: int


class KeptPointShown(Shown):
    created_at: AwareDatetime
    rule: str
    reason: str


class PreviewShown(Shown):
    starts_at: AwareDatetime
    ends_at: AwareDatetime
    run_count: int
    days: tuple[PreviewDayShown, ...]
    kept: tuple[KeptPointShown, ...]
    reasons: tuple[ReasonShown, ...]
    words: str


@table.add("GET", "/policies", Permission.VIEW, response=list[PolicyShown])
def list_policies(call: Call) -> list[PolicyShown]:
    """All policies, and the jobs that go by each."""
    jobs = call.services.catalog.jobs
    used = [(saved.job.policy, saved.name) for saved in jobs.list()]
    return [
        PolicyShown(
            policy=policy,
            words=policy.words,
            jobs=tuple(job for name, job in used if name == policy.name),
        )
        for policy in jobs.policies()
    ]


@table.add("POST", "/policies", Permission.CONFIGURE, body=PolicyBody, response=PolicyShown)
def create_policy(call: Call) -> PolicyShown:
    """Save a new policy."""
    policy = call.body_as(PolicyBody).policy
    if any(known.policy.name == policy.name for known in list_policies(call)):
        raise JobExistsError(f"there is a policy {policy.name!r} already")
    return _save(call, policy)


@table.add("POST", "/policies/preview", Permission.VIEW, body=PreviewBody, response=PreviewShown)
def preview_policy(call: Call) -> PreviewShown:
    """What is kept when under a policy, over the coming days; nothing is saved."""
    body, services = call.body_as(PreviewBody), call.services
    existing = []
    if body.vm is not None:
        existing = [each.created_at for each in services.repository.points.list(body.vm)]
    found = preview_retention(body.policy, services.catalog.clock.now(), body.days, existing)
    return PreviewShown(
        starts_at=found.starts_at,
        ends_at=found.ends_at,
        run_count=found.run_count,
        days=tuple(map(PreviewDayShown.model_validate, found.days)),
        kept=tuple(map(KeptPointShown.model_validate, found.kept)),
        reasons=tuple(map(ReasonShown.model_validate, found.reasons)),
        words=body.policy.words,
    )


@table.add("GET", "/policies/{policy}", Permission.VIEW, response=PolicyShown)
def show_policy(call: Call) -> PolicyShown:
    """One policy."""
    return _find(call, call.path["policy"])


@table.add("PUT", "/policies/{policy}", Permission.CONFIGURE, body=PolicyBody, response=PolicyShown)
def change_policy(call: Call) -> PolicyShown:
    """Replace a policy, for all jobs that go by it."""
    policy = call.body_as(PolicyBody).policy
    if _find(call, call.path["policy"]).policy.name != policy.name:
        raise UsageError(f"the policy is called {call.path['policy']!r}; that cannot be changed")
    return _save(call, policy)


@table.add("DELETE", "/policies/{policy}", Permission.CONFIGURE)
def remove_policy(call: Call) -> None:
    """Remove a policy that no job goes by."""
    call.services.jobs.book.remove_policy(call.path["policy"])


def _save(call: Call, policy: Policy) -> PolicyShown:
    refuse_new_scripts(call, [policy])
    call.services.jobs.book.save([policy], [])
    call.services.jobs.look()
    return _find(call, policy.name)


def _find(call: Call, name: str) -> PolicyShown:
    found: list[PolicyShown] = list_policies(call)
    for known in found:
        if known.policy.name == name:
            return known
    raise PolicyNotFoundError(name)
