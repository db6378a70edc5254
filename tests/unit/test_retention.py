"""Retention plans: literal calendars, and properties over generated ones."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.base.errors import UsageError
from appliance.base.ids import RecoveryPointId
from appliance.repository.retention import (
    Action,
    Decision,
    PointSummary,
    RetentionPolicy,
    plan_retention,
)

BERLIN = ZoneInfo("Europe/Berlin")
RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def points_at(*times: str, vm: str = "web") -> list[PointSummary]:
    """One point per time (UTC unless it has an offset), named after it."""
    found = []
    for text in times:
        time = datetime.fromisoformat(text)
        aware = time if time.tzinfo else time.replace(tzinfo=UTC)
        found.append(PointSummary(point_id=RecoveryPointId(text), vm=vm, created_at=aware))
    return found


def kept(decisions: list[Decision]) -> list[str]:
    return [decision.point_id for decision in decisions if decision.action is Action.KEEP]


def reasons(decisions: list[Decision]) -> dict[str, str]:
    return {decision.point_id: decision.reason for decision in decisions}


def test_an_empty_policy_keeps_everything() -> None:
    """No rule means no pruning, not no points."""
    plan = plan_retention(points_at("2026-11-01", "2026-11-02"), RetentionPolicy())
    assert kept(plan) == ["2026-11-01", "2026-11-02"]
    assert "no rules" in reasons(plan)["2026-11-01"]
    assert RetentionPolicy().empty
    assert plan_retention([], RetentionPolicy(keep_last=1)) == []


def test_the_last_rule_keeps_the_newest() -> None:
    """In whatever order the points come."""
    points = points_at("2026-11-03", "2026-11-01", "2026-11-04", "2026-11-02")
    plan = plan_retention(points, RetentionPolicy(keep_last=2))
    assert [decision.point_id[-2:] for decision in plan] == ["01", "02", "03", "04"]
    assert kept(plan) == ["2026-11-03", "2026-11-04"]
    assert reasons(plan) == {
        "2026-11-01": "older than every rule keeps",
        "2026-11-02": "older than every rule keeps",
        "2026-11-03": "last 2 of 2",
        "2026-11-04": "newest of the VM; last 1 of 2",
    }


def test_a_period_keeps_its_newest_point_and_empty_periods_do_not_count() -> None:
    """Three hours with points, however far apart."""
    points = points_at(
        "2026-11-15T02:10", "2026-11-19T09:05", "2026-11-19T09:55", "2026-11-20T11:00",
        "2026-11-20T11:20", "2026-11-20T11:59",
    )  # fmt: skip
    plan = plan_retention(points, RetentionPolicy(keep_hourly=3))
    assert kept(plan) == ["2026-11-15T02:10", "2026-11-19T09:55", "2026-11-20T11:59"]
    why = reasons(plan)
    assert why["2026-11-20T11:20"] == "2026-11-20 11 h +0000 (hourly) keeps 2026-11-20T11:59"
    assert why["2026-11-19T09:55"] == "hourly 2 of 3: 2026-11-19 09 h +0000"


def test_a_rule_goes_on_where_the_rules_before_it_ended() -> None:
    """Days in which the last rule kept a point are not counted again by the daily rule."""
    points = points_at(
        "2026-11-16T01:00", "2026-11-17T01:00", "2026-11-18T01:00", "2026-11-19T01:00",
        "2026-11-20T01:00", "2026-11-20T13:00",
    )  # fmt: skip
    plan = plan_retention(points, RetentionPolicy(keep_last=3, keep_daily=2))
    assert kept(plan) == [
        "2026-11-17T01:00",  # daily
        "2026-11-18T01:00",  # daily
        "2026-11-19T01:00",  # last
        "2026-11-20T01:00",  # last
        "2026-11-20T13:00",  # last
    ]


def test_a_later_rule_does_not_revive_what_an_earlier_one_removed() -> None:
    """The week's Monday morning lost its day; the weekly rule takes a point of another week."""
    points = points_at("2026-11-08T06:00", "2026-11-16T06:00", "2026-11-16T18:00")
    plan = plan_retention(points, RetentionPolicy(keep_daily=1, keep_weekly=1))
    assert kept(plan) == ["2026-11-08T06:00", "2026-11-16T18:00"]
    assert "daily" in reasons(plan)["2026-11-16T06:00"]


