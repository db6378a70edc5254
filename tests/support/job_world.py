"""Scheduler and engine over a real catalog, a clock that the test moves, and runners that only take
time: fourteen nights pass in seconds, and the process can be killed at any moment of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from appliance.base.errors import ApplianceError
from appliance.base.ids import RunId
from appliance.catalog.catalog import Catalog
from appliance.catalog.job import JOB, Job, RunKind
from appliance.catalog.job_runs import JobRun
from appliance.catalog.policy import Policy
from appliance.catalog.runs import RunOutcome
from appliance.jobs.engine import Engine, RunOrder, RunReport
from appliance.jobs.live_run import LiveRun
from appliance.jobs.scheduler import Scheduler

_SETTLED_WITHIN_S = 20.0


class KilledError(BaseException):
    """The process is gone; nothing catches it."""


class PassingError(ApplianceError):
    """A failure for tests."""

    code = "test.failed"


class MovedClock:
    """Time is what the test says; who waits for a moment is told when it comes."""

    def __init__(self, start: datetime) -> None:
        self._now = start
        self.changed = threading.Condition()

    def now(self) -> datetime:
        with self.changed:
            return self._now

    def monotonic_s(self) -> float:
        return self.now().timestamp()

    def set(self, now: datetime) -> None:
        with self.changed:
            self._now = now
            self.changed.notify_all()


@dataclass
class FakeRunner:
    """Takes as long as the plan of the run says, and ends as it says."""

    clock: MovedClock
    lasts: Callable[[RunOrder], timedelta] = lambda order: timedelta(0)
    ends: Callable[[RunOrder], RunReport] = lambda order: RunReport(outcome=RunOutcome.SUCCESS)
    waiting: dict[RunId, datetime] = field(default_factory=dict)
    killed: bool = False

    def run(self, order: RunOrder, live: LiveRun) -> RunReport:
        until = self.clock.now() + self.lasts(order)
        with self.clock.changed:
            self.waiting[order.run.run_id] = until
            self.clock.changed.notify_all()
            try:
                while self.clock.now() < until:
                    if self.killed:
                        raise KilledError
                    live.context.cancel.check()
                    self.clock.changed.wait(0.02)  # the token cannot wake us
            finally:
                del self.waiting[order.run.run_id]
        return self.ends(order)


@dataclass
class World:
    folder: Path
    clock: MovedClock
    runner: FakeRunner
    catalog: Catalog
    engine: Engine
    scheduler: Scheduler
    ended: list[JobRun] = field(default_factory=list)

    def save(self, name: str, *, policy: dict[str, Any] | None = None, **job: Any) -> None:
        """A job with a policy of its own; a backup of everything if nothing else is said."""
        job.setdefault("kind", "backup")
        if job["kind"] in ("backup", "cbt-audit"):
            job.setdefault("select", {"everything": True})
        policies = [Policy.model_validate({"name": name, **policy})] if policy else []
        parsed: Job = JOB.validate_python({"name": name, "policy": name if policy else None, **job})
        self.catalog.jobs.save(policies, [parsed])

    def look(self) -> datetime | None:
        until = self.scheduler.look()
        self.settle()
        return until

    def settle(self) -> None:
        """Wait until every run that goes on waits for the clock, and not for a moment that is."""

        def settled() -> bool:
            now = self.clock.now()
            runs = {order.run.run_id for order in self.engine.active()}
            return all(self.runner.waiting.get(run, now) > now for run in runs)

        with self.clock.changed:
            for _ in range(int(_SETTLED_WITHIN_S / 0.005)):
                if settled():
                    return
                self.clock.changed.wait(0.005)
        raise AssertionError("runs do not come to rest")

    def until(self, end: datetime) -> None:
        """Let time pass; look whenever something may have come due or has ended."""
        while True:
            following = self.look()
            now = self.clock.now()
            if now >= end:
                return
            moments = [end, now + timedelta(minutes=30), *self.runner.waiting.values()]
            if following is not None:
                moments.append(following)
            self.clock.set(min(max(moment, now + timedelta(seconds=1)) for moment in moments))
            self.settle()

    def runs(self, kind: RunKind = RunKind.BACKUP, job: str | None = None) -> list[JobRun]:
        found = self.catalog.job_runs.list(job=job, limit=100_000)
        return [run for run in found if run.kind is kind]

    def kill(self) -> None:
        """End the process in the middle of whatever it does; then a new one starts."""
        with self.clock.changed:
            self.runner.killed = True
            self.clock.changed.notify_all()
        assert self.engine.wait_idle(_SETTLED_WITHIN_S)
        self._start_anew()

    def stop(self) -> None:
        """Stop it in order; a new one starts later."""
        self.scheduler.stop()
        self._start_anew()

    def _start_anew(self) -> None:
        self.catalog.close()
        self.catalog = Catalog.open(self.folder, clock=self.clock)
        old = self.runner
        self.runner = FakeRunner(self.clock, lasts=old.lasts, ends=old.ends)
        self.engine, self.scheduler = _machinery(self.catalog, self.runner, self.clock, self.ended)


def _machinery(
    catalog: Catalog, runner: FakeRunner, clock: MovedClock, ended: list[JobRun]
) -> tuple[Engine, Scheduler]:
    runners = dict.fromkeys(RunKind, runner)
    engine = Engine(catalog.job_runs, catalog.run_locks, runners, clock, [ended.append])
    return engine, Scheduler(catalog.jobs, catalog.job_runs, engine, clock)


@contextmanager
def job_world(folder: Path, start: str = "2026-10-20T12:00") -> Iterator[World]:
    clock = MovedClock(datetime.fromisoformat(start).replace(tzinfo=UTC))
    catalog = Catalog.open(folder, clock=clock)
    runner = FakeRunner(clock)
    ended: list[JobRun] = []
    engine, scheduler = _machinery(catalog, runner, clock, ended)
    world = World(folder, clock, runner, catalog, engine, scheduler, ended)
    try:
        yield world
    finally:
        world.scheduler.stop()
        world.catalog.close()
