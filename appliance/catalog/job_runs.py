"""The runs of jobs: what waits, goes on, and how each ended.

    add (waiting) -> begin (goes on) -> end (success, warning, failed, cancelled)

A waiting run belongs to nobody and outlives the daemon; one that goes on holds its run lock
(`run_locks.py`), and ends as failed, `run.interrupted`, when its process has gone. No two runs of
one job and kind are open at once, whoever adds them; the database itself refuses the second.

Runs are ordered as they were added, whatever the clock said.

Thread model: as `db.py`.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from appliance.base.clock import Clock
from appliance.base.ids import RunId, new_run_id
from appliance.base.reasons import Reason
from appliance.catalog.db import Database
from appliance.catalog.errors import JobRunningError, RunInterruptedError, RunNotFoundError
from appliance.catalog.job import RunKind
from appliance.catalog.run_locks import RunLocks
from appliance.catalog.runs import RunOutcome

_SHORT = (
    "seq, run_id, job, kind, cause, first_run, attempt, due_at, queued_at, started_at, ended_at,"
    " outcome, error_code, error, reasons"
)
_FULL = f"{_SHORT}, result"


class RunCause(StrEnum):
    SCHEDULE = "schedule"
    CATCH_UP = "catch-up"  # due earlier: the daemon was off, a run went on, no window was open
    RETRY = "retry"
    MANUAL = "manual"
    FOLLOW_UP = "follow-up"  # of another run of the same job


class RunState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    seq: int
    run_id: RunId
    job: str
    kind: RunKind
    cause: RunCause
    first_run: RunId  # which this one repeats; itself, if it repeats none
    attempt: int  # 1 for the first run
    due_at: datetime | None  # None: not by schedule
    queued_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    outcome: RunOutcome | None
    error_code: str | None
    error: str | None
    reasons: tuple[Reason, ...]
    result: dict[str, Any] = field(default_factory=dict)  # of `get`; as the command line shows it

    @property
    def state(self) -> RunState:
        if self.ended_at is not None:
            return RunState.ENDED
        return RunState.WAITING if self.started_at is None else RunState.RUNNING

    @property
    def interrupted(self) -> bool:
        return self.error_code == RunInterruptedError.code


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    outcome: RunOutcome
    reasons: tuple[Reason, ...] = ()
    error_code: str | None = None
    error: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHistory:
    """What the scheduler needs to know of a job and kind."""

    open_run: JobRun | None
    latest: JobRun | None  # that has ended
    handled_until: datetime | None  # the latest due time, not in the future, that got a run


class JobRuns:
    def __init__(self, database: Database, run_locks: RunLocks, clock: Clock) -> None:
        self._database = database
        self._run_locks = run_locks
        self._clock = clock

    def add(
        self,
        job: str,
        kind: RunKind,
        cause: RunCause,
        *,
        due_at: datetime | None = None,
        repeats: JobRun | None = None,
    ) -> JobRun:
        """Let a run wait. Raises JobRunningError: one of this job and kind is open."""
        now = self._clock.now()
        run_id = new_run_id(now)
        try:
            with self._database.writing() as connection:
                connection.execute(
                    "INSERT INTO job_runs (run_id, job, kind, cause, first_run, attempt, due_at,"
                    " queued_at, reasons, result) VALUES (?, ?, ?, ?, ?, ?, ?, ?, '[]', '{}')",
                    (
                        run_id,
                        job,
                        kind,
                        cause,
                        repeats.first_run if repeats else run_id,
                        repeats.attempt + 1 if repeats else 1,
                        due_at.isoformat() if due_at else None,
                        now.isoformat(),
                    ),
                )
        except sqlite3.IntegrityError as error:
            raise JobRunningError(f"a {kind} run of job {job!r} waits or goes on") from error
        return self.get(run_id)

    def begin(self, run_id: RunId) -> bool:
        """It goes on from now; False: it is no longer waiting. The caller holds its run lock."""
        with self._database.writing() as connection:
            return bool(
                connection.execute(
                    "UPDATE job_runs SET started_at = ?"
                    " WHERE run_id = ? AND started_at IS NULL AND ended_at IS NULL",
                    (self._clock.now().isoformat(), run_id),
                ).rowcount
            )

    def end(self, run_id: RunId, end: RunEnd) -> bool:
        """Write down how it ended; False: it had ended, and nothing is changed."""
        with self._database.writing() as connection:
            return _end(connection, run_id, end, self._clock.now(), "ended_at IS NULL")

    def cancel_waiting(self, run_id: RunId) -> bool:
        """End a run that has not begun as cancelled; False: it has."""
        end = RunEnd(outcome=RunOutcome.CANCELLED, error_code="run.cancelled")
        with self._database.writing() as connection:
            return _end(connection, run_id, end, self._clock.now(), "started_at IS NULL")

    def close_interrupted(self) -> list[JobRun]:
        """End runs that went on in a process that is gone; return them."""
        going_on = self.open_runs(RunState.RUNNING)
        alive = self._run_locks.alive() if going_on else frozenset()
        dead = [run for run in going_on if run.run_id not in alive]
        end = RunEnd(
            outcome=RunOutcome.FAILED,
            error_code=RunInterruptedError.code,
            error="the process of this run was killed",
        )
        return [run for run in dead if self.end(run.run_id, end)]

    def get(self, run_id: str) -> JobRun:
        """Return it with its result. Raises RunNotFoundError."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {_FULL} FROM job_runs WHERE run_id = ?", (run_id,)
            ).fetchone()
        if row is None:
            raise RunNotFoundError(f"no run {run_id!r}")
        return _run(row)

    def open_runs(self, state: RunState | None = None) -> list[JobRun]:
        """Return those that wait or go on, the one added first first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_SHORT} FROM job_runs WHERE ended_at IS NULL ORDER BY seq"
            ).fetchall()
        runs = [_run(row) for row in rows]
        return runs if state is None else [run for run in runs if run.state is state]

    def last_good_end(self, job: str, kind: RunKind) -> datetime | None:
        """When a run last ended as success or warning."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT ended_at FROM job_runs WHERE job = ? AND kind = ?"
                " AND outcome IN ('success', 'warning') ORDER BY seq DESC LIMIT 1",
                (job, kind),
            ).fetchone()
        return datetime.fromisoformat(row[0]) if row else None

    def ended_between(self, since: datetime, until: datetime, *, limit: int) -> list[JobRun]:
        """Return `limit` that ended after `since` and up to `until`, with results: the newest, but
        those that failed before those with warnings before all others. Oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_FULL} FROM (SELECT * FROM job_runs WHERE ended_at > ? AND ended_at <= ?"
                " ORDER BY outcome = 'failed' DESC, outcome = 'warning' DESC, ended_at DESC"
                " LIMIT ?) ORDER BY ended_at",
                (since.isoformat(), until.isoformat(), limit),
            ).fetchall()
        return [_run(row) for row in rows]

    def outcomes_between(self, since: datetime, until: datetime) -> Counter[RunOutcome]:
        """How many ended so after `since` and up to `until`."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT outcome, count(*) FROM job_runs WHERE ended_at > ? AND ended_at <= ?"
                " GROUP BY outcome",
                (since.isoformat(), until.isoformat()),
            ).fetchall()
        return Counter({RunOutcome(outcome): count for outcome, count in rows})

    def list(
        self, *, job: str | None = None, before: int | None = None, limit: int = 100
    ) -> list[JobRun]:
        """Return the newest `limit` runs, oldest first, without results.

        `before`: only those with a smaller `seq`, for the next page.
        """
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_SHORT} FROM job_runs WHERE (?1 IS NULL OR job = ?1)"
                " AND (?2 IS NULL OR seq < ?2) ORDER BY seq DESC LIMIT ?3",
                (job, before, limit),
            ).fetchall()
        return [_run(row) for row in reversed(rows)]

    def history(self, job: str, kind: RunKind) -> JobHistory:
        which = (job, kind)
        with self._database.reading() as connection:
            newest = connection.execute(
                f"SELECT {_SHORT} FROM job_runs WHERE job = ? AND kind = ? AND ended_at IS NULL",
                which,
            ).fetchone()
            ended = connection.execute(
                f"SELECT {_SHORT} FROM job_runs WHERE job = ? AND kind = ?"
                " AND ended_at IS NOT NULL ORDER BY seq DESC LIMIT 1",
                which,
            ).fetchone()
            handled = connection.execute(
                "SELECT max(due_at) FROM job_runs WHERE job = ? AND kind = ? AND due_at <= ?",
                (*which, self._clock.now().isoformat()),
            ).fetchone()[0]
        return JobHistory(
            open_run=_run(newest) if newest else None,
            latest=_run(ended) if ended else None,
            handled_until=datetime.fromisoformat(handled) if handled else None,
        )

    def outcome_before(self, run: JobRun) -> RunOutcome | None:
        """How the job's run before ended, of this kind, cancelled ones left out; None: no run."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT outcome FROM job_runs WHERE job = ? AND kind = ? AND seq < ?"
                " AND outcome IN ('success', 'warning', 'failed') ORDER BY seq DESC LIMIT 1",
                (run.job, run.kind, run.seq),
            ).fetchone()
        return RunOutcome(row[0]) if row else None

    def newest_result(self, job: str, kind: RunKind, key: str) -> Any:
        """Return what the newest ended run that has `key` in its result says there, else None."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT result -> ? FROM job_runs WHERE job = ? AND kind = ?"
                " AND ended_at IS NOT NULL AND json_type(result, ?) IS NOT NULL"
                " ORDER BY seq DESC LIMIT 1",
                (f"$.{key}", job, kind, f"$.{key}"),
            ).fetchone()
        return json.loads(row[0]) if row else None


