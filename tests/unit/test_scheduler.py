"""The scheduler under a clock that the test moves: nights, changes of the clock, kills."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from appliance.base.errors import UsageError
from appliance.catalog.errors import JobRunningError
from appliance.catalog.job import RunKind
from appliance.catalog.job_runs import JobRun, RunCause, RunState
from appliance.catalog.runs import RunOutcome
from appliance.jobs.engine import RunOrder, RunReport
from appliance.jobs.scheduler import run_now
from tests.support.job_world import PassingError, World, job_world

NIGHTLY = {"schedule": {"at": ["22:00"]}, "time_zone": "Europe/Berlin"}
BERLIN = ZoneInfo("Europe/Berlin")
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with job_world(tmp_path) as opened:
        yield opened


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def fails(order: RunOrder) -> RunReport:
    raise PassingError("as planned")


def assert_no_two_at_once(runs: list[JobRun]) -> None:
    spans = sorted((run.started_at, run.ended_at) for run in runs if run.started_at)
    for (_, ended), (started, _) in pairwise(spans):
        assert ended is not None and started is not None and ended <= started


def test_fourteen_nights_make_fourteen_runs_with_retention_after_each(world: World) -> None:
    """The clocks go back in one of them; each night runs once, at 22:00 as the clock shows it."""
    world.save("all", policy=NIGHTLY)
    world.runner.lasts = lambda order: 90 * MINUTE
    world.runner.ends = lambda order: RunReport(
        outcome=RunOutcome.SUCCESS,
        follow_up=RunKind.RETENTION if order.run.kind is RunKind.BACKUP else None,
    )
    world.until(world.clock.now() + timedelta(days=14))
    runs = world.runs()
    assert [run.started_at.astimezone(BERLIN).strftime("%H:%M") for run in runs if run.started_at]
    assert {(run.cause, run.outcome) for run in runs} == {(RunCause.SCHEDULE, RunOutcome.SUCCESS)}
    local = [run.due_at.astimezone(BERLIN) for run in runs if run.due_at]
    assert [f"{due:%H:%M}" for due in local] == ["22:00"] * 14
    assert len({due.date() for due in local}) == 14
    followed = world.runs(RunKind.RETENTION)
    assert len(followed) == 14
    assert {run.cause for run in followed} == {RunCause.FOLLOW_UP}
    assert len(world.ended) == 28


def test_a_run_that_takes_longer_than_its_interval_is_never_overtaken(world: World) -> None:
    """Every 15 minutes, 40 minutes each: one after the other, at once when the last has ended."""
    world.save("often", policy={"schedule": {"every_minutes": 15}})
    world.runner.lasts = lambda order: 40 * MINUTE
    world.until(world.clock.now() + 10 * HOUR)
    runs = [run for run in world.runs() if run.ended_at]
    assert len(runs) >= 14
    assert_no_two_at_once(runs)
    for earlier, later in pairwise(runs):
        assert later.started_at and earlier.ended_at
        assert later.started_at - earlier.ended_at < MINUTE


def test_nights_that_were_missed_are_caught_up_by_one_run(world: World) -> None:
    """The daemon was off for five days: one run at its start, then as scheduled."""
    world.save("all", policy=NIGHTLY)
    world.until(utc("2026-10-21T12:00"))
    world.clock.set(utc("2026-10-26T09:00"))
    world.until(utc("2026-10-27T12:00"))
    assert [(run.cause, run.due_at) for run in world.runs()] == [
        (RunCause.SCHEDULE, utc("2026-10-20T20:00")),
        (RunCause.CATCH_UP, utc("2026-10-25T21:00")),
        (RunCause.SCHEDULE, utc("2026-10-26T21:00")),
    ]


def test_what_is_due_outside_the_window_begins_when_it_opens(world: World) -> None:
    """Once, however often it was due meanwhile."""
    windows = ["20:00-06:00"]
    world.save("all", policy={"schedule": {"every_minutes": 60}, "windows": windows})
    world.until(utc("2026-10-20T23:30"))
    began = [run.started_at for run in world.runs()]
    assert began == [utc(f"2026-10-20T{hour}:00") for hour in (20, 21, 22, 23)]


def test_a_failed_run_is_repeated_as_often_as_the_policy_says(world: World) -> None:
    """Two repetitions ten minutes apart, and then not before the next night."""
    retries = {"attempts": 2, "wait_minutes": 10}
    world.save("all", policy=NIGHTLY | {"retries": retries})
    world.runner.ends = fails
    world.until(utc("2026-10-21T19:00"))
    runs = world.runs()
    assert [(run.attempt, run.cause) for run in runs] == [
        (1, RunCause.SCHEDULE),
        (2, RunCause.RETRY),
        (3, RunCause.RETRY),
    ]
    assert {run.first_run for run in runs} == {runs[0].run_id}
    assert {(run.outcome, run.error_code) for run in runs} == {(RunOutcome.FAILED, "test.failed")}
    for earlier, later in pairwise(runs):
        assert earlier.ended_at and later.started_at
        assert later.started_at - earlier.ended_at >= 10 * MINUTE
    world.until(utc("2026-10-22T12:00"))
    assert [run.attempt for run in world.runs()] == [1, 2, 3, 1, 2, 3]


def test_a_repetition_that_succeeds_ends_the_matter(world: World) -> None:
    """No further attempt after a success."""
    world.save("all", policy=NIGHTLY)
    world.runner.ends = lambda order: (
        fails(order) if order.run.attempt < 2 else RunReport(outcome=RunOutcome.SUCCESS)
    )
    world.until(utc("2026-10-21T12:00"))
    assert [run.outcome for run in world.runs()] == [RunOutcome.FAILED, RunOutcome.SUCCESS]


def test_upkeep_never_keeps_a_backup_waiting(world: World) -> None:
    """Check, verification and audit of ten hours each, and the hourly backups begin on the hour;
    two runs of such a kind never overlap."""
    world.save("all", policy={"schedule": {"every_minutes": 60}})
    world.save("check", kind="check", policy={"schedule": {"every_minutes": 120}})
    world.save("other", kind="check", policy={"schedule": {"every_minutes": 120}})
    world.save("gc", kind="gc", policy={"schedule": {"every_minutes": 60}})
    for kind, more in (("verification", {"hash_share": 1}), ("cbt-audit", {})):
        world.save(kind, kind=kind, policy={"schedule": {"every_minutes": 120}}, **more)
    long = (RunKind.CHECK, RunKind.VERIFICATION, RunKind.CBT_AUDIT)
    world.runner.lasts = lambda order: 10 * HOUR if order.run.kind in long else 20 * MINUTE
    world.until(world.clock.now() + 24 * HOUR)
    for kind in (RunKind.BACKUP, RunKind.GC):
        assert {run.started_at.minute for run in world.runs(kind) if run.started_at} == {0}
        assert len(world.runs(kind)) == 24
    checks = [run for run in world.runs(RunKind.CHECK) if run.ended_at]
    assert {run.job for run in checks} == {"check", "other"}
    for one_kind in long:
        ended = [run for run in world.runs(one_kind) if run.ended_at]
        assert ended
        assert_no_two_at_once(ended)


def test_a_job_that_is_enabled_or_gets_another_schedule_catches_nothing_up(world: World) -> None:
    """What would have been due before counts for nothing."""
    world.save("all", policy=NIGHTLY, enabled=False)
    world.until(utc("2026-10-22T12:00"))
    world.catalog.jobs.enable("all")
    world.until(utc("2026-10-22T13:00"))
    assert world.runs() == []
    world.save("all", policy=NIGHTLY | {"schedule": {"at": ["08:00"]}})
    world.until(utc("2026-10-22T23:00"))
    assert world.runs() == []
    world.until(utc("2026-10-23T07:00"))
    assert [run.due_at for run in world.runs()] == [utc("2026-10-23T06:00")]


def test_saving_a_job_again_unchanged_moves_nothing(world: World) -> None:
    """Its schedule counts from when it was first saved."""
    world.save("all", policy=NIGHTLY)
    since = world.catalog.jobs.get("all").since
    world.clock.set(world.clock.now() + HOUR)
    world.save("all", policy=NIGHTLY)
    assert world.catalog.jobs.get("all").since == since


def test_a_cancelled_run_is_cancelled_and_not_repeated(world: World) -> None:
    """Whoever cancelled meant it; the next night runs again."""
    world.save("all", policy=NIGHTLY)
    world.runner.lasts = lambda order: 2 * HOUR
    world.until(utc("2026-10-20T20:30"))
    (run,) = world.runs()
    assert run.state is RunState.RUNNING
    assert world.engine.live(run.run_id) is not None
    assert world.engine.cancel(run.run_id)
    assert world.engine.wait_idle(20)
    world.until(utc("2026-10-21T12:00"))
    (run,) = world.runs()
    assert (run.outcome, run.error_code) == (RunOutcome.CANCELLED, "run.cancelled")


def test_a_run_by_hand_ignores_schedule_and_windows_and_is_one_of_its_job(world: World) -> None:
    """The second is refused while the first goes on; the night's own run comes all the same."""
    world.save("all", policy=NIGHTLY | {"windows": ["20:00-06:00"]})
    world.runner.lasts = lambda order: HOUR
    jobs, job_runs = world.catalog.jobs, world.catalog.job_runs
    run_now(jobs, job_runs, "all", world.scheduler.wake)
    world.look()
    with pytest.raises(JobRunningError):
        run_now(jobs, job_runs, "all", world.scheduler.wake)
    world.until(utc("2026-10-21T12:00"))
    assert [run.cause for run in world.runs()] == [RunCause.MANUAL, RunCause.SCHEDULE]


