"""The scheduler: looks at jobs and clock, lets runs wait, and begins them.

Its whole state is in the catalog, read anew at every look: a restart of the daemon, a job that
another process saved, a clock that was set, all are met by the next look. What is due stands in
`due.py`; here is what may begin:

- Backups begin at once; how many VMs go at a time is `backup_limits`' business.
- Of every other kind one run goes on at a time, beside backups and never in their way.
- A run that the schedule asked for begins inside the policy's windows only; one that a person or
  another run asked for at once.

Thread model: `look` belongs to one thread (the scheduler's, or a test's); `wake` is for any.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from appliance.base.clock import Clock
from appliance.base.log import EventLog
from appliance.base.periodic_task import PeriodicTask
from appliance.catalog.errors import JobNotFoundError, JobRunningError
from appliance.catalog.job import RunKind
from appliance.catalog.job_runs import JobRun, JobRuns, RunCause, RunState
from appliance.catalog.jobs import Jobs, SavedJob
from appliance.jobs.calendar import is_open
from appliance.jobs.due import Start, decide
from appliance.jobs.engine import Engine, RunOrder

log = EventLog(__name__)

LOOK_EVERY_S = 5.0
_AT_ANY_TIME = frozenset({RunCause.MANUAL, RunCause.FOLLOW_UP})


class Scheduler:
    def __init__(self, jobs: Jobs, job_runs: JobRuns, engine: Engine, clock: Clock) -> None:
        self._jobs = jobs
        self._job_runs = job_runs
        self._engine = engine
        self._clock = clock
        self._task = PeriodicTask("scheduler", self._look_and_say_when, every_s=LOOK_EVERY_S)
        engine.add_listener(lambda run: self.wake())

    # The thread

    def start(self) -> None:
        self._task.start()

    def stop(self) -> None:
        """Begin nothing more, then interrupt what goes on and wait for it. Idempotent."""
        self._task.stop()
        self._engine.stop()

    def wake(self) -> None:
        """Look now: something was saved, asked for, or has ended."""
        self._task.wake()

    def _look_and_say_when(self) -> float | None:
        """The clock may be set meanwhile, so never long."""
        until = self.look()
        if until is None:
            return None
        return min(max((until - self._clock.now()).total_seconds(), 0.05), LOOK_EVERY_S)

    # One look

    def look(self) -> datetime | None:
        """Do all that is to be done now; return when there may be more, None: nobody knows."""
        for run in self._job_runs.close_interrupted():
            log.warning("run was interrupted", run=run.run_id, job=run.job, kind=run.kind)
        now = self._clock.now()
        moments = [self._queue(saved, now) for saved in self._jobs.list() if saved.job.enabled]
        for run in self._job_runs.open_runs(RunState.WAITING):
            self._begin(run, now)
        return min((moment for moment in moments if moment is not None), default=None)

    def _queue(self, saved: SavedJob, now: datetime) -> datetime | None:
        """Let a run wait if one is due; else say when to look again."""
        if saved.since > now:  # saved while the clock was ahead
            self._jobs.count_from(saved.name, now)
            return now + timedelta(seconds=LOOK_EVERY_S)
        decision = decide(saved, self._job_runs.history(saved.name, saved.job.kind), now)
        if not isinstance(decision, Start):
            return decision.until
        try:
            self._job_runs.add(
                saved.name,
                saved.job.kind,
                decision.cause,
                due_at=decision.due_at,
                repeats=decision.repeats,
            )
        except JobRunningError:
            log.debug("a run came meanwhile", job=saved.name)
        return None

    def _begin(self, run: JobRun, now: datetime) -> None:
        try:
            saved = self._jobs.get(run.job)
        except JobNotFoundError:
            self._job_runs.cancel_waiting(run.run_id)
            return
        if not saved.job.enabled and run.cause not in _AT_ANY_TIME:
            self._job_runs.cancel_waiting(run.run_id)
        elif self._may_begin(run, saved, now):
            self._engine.start(RunOrder(run=run, saved=saved))

    def _may_begin(self, run: JobRun, saved: SavedJob, now: datetime) -> bool:
        if any(order.run.run_id == run.run_id for order in self._engine.active()):
            return False  # its thread has not got to writing it down
        policy = saved.policy
        if run.cause not in _AT_ANY_TIME and not is_open(policy.windows, policy.zone, now):
            return False
        return run.kind is RunKind.BACKUP or not self._engine.active(run.kind)


def run_now(jobs: Jobs, job_runs: JobRuns, name: str, wake: Callable[[], None]) -> JobRun:
    """Let a run of the job begin at once, whatever its schedule and windows say.

    Raises: JobNotFoundError; JobRunningError.
    """
    run = job_runs.add(name, jobs.get(name).job.kind, RunCause.MANUAL)
    wake()
    return run
