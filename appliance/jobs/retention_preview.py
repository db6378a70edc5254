"""What a policy will keep, before it is saved: its schedule and retention played forward.

The schedule says when points come to be, windows move them, and after each one the retention plan
takes what it would take then: the same functions that the scheduler and the runs go by, over points
that do not exist. Runs are taken to last no time and to succeed.

Thread model: pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from appliance.base.ids import RecoveryPointId
from appliance.base.reasons import Reason
from appliance.catalog.policy import Policy
from appliance.jobs.calendar import next_open, next_start
from appliance.repository.retention import (
    Action,
    Decision,
    PointSummary,
    RetentionPolicy,
    plan_retention,
)

DAYS_MAX = 731
_RUNS_MAX = 20_000
_DECISIONS_MAX = 400_000  # about a second
_VM = "preview"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewDay:
    """In the policy's time zone."""

    day: date
    made_count: int
    kept_count: int  # at the end of the day, of all days


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPoint:
    created_at: datetime
    rule: str  # last, hourly, daily, weekly, monthly, yearly; `newest` or `all` without a rule
    reason: str  # as `prune` says it


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPreview:
    """`kept`: what there is at `ends_at`, oldest first."""

    starts_at: datetime
    ends_at: datetime
    run_count: int
    days: tuple[PreviewDay, ...]
    kept: tuple[KeptPoint, ...]
    reasons: tuple[Reason, ...] = ()


def preview_retention(
    policy: Policy, now: datetime, days: int, existing: Sequence[datetime] = ()
) -> RetentionPreview:
    """Play `days` days (1 to `DAYS_MAX`) from `now`; `existing` points are there already."""
    ends_at = now + timedelta(days=days)
    rules = RetentionPolicy(**policy.retention.model_dump())
    points = [_point(at) for at in sorted(existing)]
    decisions = plan_retention(points, rules, policy.zone)
    budget = _DECISIONS_MAX
    made: dict[date, int] = {}
    kept: dict[date, int] = {}
    reasons: list[Reason] = []
    run_count = 0
    for at in _runs(policy, now, ends_at):
        budget -= len(points) + 1
        if run_count == _RUNS_MAX or budget < 0:
            reasons.append(_cut_short(at))
            ends_at = at
            break
        run_count += 1
        points.append(_point(at))
        if not rules.empty:
            decisions = plan_retention(points, rules, policy.zone)
            points = [_point(each.created_at) for each in decisions if each.action is Action.KEEP]
        local = at.astimezone(policy.zone).date()
        made[local] = made.get(local, 0) + 1
        kept[local] = len(points)
    if rules.empty:
        decisions = plan_retention(points, rules, policy.zone)
    return RetentionPreview(
        starts_at=now,
        ends_at=ends_at,
        run_count=run_count,
        days=_days(policy, now, ends_at, made, kept, len(existing)),
        kept=tuple(_kept(each) for each in decisions if each.action is Action.KEEP),
        reasons=tuple(reasons),
    )


def _runs(policy: Policy, now: datetime, until: datetime) -> Sequence[datetime]:
    """When runs begin; those that one opening of a window lets in are one."""
    if policy.schedule is None:
        return ()
    found: list[datetime] = []
    at = now
    while len(found) <= _RUNS_MAX:
        at = next_start(policy.schedule, policy.windows, policy.zone, at)
        at = next_open(policy.windows, policy.zone, at)
        if at > until:
            break
        found.append(at)
    return found


def _days(
    policy: Policy,
    now: datetime,
    ends_at: datetime,
    made: dict[date, int],
    kept: dict[date, int],
    before: int,
) -> tuple[PreviewDay, ...]:
    found = []
    day, count = now.astimezone(policy.zone).date(), before
    while day <= ends_at.astimezone(policy.zone).date():
        count = kept.get(day, count)
        found.append(PreviewDay(day=day, made_count=made.get(day, 0), kept_count=count))
        day += timedelta(days=1)
    return tuple(found)


def _point(at: datetime) -> PointSummary:
    return PointSummary(point_id=RecoveryPointId(at.isoformat()), vm=_VM, created_at=at)


def _kept(decision: Decision) -> KeptPoint:
    words = decision.reason.removeprefix("newest of the VM; ")
    first = words.split(" ", 1)[0]
    rule = {"the": "all", "newest": "newest"}.get(first, first)
    return KeptPoint(created_at=decision.created_at, rule=rule, reason=decision.reason)


def _cut_short(at: datetime) -> Reason:
    return Reason(
        "preview.cut-short",
        f"the preview ends on {at:%Y-%m-%d}: this schedule makes too many points to show more",
        "look at fewer days; the policy itself works for any time",
        warning=False,
    )