def test_a_defect_of_a_runner_fails_its_run_and_nothing_else(world: World) -> None:
    """The run says so, the scheduler goes on."""
    world.save("all", policy=NIGHTLY | {"retries": {"attempts": 0}})

    def defect(order: RunOrder) -> RunReport:
        raise KeyError("a defect")

    world.runner.ends = defect
    world.until(utc("2026-10-22T12:00"))
    assert [run.error_code for run in world.runs()] == ["run.unexpected"] * 2


def test_a_run_that_the_daemons_stop_ended_goes_on_at_its_next_start(world: World) -> None:
    """Also where the policy repeats nothing: a restart costs no night."""
    world.save("all", policy=NIGHTLY | {"retries": {"attempts": 0}})
    world.runner.lasts = lambda order: 2 * HOUR
    world.until(utc("2026-10-20T21:00"))
    world.stop()
    world.until(utc("2026-10-21T12:00"))
    assert [(run.cause, run.outcome, run.error_code) for run in world.runs()] == [
        (RunCause.SCHEDULE, RunOutcome.FAILED, "run.interrupted"),
        (RunCause.RETRY, RunOutcome.SUCCESS, None),
    ]


def test_a_run_that_kills_the_daemon_each_time_is_not_repeated_for_ever(world: World) -> None:
    """Once more, then not before the next night."""
    world.save("all", policy=NIGHTLY | {"retries": {"attempts": 0}})
    world.runner.lasts = lambda order: 5 * HOUR
    for hour in ("20:30", "21:30", "22:30", "23:30"):
        world.until(utc(f"2026-10-20T{hour}"))
        world.kill()
    world.until(utc("2026-10-21T12:00"))
    assert [run.attempt for run in world.runs()] == [1, 2]


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment_no_night_is_lost_and_no_run_is_left_open(
    world: World, seed: int
) -> None:
    """Six nights with kills at random: each night ends with a success, runs never overlap, and
    every run that was killed says so."""
    chance = random.Random(seed)
    world.save("all", policy=NIGHTLY | {"retries": {"attempts": 3, "wait_minutes": 5}})
    world.runner.lasts = lambda order: chance.randint(5, 90) * MINUTE
    end = utc("2026-10-26T12:00")
    while world.clock.now() < end:
        world.until(min(end, world.clock.now() + chance.randint(1, 400) * MINUTE))
        if chance.random() < 0.7 and world.clock.now() < end:
            world.kill()
    world.until(end + 3 * HOUR)
    runs = world.runs()
    assert all(run.state is RunState.ENDED for run in runs)
    assert_no_two_at_once(runs)
    assert {run.error_code for run in runs if run.outcome is RunOutcome.FAILED} <= {
        "run.interrupted"
    }
    outcomes: dict[str, set[RunOutcome | None]] = {}
    for run in runs:
        outcomes.setdefault(run.first_run, set()).add(run.outcome)
    assert len(outcomes) == 6
    lost = [first for first, ends in outcomes.items() if RunOutcome.SUCCESS not in ends]
    attempts = Counter(run.first_run for run in runs)
    assert all(attempts[first] == 4 for first in lost)  # killed as often as the policy repeats


