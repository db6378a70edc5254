"""When a job is due and when it may run, as an administrator writes it.

    at = ["22:00"]  days = ["mon", "fri"]        or  days_of_month = [1, "last"]
    every_minutes = 15
    windows = ["mon-fri 20:00-06:00", "sat,sun 00:00-24:00"]

All times are those of the policy's time zone; what they mean on the days on which the clocks are
changed stands in `jobs/calendar.py`, which computes with them. Values are kept as text in one
canonical form, so that two ways to write a thing do not differ.

Thread model: values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MINUTES_PER_DAY = 24 * 60
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_WINDOW = re.compile(r"(?:([a-z,-]+) +)?(\d\d:\d\d) ?- ?(\d\d:\d\d)")
_MOST = 96  # times or windows of one policy


class Weekday(StrEnum):
    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"

    @property
    def number(self) -> int:
        """As `date.weekday`."""
        return WEEKDAYS.index(self)


WEEKDAYS = tuple(Weekday)


class Strict(BaseModel):
    """A frozen model that knows all of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A span of local time that opens on some days of the week."""

    days: frozenset[int]  # as `date.weekday`
    opens_minute: int  # of the day, 0 to 1439
    closes_minute: int  # of the day on which it opens; above 1440: of the next one

    @property
    def text(self) -> str:
        closes = self.closes_minute
        closes -= MINUTES_PER_DAY if closes > MINUTES_PER_DAY else 0
        span = f"{_time_text(self.opens_minute)}-{_time_text(closes)}"
        return span if len(self.days) == len(WEEKDAYS) else f"{_days_text(self.days)} {span}"


def minute_of_day(text: str) -> int:
    """Parse `22:00`. Raises ValueError."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time of day; write it as 07:30 or 22:00")
    return int(match[1]) * 60 + int(match[2])


@lru_cache(maxsize=1024)
def parse_window(text: str) -> Window:
    """Parse `mon-fri 20:00-06:00`; without days it opens every day. Raises ValueError."""
    match = _WINDOW.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(
            f"{text!r} is not a window; write it as '20:00-06:00' or 'mon-fri 20:00-06:00'"
        )
    opens = minute_of_day(match[2])
    closes = MINUTES_PER_DAY if match[3] == "24:00" else minute_of_day(match[3])
    if closes == opens:
        raise ValueError(f"{text!r} is empty; a whole day is 00:00-24:00")
    days = _parse_days(match[1]) if match[1] else frozenset(range(len(WEEKDAYS)))
    return Window(
        days=days,
        opens_minute=opens,
        closes_minute=closes if closes > opens else closes + MINUTES_PER_DAY,
    )


def _parse_days(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        names = (first, last) if dash else (first, first)
        try:
            begin, end = (Weekday(name).number for name in names)
        except ValueError:
            raise ValueError(f"{part!r} is not a day or a span of days, such as mon-fri") from None
        found.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(found)


def _days_text(days: Iterable[int]) -> str:
    """`mon-fri`, `sat,sun`: three or more in a row are a span."""
    spans: list[list[int]] = []
    for day in sorted(days):
        if spans and spans[-1][-1] == day - 1:
            spans[-1].append(day)
        else:
            spans.append([day])
    return ",".join(
        f"{WEEKDAYS[span[0]]}-{WEEKDAYS[span[-1]]}"
        if len(span) > 2
        else ",".join(WEEKDAYS[day] for day in span)
        for span in spans
    )


def _time_text(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _checked_time(text: str) -> str:
    minute_of_day(text)
    return text


def _checked_zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (OSError, ValueError, KeyError):  # of which ZoneInfoNotFoundError is one
        raise ValueError(
            f"{text!r} is not a time zone that this machine knows; write it as Europe/Berlin"
        ) from None
    return text


TimeOfDay = Annotated[str, AfterValidator(_checked_time)]
WindowText = Annotated[str, AfterValidator(lambda text: parse_window(text).text)]
ZoneName = Annotated[str, Field(max_length=64), AfterValidator(_checked_zone)]
DayOfMonth = Annotated[int, Field(ge=1, le=28)] | Literal["last"]
"""29 to 31 are not in every month; `last` is."""


class Schedule(Strict):
    """When a job is due: at times of the day, or every so many minutes counted from midnight."""

    at: tuple[TimeOfDay, ...] = Field(default=(), max_length=_MOST)
    days: tuple[Weekday, ...] = Field(default=(), max_length=7)  # none: every day
    days_of_month: tuple[DayOfMonth, ...] = Field(default=(), max_length=29)
    every_minutes: int | None = Field(default=None, ge=1, le=MINUTES_PER_DAY)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.at and self.every_minutes is not None:
            raise ValueError("give either at or every_minutes, not both")
        if not self.at and self.every_minutes is None:
            raise ValueError("give at (times of the day) or every_minutes")
        if self.days and self.days_of_month:
            raise ValueError("give either days or days_of_month, not both")
        return self

    @property
    def words(self) -> str:
        """`mon-fri at 22:00`, for people."""
        if self.days:
            when = _days_text(day.number for day in self.days)
        elif self.days_of_month:
            when = f"monthly on {', '.join(map(str, self.days_of_month))}"
        else:
            when = "daily"
        if self.every_minutes is None:
            return f"{when} at {', '.join(self.at)}"
        every = f"every {self.every_minutes} minutes"
        return every if when == "daily" else f"{when} {every}"
