"""What the scheduler does about one job at one moment. Pure: job, history and time in, a decision
out.

In this order: an open run is left alone, two never overlap. A time that has come due since the job
counts (`SavedJob.since`) or since the last one that got a run is run once, however many were
missed, as soon as a window is open. Otherwise a failed run is repeated, as often as the policy
says; one that was interrupted at least once, so that a restart of the daemon costs no night.

Thread model: pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from appliance.catalog.job_runs import JobHistory, JobRun, RunCause
from appliance.catalog.jobs import SavedJob
from appliance.catalog.policy import Policy
from appliance.catalog.runs import RunOutcome
from appliance.jobs.calendar import latest_due, next_open, next_start

_ON_TIME = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    cause: RunCause
    due_at: datetime | None = None
    repeats: JobRun | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing to do before `until`; None: nothing at all, as things are."""

    until: datetime | None


def decide(saved: SavedJob, history: JobHistory, now: datetime) -> Start | Wait:
    """Say what is to be done about an enabled job."""
    if history.open_run is not None:
        return Wait(until=None)
    policy = saved.policy
    handled = max(saved.since, history.handled_until or saved.since)
    if policy.schedule is not None:
        due = latest_due(policy.schedule, policy.zone, handled, now)
        if due is not None:
            opens = next_open(policy.windows, policy.zone, now)
            if opens > now:
                return Wait(until=opens)
            on_time = now - due <= _ON_TIME
            return Start(cause=RunCause.SCHEDULE if on_time else RunCause.CATCH_UP, due_at=due)
    repeated = _repetition(policy, history.latest, saved.since)
    if repeated is not None and repeated <= now:
        return Start(cause=RunCause.RETRY, repeats=history.latest)
    following = _next_by_schedule(policy, now)
    return Wait(until=min((at for at in (repeated, following) if at is not None), default=None))


def next_run(saved: SavedJob, history: JobHistory, now: datetime) -> datetime | None:
    """When the job will run next, for people; None: only by hand."""
    if not saved.job.enabled:
        return None
    if history.open_run is not None:
        return _next_by_schedule(saved.policy, now)
    decision = decide(saved, history, now)
    return now if isinstance(decision, Start) else decision.until


def _repetition(policy: Policy, latest: JobRun | None, since: datetime) -> datetime | None:
    """When the last run is to be repeated; None: it is not."""
    if latest is None or latest.ended_at is None or latest.outcome is not RunOutcome.FAILED:
        return None
    if latest.queued_at < since:
        return None  # what failed under an earlier schedule, or before it was disabled
    allowed = policy.retries.attempts
    if latest.interrupted:
        return latest.ended_at if latest.attempt <= max(allowed, 1) else None
    if latest.attempt > allowed:
        return None
    wanted = latest.ended_at + timedelta(minutes=policy.retries.wait_minutes)
    return next_open(policy.windows, policy.zone, wanted)


def _next_by_schedule(policy: Policy, now: datetime) -> datetime | None:
    if policy.schedule is None:
        return None
    return next_start(policy.schedule, policy.windows, policy.zone, now)