def test_a_waiting_run_outlives_the_daemon(world: World) -> None:
    """Asked for while another of its kind goes on, it begins under the next daemon."""
    world.save("first", kind="check")
    world.save("second", kind="check")
    world.runner.lasts = lambda order: HOUR
    jobs, job_runs = world.catalog.jobs, world.catalog.job_runs
    for name in ("first", "second"):
        run_now(jobs, job_runs, name, world.scheduler.wake)
        world.look()
    assert [run.job for run in job_runs.open_runs(RunState.WAITING)] == ["second"]
    world.kill()
    world.until(world.clock.now() + 3 * HOUR)
    assert {run.job: run.outcome for run in world.runs(RunKind.CHECK)}["second"] is (
        RunOutcome.SUCCESS
    )


def test_a_clock_that_was_a_year_ahead_costs_no_night_after_it_is_right(world: World) -> None:
    """Neither what ran under the wrong time nor what was saved under it silences a job."""
    world.save("all", policy=NIGHTLY)
    world.clock.set(utc("2027-10-20T12:00"))
    world.look()
    world.save("new", policy=NIGHTLY)
    world.clock.set(utc("2026-10-20T12:10"))
    world.until(utc("2026-10-23T12:00"))
    for job in ("all", "new"):
        due = [run.due_at for run in world.runs(job=job) if run.due_at]
        assert due[-3:] == [utc(f"2026-10-{day}T20:00") for day in (20, 21, 22)]


def test_a_retention_job_without_rules_is_refused(world: World) -> None:
    """It would remove nothing, or everything but the newest."""
    with pytest.raises(UsageError, match="retention"):
        world.save("prune", kind="retention", policy=NIGHTLY)
    assert world.catalog.jobs.list() == []
