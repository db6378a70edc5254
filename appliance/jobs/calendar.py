"""The calendar of jobs: when one is due, when its windows are open. Pure: no clock, no state.

All results are moments in UTC. Local times are those of the policy's zone, and follow its clocks:

- A time that a clock set forward leaves out means the moment of the change: due at 02:30 on such a
  night is due at the change. A time that a clock set back runs through twice means the first.
  So every `at` is due once a day, on a day of 23 or 25 hours too.
- `every_minutes` counts elapsed minutes from local midnight, and begins anew at the next one; the
  distance between two is never more than asked for.
- A window lasts from its opening to its closing as the clock shows them, which on such a night may
  be an hour more or less than it says.

What is due while no window is open is due when the next one opens, once.

Thread model: pure functions.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from appliance.catalog.schedule import (
    MINUTES_PER_DAY,
    Schedule,
    Window,
    minute_of_day,
    parse_window,
)

_DAY = timedelta(days=1)
_LOOK_AHEAD_DAYS = 70  # the rarest schedule is once a month; one more for a day that is left out
_TWO_WEEKS_AND_MORE = 16  # a clock set forward may leave out all of a window, in one week


def moment(zone: ZoneInfo, day: date, minute: int) -> datetime:
    """The moment at which the clock shows `minute` of `day`; above 1440 is the next day."""
    days, rest = divmod(minute, MINUTES_PER_DAY)
    shown = datetime.combine(day + days * _DAY, time(rest // 60, rest % 60))
    early = shown.replace(tzinfo=zone, fold=0).astimezone(UTC)
    late = shown.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if early <= late:  # shown once, or twice: the first
        return early
    return _change_between(zone, late, early)  # never shown


def _change_between(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """The second at which the offset becomes that of `after`."""
    offset = after.astimezone(zone).utcoffset()
    low, high = 0, int((after - before).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        if (before + timedelta(seconds=middle)).astimezone(zone).utcoffset() == offset:
            high = middle
        else:
            low = middle
    return before + timedelta(seconds=high)


# Due times


def next_due(schedule: Schedule, zone: ZoneInfo, after: datetime) -> datetime:
    """The first due time later than `after`."""
    first = after.astimezone(zone).date() - _DAY
    for number in range(_LOOK_AHEAD_DAYS):
        day = first + number * _DAY
        if _is_day(schedule, day):
            found = _first_on(schedule, zone, day, after)
            if found is not None:
                return found
    raise AssertionError("every schedule is due once in two months")


def latest_due(
    schedule: Schedule, zone: ZoneInfo, after: datetime, until: datetime
) -> datetime | None:
    """The last due time later than `after` and not later than `until`."""
    if until <= after:
        return None
    last = until.astimezone(zone).date()
    first = max(after.astimezone(zone).date() - _DAY, last - _LOOK_AHEAD_DAYS * _DAY)
    day = last
    while day >= first:
        if _is_day(schedule, day):
            found = _latest_on(schedule, zone, day, until)
            if found is not None:
                return found if found > after else None
        day -= _DAY
    return None


def due_times(
    schedule: Schedule, zone: ZoneInfo, after: datetime, until: datetime
) -> Iterator[datetime]:
    """All of them, for a preview."""
    due = next_due(schedule, zone, after)
    while due <= until:
        yield due
        due = next_due(schedule, zone, due)


def _is_day(schedule: Schedule, day: date) -> bool:
    if schedule.days:
        return day.weekday() in {weekday.number for weekday in schedule.days}
    if schedule.days_of_month:
        last = calendar.monthrange(day.year, day.month)[1]
        return day.day in schedule.days_of_month or (
            day.day == last and "last" in schedule.days_of_month
        )
    return True


def _first_on(schedule: Schedule, zone: ZoneInfo, day: date, after: datetime) -> datetime | None:
    """The first due time of the day that is later than `after`."""
    if schedule.every_minutes is None:
        return min((due for due in _times_on(schedule, zone, day) if due > after), default=None)
    begin, end = moment(zone, day, 0), moment(zone, day, MINUTES_PER_DAY)
    step = timedelta(minutes=schedule.every_minutes)
    due = begin if after < begin else begin + ((after - begin) // step + 1) * step
    return due if due < end else None


def _latest_on(schedule: Schedule, zone: ZoneInfo, day: date, until: datetime) -> datetime | None:
    """The last due time of the day that is not later than `until`."""
    if schedule.every_minutes is None:
        return max((due for due in _times_on(schedule, zone, day) if due <= until), default=None)
    begin, end = moment(zone, day, 0), moment(zone, day, MINUTES_PER_DAY)
    if until < begin or begin == end:
        return None
    step = timedelta(minutes=schedule.every_minutes)
    return begin + (min(until, end - timedelta(seconds=1)) - begin) // step * step


def _times_on(schedule: Schedule, zone: ZoneInfo, day: date) -> list[datetime]:
    return [moment(zone, day, minute_of_day(at)) for at in schedule.at]


# Windows


def closes_at(windows: Sequence[str], zone: ZoneInfo, at: datetime) -> datetime | None:
    """When the windows that are open at `at` have closed; None: they never do.

    Raises ValueError: none is open. Windows that touch or overlap are one.
    """
    if not windows:
        return None
    end = at
    limit = at + _TWO_WEEKS_AND_MORE * _DAY
    while end < limit:
        later = max(
            (close for opens, close in _spans(windows, zone, end) if opens <= end < close),
            default=None,
        )
        if later is None:
            break
        end = later
    if end == at:
        raise ValueError("no window is open")
    return end if end < limit else None


def is_open(windows: Sequence[str], zone: ZoneInfo, at: datetime) -> bool:
    """Without windows: always."""
    return not windows or any(opens <= at < close for opens, close in _spans(windows, zone, at))


def next_open(windows: Sequence[str], zone: ZoneInfo, at: datetime) -> datetime:
    """`at` if a window is open, else when the next one opens."""
    if is_open(windows, zone, at):
        return at
    for number in range(_TWO_WEEKS_AND_MORE):
        later = at + number * _DAY
        opening = [
            max(opens, at)
            for opens, close in _spans(windows, zone, later)
            if close > at and opens < close
        ]
        if opening:
            return min(opening)
    raise AssertionError("every window opens once in two weeks")


def next_start(
    schedule: Schedule, windows: Sequence[str], zone: ZoneInfo, after: datetime
) -> datetime:
    """When what is due next after `after` may begin."""
    return next_open(windows, zone, next_due(schedule, zone, after))


def _spans(
    windows: Sequence[str], zone: ZoneInfo, at: datetime
) -> Iterator[tuple[datetime, datetime]]:
    """The windows of the day before, of the day, and of the day after."""
    today = at.astimezone(zone).date()
    for window in map(parse_window, windows):
        for day in (today - _DAY, today, today + _DAY):
            if day.weekday() in window.days:
                yield _span(window, zone, day)


def _span(window: Window, zone: ZoneInfo, day: date) -> tuple[datetime, datetime]:
    return moment(zone, day, window.opens_minute), moment(zone, day, window.closes_minute)