def _end(
    connection: sqlite3.Connection, run_id: RunId, end: RunEnd, now: datetime, when: str
) -> bool:
    done = connection.execute(
        "UPDATE job_runs SET ended_at = ?, outcome = ?, error_code = ?, error = ?, reasons = ?,"
        f" result = ? WHERE run_id = ? AND ended_at IS NULL AND {when}",
        (
            now.isoformat(),
            end.outcome,
            end.error_code,
            end.error,
            json.dumps([reason.as_json() for reason in end.reasons]),
            json.dumps(end.result, default=str),
            run_id,
        ),
    )
    return bool(done.rowcount)


def _run(row: Sequence[Any]) -> JobRun:
    (
        seq,
        run_id,
        job,
        kind,
        cause,
        first_run,
        attempt,
        due_at,
        queued_at,
        started_at,
        ended_at,
        outcome,
        error_code,
        error,
        reasons,
        *result,
    ) = row
    return JobRun(
        seq=seq,
        run_id=RunId(run_id),
        job=job,
        kind=RunKind(kind),
        cause=RunCause(cause),
        first_run=RunId(first_run),
        attempt=attempt,
        due_at=datetime.fromisoformat(due_at) if due_at else None,
        queued_at=datetime.fromisoformat(queued_at),
        started_at=datetime.fromisoformat(started_at) if started_at else None,
        ended_at=datetime.fromisoformat(ended_at) if ended_at else None,
        outcome=RunOutcome(outcome) if outcome else None,
        error_code=error_code,
        error=error,
        reasons=tuple(
            Reason.relayed(r["code"], r["text"], r["next_step"], warning=r["warning"])
            for r in json.loads(reasons)
        ),
        result=json.loads(result[0]) if result else {},
    )
