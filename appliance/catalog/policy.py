"""How a job goes about its work: schedule, retention, consistency, scripts, limits, retries.

The model at the border: what the TOML file, the command line and the API hand in becomes one of
these or a clear error, and inside it is trusted. Text fields are kept in one canonical form.

Scripts are argument lists that the appliance runs itself. No shell reads them, and no name that a
guest or a hypervisor chose becomes part of one.

Thread model: values.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Annotated, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from appliance.base.consistency import Consistency, GuestLogs
from appliance.base.errors import UsageError
from appliance.base.units import KIB, parse_duration, parse_size
from appliance.catalog.schedule import Schedule, Strict, WindowText, ZoneName

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_LADDER = (Consistency.APPLICATION, Consistency.FILE_SYSTEM, Consistency.CRASH)
_MOST_KEPT = 100_000
_LEAST_RATE = 64 * KIB  # slower than this no disk would ever end


def _checked_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError(f"{text!r}: a name is up to 63 letters, digits, '_' and '-'")
    return text


def _checked_rate(text: str) -> str:
    try:
        rate = parse_size(text.removesuffix("/s"))
    except UsageError as error:
        raise ValueError(str(error)) from None
    if rate < _LEAST_RATE:
        raise ValueError(f"{text!r} is less than 64 KiB/s")
    return f"{text.removesuffix('/s')}/s"


def _checked_duration(text: str) -> str:
    try:
        parse_duration(text)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return text.strip()


def _checked_program(argv: tuple[str, ...]) -> tuple[str, ...]:
    if not PurePosixPath(argv[0]).is_absolute():
        raise ValueError(f"{argv[0]!r}: name the program by its absolute path")
    if any("\0" in word for word in argv):
        raise ValueError("an argument holds a zero byte")
    return argv


Name = Annotated[str, AfterValidator(_checked_name)]
Rate = Annotated[str, AfterValidator(_checked_rate)]
DurationText = Annotated[str, AfterValidator(_checked_duration)]
_Count = Annotated[int, Field(ge=0, le=_MOST_KEPT)]
_Argument = Annotated[str, Field(max_length=4096)]


class Retention(Strict):
    """How many points each rule keeps; 0: the rule does not exist. Rules are those of `prune`."""

    keep_last: _Count = 0
    keep_hourly: _Count = 0
    keep_daily: _Count = 0
    keep_weekly: _Count = 0
    keep_monthly: _Count = 0
    keep_yearly: _Count = 0

    @property
    def words(self) -> str:
        """`daily 14, weekly 8`, or `everything`."""
        counts = {name.removeprefix("keep_"): count for name, count in self if count}
        return ", ".join(f"{name} {count}" for name, count in counts.items()) or "everything"

    @property
    def empty(self) -> bool:
        """Keeps everything."""
        return not any(count for _, count in self)


class Ladder(Strict):
    """The best consistency to try for, and the least that still makes a recovery point."""

    wanted: Consistency = Consistency.APPLICATION
    least: Consistency = Consistency.CRASH

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for level in (self.wanted, self.least):
            if level not in _LADDER:
                raise ValueError(f"{level} cannot be asked for; take {', '.join(_LADDER)}")
        if _LADDER.index(self.wanted) > _LADDER.index(self.least):
            raise ValueError(f"wanted {self.wanted} is less than least {self.least}")
        return self


class Script(Strict):
    """A program on the appliance, by its absolute path and arguments; no shell."""

    argv: Annotated[
        tuple[_Argument, ...], Field(min_length=1, max_length=64), AfterValidator(_checked_program)
    ]
    timeout_s: int = Field(default=300, ge=1, le=24 * 3600)


class BandwidthRule(Strict):
    """At most so much is read from the hypervisors, all disks of a run together."""

    limit: Rate
    window: WindowText | None = None  # none: always

    @property
    def bytes_per_s(self) -> int:
        return parse_size(self.limit.removesuffix("/s"))


class Retries(Strict):
    """A run that failed is repeated, for what of it has not been backed up."""

    attempts: int = Field(default=2, ge=0, le=20)  # more, after the first
    wait_minutes: int = Field(default=10, ge=0, le=24 * 60)


class Policy(Strict):
    name: Name
    time_zone: ZoneName = "UTC"
    schedule: Schedule | None = None  # none: only by hand
    windows: tuple[WindowText, ...] = Field(default=(), max_length=64)  # none: at any time
    retention: Retention = Retention()
    consistency: Ladder = Ladder()
    guest_logs: GuestLogs = GuestLogs.KEEP
    before: Script | None = None
    after: Script | None = None
    vms_at_once: int | None = Field(default=None, ge=1, le=64)  # none: the appliance's own limit
    bandwidth: tuple[BandwidthRule, ...] = Field(default=(), max_length=32)
    retries: Retries = Retries()
    cbt_audit_percent: float = Field(default=1.0, ge=0, le=100)
    rto: DurationText | None = None  # how long a VM may take until it is ready
    rpo: DurationText | None = None  # how old its newest point may be
    evidence_days: int = Field(default=90, ge=1, le=36_500)  # of verifications, beside certificates

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)

    @property
    def recovery_time(self) -> timedelta | None:
        return parse_duration(self.rto) if self.rto else None

    @property
    def point_age(self) -> timedelta | None:
        return parse_duration(self.rpo) if self.rpo else None

    @property
    def timing(self) -> tuple[object, ...]:
        """What decides when it is due."""
        return self.schedule, self.time_zone

    @property
    def words(self) -> str:
        """One line for people: when it runs, and what is kept."""
        when = f"{self.schedule.words} ({self.time_zone})" if self.schedule else "by hand"
        windows = f", within {'; '.join(self.windows)}" if self.windows else ""
        return f"{when}{windows}; keeps {self.retention.words}"


MANUAL = Policy(name="by-hand", retries=Retries(attempts=0))
"""Of a job that names no policy: no schedule, nothing removed, no retries."""
