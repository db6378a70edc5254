"""Retention: which recovery points a policy keeps, and why. Pure: no clock, no store.

The rules are those of Proxmox Backup Server ("Prune" in its manual, chapter Maintenance Tasks) and
run per VM, in the order last, hourly, daily, weekly, monthly, yearly, over points newest first:

- A rule keeps the newest point of each period, until it has kept as many as its count says.
- Periods without points do not count, nor do periods in which an earlier rule kept a point; so
  each rule goes on where the rules before it ended.
- Older points of a period for which a rule kept one are removed; later rules do not see them.
- What no rule keeps is removed. A policy without any rule keeps everything.
- The newest point of a VM is always kept, so a policy can never remove the last one.

Periods are those of the time zone given. Weeks are ISO 8601 weeks: they start on Monday, and the
first of a year is the one with its first Thursday. The hour that a clock set back runs through
twice is two hours, a day of 23 or 25 hours is one day.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from enum import StrEnum

from appliance.base.errors import UsageError
from appliance.base.ids import RecoveryPointId


class Action(StrEnum):
    KEEP = "keep"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSummary:
    point_id: RecoveryPointId
    vm: str
    created_at: datetime

    def __post_init__(self) -> None:
        if self.created_at.tzinfo is None:
            raise ValueError(f"recovery point {self.point_id} has a time without a zone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    point_id: RecoveryPointId
    vm: str
    created_at: datetime
    action: Action
    reason: str
    """For the operator: the rule and the period (in the time zone of the plan)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """How many points each rule keeps; 0: the rule does not exist. Raises UsageError."""

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0

    def __post_init__(self) -> None:
        for rule in _RULES:
            if rule.count(self) < 0:
                raise UsageError(f"keep-{rule.name} {rule.count(self)} is negative")

    @property
    def empty(self) -> bool:
        return not any(rule.count(self) for rule in _RULES)


def plan_retention(
    points: Sequence[PointSummary], policy: RetentionPolicy, tz: tzinfo = UTC
) -> list[Decision]:
    """Decide on every point; the result is ordered by VM, then oldest first."""
    by_vm: dict[str, list[PointSummary]] = defaultdict(list)
    for point in points:
        by_vm[point.vm].append(point)
    decisions: list[Decision] = []
    for vm in sorted(by_vm):
        newest_first = sorted(by_vm[vm], key=lambda p: (p.created_at, p.point_id), reverse=True)
        decisions += reversed(list(_decide(newest_first, policy, tz)))
    return decisions


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    count: Callable[[RetentionPolicy], int]
    period: Callable[[datetime, str], str]
    """Name the period of a local time; the last rule gives every point one of its own."""


_Verdict = tuple[Action, str]


def _iso_week(local: datetime) -> str:
    year, week, _ = local.isocalendar()
    return f"{year}-W{week:02d}"


_RULES = (
    _Rule("last", lambda policy: policy.keep_last, lambda local, point_id: point_id),
    _Rule(
        "hourly", lambda policy: policy.keep_hourly, lambda local, _: f"{local:%Y-%m-%d %H h %z}"
    ),
    _Rule("daily", lambda policy: policy.keep_daily, lambda local, _: f"{local:%Y-%m-%d}"),
    _Rule("weekly", lambda policy: policy.keep_weekly, lambda local, _: _iso_week(local)),
    _Rule("monthly", lambda policy: policy.keep_monthly, lambda local, _: f"{local:%Y-%m}"),
    _Rule("yearly", lambda policy: policy.keep_yearly, lambda local, _: f"{local:%Y}"),
)


def _decide(
    newest_first: list[PointSummary], policy: RetentionPolicy, tz: tzinfo
) -> Iterator[Decision]:
    verdicts: dict[RecoveryPointId, _Verdict] = {}
    for rule in _RULES:
        if rule.count(policy):
            _apply(rule, rule.count(policy), newest_first, tz, verdicts)
    for number, point in enumerate(newest_first):
        action, reason = verdicts.get(
            point.point_id, (Action.REMOVE, "older than every rule keeps")
        )
        if policy.empty:
            action, reason = Action.KEEP, "the policy has no rules"
        if number == 0:
            reason = (
                "newest of the VM" if action is Action.REMOVE else f"newest of the VM; {reason}"
            )
            action = Action.KEEP
        yield Decision(
            point_id=point.point_id,
            vm=point.vm,
            created_at=point.created_at,
            action=action,
            reason=reason,
        )


def _apply(
    rule: _Rule,
    count: int,
    newest_first: list[PointSummary],
    tz: tzinfo,
    verdicts: dict[RecoveryPointId, _Verdict],
) -> None:
    periods = {
        p.point_id: rule.period(p.created_at.astimezone(tz), p.point_id) for p in newest_first
    }
    covered = {
        periods[point_id] for point_id, (action, _) in verdicts.items() if action is Action.KEEP
    }
    kept: dict[str, RecoveryPointId] = {}
    for point in newest_first:
        period = periods[point.point_id]
        if point.point_id in verdicts or period in covered:
            continue
        if period in kept:
            reason = f"{period} ({rule.name}) keeps {kept[period]}"
            verdicts[point.point_id] = (Action.REMOVE, reason)
        elif len(kept) < count:
            kept[period] = point.point_id
            place = f"{rule.name} {len(kept)} of {count}"
            reason = place if rule.name == "last" else f"{place}: {period}"
            verdicts[point.point_id] = (Action.KEEP, reason)
        else:
            break