def test_a_usual_policy_over_two_years_of_nights() -> None:
    """7 days, 4 weeks, 12 months, 2 years: each rule continues before the one above."""
    first = datetime(2024, 11, 21, 1, tzinfo=UTC)
    nights = [(first + timedelta(days=day)).isoformat() for day in range(730)]
    policy = RetentionPolicy(keep_daily=7, keep_weekly=4, keep_monthly=12, keep_yearly=2)
    found = [text[:10] for text in kept(plan_retention(points_at(*nights), policy))]
    assert found == [
        "2024-12-31",  # yearly 1: the months of 2025 cover that year, so only 2024 is left
        "2025-10-31", "2025-11-30", "2025-12-31", "2026-01-31", "2026-02-28", "2026-03-31",
        "2026-04-30", "2026-05-31", "2026-06-30", "2026-07-31", "2026-08-31", "2026-09-30",
        "2026-10-18", "2026-10-25", "2026-11-01", "2026-11-08",
        "2026-11-14", "2026-11-15", "2026-11-16", "2026-11-17", "2026-11-18", "2026-11-19",
        "2026-11-20",
    ]  # fmt: skip


def test_weeks_are_iso_weeks_across_the_year() -> None:
    """2027-01-01 is a Friday of 2026-W53; the new week starts on Monday the 4th."""
    points = points_at("2026-12-27", "2026-12-28", "2027-01-01", "2027-01-03", "2027-01-04")
    plan = plan_retention(points, RetentionPolicy(keep_weekly=5))
    assert kept(plan) == ["2026-12-27", "2027-01-03", "2027-01-04"]
    assert "2026-W53" in reasons(plan)["2027-01-03"]
    assert "2026-W52" in reasons(plan)["2026-12-27"]


def test_days_are_those_of_the_time_zone() -> None:
    """23:30 UTC is the next day in Berlin, so the same points are one day or two."""
    points = points_at("2026-11-19T22:30", "2026-11-19T23:30")
    policy = RetentionPolicy(keep_daily=9)
    assert kept(plan_retention(points, policy, UTC)) == ["2026-11-19T23:30"]
    assert len(kept(plan_retention(points, policy, BERLIN))) == 2


def test_the_hour_that_runs_twice_is_two_hours() -> None:
    """Clocks went back on 2026-10-25 at 03:00: 02:30 +02:00 and 02:30 +01:00 are both kept."""
    points = points_at("2026-10-25T00:30", "2026-10-25T01:10", "2026-10-25T01:30")
    plan = plan_retention(points, RetentionPolicy(keep_hourly=9), BERLIN)
    assert kept(plan) == ["2026-10-25T00:30", "2026-10-25T01:30"]
    daily = plan_retention(points, RetentionPolicy(keep_daily=9), BERLIN)
    assert kept(daily) == ["2026-10-25T01:30"]


def test_a_day_of_23_hours_is_one_day() -> None:
    """Clocks went forward on 2026-03-29: local 00:30 and 23:30 are one day of 23 hours."""
    points = points_at(
        "2026-03-28T22:30", "2026-03-28T23:30", "2026-03-29T21:30", "2026-03-29T22:30"
    )
    plan = plan_retention(points, RetentionPolicy(keep_daily=9), BERLIN)
    assert kept(plan) == ["2026-03-28T22:30", "2026-03-29T21:30", "2026-03-29T22:30"]


def test_points_of_one_second_are_told_apart_by_id() -> None:
    """Equal times are decided the same way every time."""
    time = datetime(2026, 11, 20, tzinfo=UTC)
    points = [
        PointSummary(point_id=RecoveryPointId(name), vm="web", created_at=time) for name in "bac"
    ]
    for order in itertools.permutations(points):
        assert kept(plan_retention(order, RetentionPolicy(keep_last=1))) == ["c"]


def test_nonsense_is_refused() -> None:
    """Negative counts and times without a zone."""
    for rule in RULES:
        with pytest.raises(UsageError, match=rule):
            RetentionPolicy(**{f"keep_{rule}": -1})
    with pytest.raises(ValueError, match="zone"):
        PointSummary(point_id=RecoveryPointId("p"), vm="v", created_at=datetime(2026, 1, 1))


