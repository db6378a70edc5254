"""What a policy would keep, played forward."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from appliance.catalog.policy import Policy
from appliance.jobs.retention_preview import preview_retention

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def policy(**fields: Any) -> Policy:
    return Policy.model_validate({"name": "p", **fields})


def test_after_a_year_the_rules_are_full() -> None:
    """Fourteen days, eight weeks, six months: each rule goes on where the one before it ends."""
    rules = {"keep_daily": 14, "keep_weekly": 8, "keep_monthly": 6}
    found = preview_retention(policy(schedule={"at": ["22:00"]}, retention=rules), NOW, 365)
    counts = Counter(point.rule for point in found.kept)
    assert counts == {"daily": 14, "weekly": 8, "monthly": 6}
    assert found.run_count == 365
    assert [day.kept_count for day in found.days[:3]] == [1, 2, 3]
    assert found.days[-1].kept_count in (27, 28)


def test_existing_points_are_part_of_it() -> None:
    """They count for the rules, and go when their time comes."""
    existing = [NOW - timedelta(days=age) for age in range(1, 6)]
    nightly = policy(schedule={"at": ["22:00"]}, retention={"keep_last": 3})
    soon = preview_retention(nightly, NOW, 1, existing)
    assert [point.created_at.day for point in soon.kept] == [30, 31, 1]
    assert preview_retention(nightly, NOW, 30, existing).kept[0].created_at > NOW


def test_a_window_moves_runs_and_makes_one_of_several() -> None:
    """Hourly, but only in two hours of the night: what came due before waits for the opening."""
    hourly = policy(schedule={"every_minutes": 60}, windows=["02:00-04:00"])
    found = preview_retention(hourly, NOW, 2)
    assert [point.created_at.hour for point in found.kept] == [2, 3, 2, 3]
    assert {point.rule for point in found.kept} == {"all"}


def test_without_a_schedule_nothing_comes() -> None:
    """Only what is there is looked at."""
    found = preview_retention(policy(retention={"keep_last": 1}), NOW, 10, [NOW])
    assert (found.run_count, len(found.kept)) == (0, 1)


def test_a_preview_that_would_take_too_long_is_cut_short_and_says_so() -> None:
    """Every minute for two years, everything kept."""
    found = preview_retention(policy(schedule={"every_minutes": 1}), NOW, 731)
    assert found.ends_at < NOW + timedelta(days=731)
    assert [reason.code for reason in found.reasons] == ["preview.cut-short"]
