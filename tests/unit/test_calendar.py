"""The calendar of jobs, against a slow reference that looks at every minute of the clock."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.catalog.schedule import WEEKDAYS, Schedule, parse_window
from appliance.jobs.calendar import (
    closes_at,
    due_times,
    is_open,
    latest_due,
    moment,
    next_due,
    next_open,
    next_start,
)

BERLIN = ZoneInfo("Europe/Berlin")
# Half an hour of daylight saving; a change at midnight; a day that was left out; none at all.
ZONES = ["Europe/Berlin", "Australia/Lord_Howe", "America/Santiago", "Pacific/Apia", "UTC"]
MINUTE = timedelta(minutes=1)

times = st.builds(lambda h, m: f"{h:02d}:{m:02d}", st.integers(0, 23), st.integers(0, 59))
zones = st.sampled_from(ZONES).map(ZoneInfo)
moments = st.datetimes(datetime(2011, 12, 20), datetime(2027, 12, 1)).map(
    lambda naive: naive.replace(tzinfo=UTC)
)
days = st.lists(st.sampled_from(WEEKDAYS), max_size=3, unique=True)
schedules = st.one_of(
    st.builds(
        lambda at, on: Schedule(at=tuple(at), days=tuple(on)),
        st.lists(times, min_size=1, max_size=3),
        days,
    ),
    st.builds(
        lambda every, on: Schedule(every_minutes=every, days=tuple(on)), st.integers(1, 1440), days
    ),
    st.builds(
        lambda at, on: Schedule(at=(at,), days_of_month=tuple(on)),
        times,
        st.lists(st.one_of(st.integers(1, 28), st.just("last")), min_size=1, max_size=3),
    ),
)
windows = st.builds(
    lambda on, a, b: f"{','.join(on)} {a}-{b}".strip(),
    days,
    times,
    times,
).filter(lambda text: text[-11:-6] != text[-5:])


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@given(day=st.dates(date(2011, 12, 20), date(2027, 12, 1)), minute=st.integers(0, 1439), zone=zones)
def test_a_time_of_the_day_is_the_first_moment_at_which_the_clock_shows_it_or_more(
    day: date, minute: int, zone: ZoneInfo
) -> None:
    """Shown once: then. Shown twice: the first time. Never shown: the moment of the change."""
    found = moment(zone, day, minute)
    wanted = datetime(day.year, day.month, day.day, minute // 60, minute % 60)
    assert found.astimezone(zone).replace(tzinfo=None) >= wanted
    before = (found - timedelta(seconds=1)).astimezone(zone).replace(tzinfo=None)
    assert before < wanted


@given(schedule=schedules, zone=zones, after=moments)
def test_the_next_due_time_is_later_and_nothing_lies_between(
    schedule: Schedule, zone: ZoneInfo, after: datetime
) -> None:
    """`next_due` and `latest_due` agree: the one before the next one is not after `after`."""
    due = next_due(schedule, zone, after)
    assert due > after
    assert latest_due(schedule, zone, after, due) == due
    assert latest_due(schedule, zone, after, due - timedelta(seconds=1)) is None


@settings(deadline=None)
@given(schedule=schedules, zone=zones, after=moments, hours=st.integers(1, 200))
def test_the_latest_due_time_is_the_last_of_all_that_come(
    schedule: Schedule, zone: ZoneInfo, after: datetime, hours: int
) -> None:
    """However many were missed, walking forward and looking back find the same."""
    until = after + timedelta(hours=hours)
    if schedule.every_minutes is not None and schedule.every_minutes < 30:
        until = after + timedelta(hours=hours % 20)
    all_due = list(due_times(schedule, zone, after, until))
    assert all_due == sorted(set(all_due))
    assert latest_due(schedule, zone, after, until) == (all_due[-1] if all_due else None)


@pytest.mark.parametrize("zone", ZONES)
def test_every_time_of_day_is_due_once_on_each_day_of_a_year(zone: str) -> None:
    """Nights on which clocks change included: 366 days, 366 runs, at least 22 hours apart."""
    schedule = Schedule(at=("02:30",))
    begin = utc("2024-01-01T00:00")
    found = list(due_times(schedule, ZoneInfo(zone), begin, begin + timedelta(days=366)))
    assert len(found) == 366
    gaps = [later - earlier for earlier, later in pairwise(found)]
    assert min(gaps) >= timedelta(hours=22)
    assert max(gaps) <= timedelta(hours=26)


@given(zone=zones, every=st.integers(1, 1440), after=moments)
def test_the_distance_of_two_runs_is_never_more_than_asked_for(
    zone: ZoneInfo, every: int, after: datetime
) -> None:
    """Across midnights and changes of the clock."""
    schedule = Schedule(every_minutes=every)
    first = next_due(schedule, zone, after)
    second = next_due(schedule, zone, first)
    assert second - first <= timedelta(minutes=every)


def test_a_night_that_leaves_the_time_out_runs_at_the_change() -> None:
    """2026-03-29 in Berlin goes from 02:00 to 03:00: 02:30 is due at 01:00 UTC."""
    due = next_due(Schedule(at=("02:30",)), BERLIN, utc("2026-03-28T12:00"))
    assert due == utc("2026-03-29T01:00")


def test_a_night_that_shows_the_time_twice_runs_at_the_first() -> None:
    """2026-10-25 in Berlin shows 02:30 at 00:30 and at 01:30 UTC."""
    schedule = Schedule(at=("02:30",))
    due = next_due(schedule, BERLIN, utc("2026-10-24T12:00"))
    assert due == utc("2026-10-25T00:30")
    assert next_due(schedule, BERLIN, due) == utc("2026-10-26T01:30")


def test_the_last_of_the_month_is_the_last_of_every_month() -> None:
    """Also of a February of 29 days."""
    schedule = Schedule(at=("12:00",), days_of_month=("last",))
    found = list(due_times(schedule, BERLIN, utc("2024-01-01T00:00"), utc("2025-01-01T00:00")))
    assert [f"{due:%m-%d}" for due in found] == [
        "01-31", "02-29", "03-31", "04-30", "05-31", "06-30",
        "07-31", "08-31", "09-30", "10-31", "11-30", "12-31",
    ]  # fmt: skip


# Windows


@settings(max_examples=50)
@given(texts=st.lists(windows, min_size=1, max_size=3), zone=zones, at=moments)
def test_a_window_is_open_from_its_opening_to_its_closing(
    texts: list[str], zone: ZoneInfo, at: datetime
) -> None:
    """`next_open` is open, and nothing is open before; `closes_at` is not, and all before is."""
    opens = next_open(texts, zone, at)
    assert is_open(texts, zone, opens)
    step = max((opens - at) / 50, MINUTE)
    looked = at
    while looked < opens:
        assert not is_open(texts, zone, looked)
        looked += step
    closes = closes_at(texts, zone, opens)
    if closes is not None:
        assert not is_open(texts, zone, closes)
        assert is_open(texts, zone, closes - timedelta(seconds=1))


@given(schedule=schedules, texts=st.lists(windows, max_size=2), zone=zones, after=moments)
def test_what_is_due_begins_inside_a_window(
    schedule: Schedule, texts: list[str], zone: ZoneInfo, after: datetime
) -> None:
    """Never before it is due, and as soon as one opens."""
    start = next_start(schedule, texts, zone, after)
    assert start >= next_due(schedule, zone, after)
    assert is_open(texts, zone, start)


@given(text=windows)
def test_a_window_has_one_form(text: str) -> None:
    """What is shown can be read again, and means the same."""
    window = parse_window(text)
    assert parse_window(window.text) == window
    assert window.text == parse_window(window.text).text


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_opens() -> None:
    """Friday's night ends on Saturday morning; Saturday evening is not in it."""
    week = ["mon-fri 20:00-06:00"]
    assert is_open(week, BERLIN, utc("2026-11-07T04:59"))  # Saturday 05:59
    assert not is_open(week, BERLIN, utc("2026-11-07T05:00"))
    assert not is_open(week, BERLIN, utc("2026-11-07T20:00"))
    assert next_open(week, BERLIN, utc("2026-11-07T20:00")) == utc("2026-11-09T19:00")
    assert closes_at(["00:00-24:00"], BERLIN, utc("2026-11-07T20:00")) is None


@pytest.mark.parametrize(
    "text", ["", "20:00", "25:00-26:00", "mon 20:00-20:00", "montag 20:00-22:00", "20:00-24:30",
             "mon-xyz 20:00-22:00", "20:60-22:00"],
)  # fmt: skip
def test_what_is_not_a_window_is_refused(text: str) -> None:
    """With words for the one who wrote it."""
    with pytest.raises(ValueError, match=r"window|time of day|day|empty"):
        parse_window(text)


def test_a_window_that_a_clock_set_forward_leaves_out_opens_a_week_later() -> None:
    """Where a week has no such hour: the scheduler looks on, for all jobs."""
    window, after = ["sun 02:00-03:00"], utc("2026-03-22T04:00")
    assert next_open(window, BERLIN, after) == utc("2026-04-05T00:00")
    assert next_start(Schedule(at=("01:00",)), window, BERLIN, after) == utc("2026-04-05T00:00")