calendars = st.lists(
    st.tuples(st.integers(0, 900 * 24 * 4), st.sampled_from(["web", "db"])),
    max_size=60,
    unique=True,
).map(
    lambda found: [
        PointSummary(
            point_id=RecoveryPointId(f"{vm}-{quarter:06d}"),
            vm=vm,
            created_at=datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=15 * quarter),
        )
        for quarter, vm in found
    ]
)
policies = st.builds(
    RetentionPolicy, **{f"keep_{rule}": st.integers(0, 4) for rule in RULES}
).filter(lambda policy: not policy.empty)
zones = st.sampled_from([UTC, BERLIN, ZoneInfo("Asia/Kathmandu"), ZoneInfo("America/New_York")])


def total(policy: RetentionPolicy) -> int:
    return sum(getattr(policy, f"keep_{rule}") for rule in RULES)


@given(calendars, policies, zones)
def test_every_point_is_decided_once_and_the_newest_stays(
    points: list[PointSummary], policy: RetentionPolicy, zone: ZoneInfo
) -> None:
    """One decision per point, no more kept than the counts allow, never none of a VM."""
    plan = plan_retention(points, policy, zone)
    assert sorted(d.point_id for d in plan) == sorted(p.point_id for p in points)
    for vm in {point.vm for point in points}:
        of_vm = [decision for decision in plan if decision.vm == vm]
        assert [d.created_at for d in of_vm] == sorted(d.created_at for d in of_vm)
        assert of_vm[-1].action is Action.KEEP
        assert of_vm[-1].reason.startswith("newest of the VM")
        assert 1 <= len(kept(of_vm)) <= total(policy)
        assert all(decision.reason for decision in of_vm)


@given(calendars, policies, zones)
def test_pruning_twice_is_pruning_once(
    points: list[PointSummary], policy: RetentionPolicy, zone: ZoneInfo
) -> None:
    """The kept points, planned again, are all kept."""
    plan = plan_retention(points, policy, zone)
    left = [point for point in points if point.point_id in set(kept(plan))]
    assert kept(plan_retention(left, policy, zone)) == kept(plan)


@given(calendars, policies, zones)
def test_virtual_machines_do_not_touch_each_other(
    points: list[PointSummary], policy: RetentionPolicy, zone: ZoneInfo
) -> None:
    """The plan of all is the plans of each."""
    alone = [
        decision
        for vm in sorted({point.vm for point in points})
        for decision in plan_retention([p for p in points if p.vm == vm], policy, zone)
    ]
    assert plan_retention(points, policy, zone) == alone


@given(calendars, st.sampled_from(RULES[1:]), st.integers(1, 5), zones)
def test_one_rule_alone_keeps_the_newest_of_the_newest_periods(
    points: list[PointSummary], rule: str, count: int, zone: ZoneInfo
) -> None:
    """Against grouping the points by the calendar's own arithmetic."""
    points = [point for point in points if point.vm == "web"]

    def period(point: PointSummary) -> tuple[int, ...]:
        local = point.created_at.astimezone(zone)
        hours = int(local.timestamp() + (local.utcoffset() or timedelta()).total_seconds()) // 3600
        monday = local.date().toordinal() - local.weekday()
        return {
            "hourly": (hours, -int((local.utcoffset() or timedelta()).total_seconds())),
            "daily": (local.date().toordinal(),),
            "weekly": (monday,),
            "monthly": (local.year, local.month),
            "yearly": (local.year,),
        }[rule]

    newest: dict[tuple[int, ...], PointSummary] = {}
    for point in sorted(points, key=lambda p: p.created_at):
        newest[period(point)] = point
    expected = [newest[key].point_id for key in sorted(newest)[-count:]]
    policy = RetentionPolicy(**{f"keep_{rule}": count})
    assert sorted(kept(plan_retention(points, policy, zone))) == sorted(expected)


@given(calendars, st.sampled_from(RULES), st.integers(1, 5), zones)
def test_a_larger_count_never_keeps_less(
    points: list[PointSummary], rule: str, count: int, zone: ZoneInfo
) -> None:
    """For one rule; with several, a longer daily rule may rightly cover a weekly point."""
    smaller = plan_retention(points, RetentionPolicy(**{f"keep_{rule}": count}), zone)
    larger = plan_retention(points, RetentionPolicy(**{f"keep_{rule}": count + 1}), zone)
    assert set(kept(smaller)) <= set(kept(larger))
