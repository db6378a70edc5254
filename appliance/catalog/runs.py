"""The runs of this appliance: what was tried, when, and how it ended.

A run ends in exactly one of success, warning, failed, cancelled. One whose process is gone without
an end was interrupted; `close_interrupted` says so at the next start.

Thread model: as `db.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from appliance.base.clock import Clock
from appliance.base.ids import RunId
from appliance.catalog.db import Database
from appliance.catalog.errors import RunInterruptedError, RunNotFoundError
from appliance.catalog.run_locks import RunLocks

_COLUMNS = "run_id, kind, vm, host, started_at, ended_at, outcome, error_code, result, job_run"
_Row = tuple[str, str, str, str | None, str, str | None, str | None, str | None, str, str | None]


class RunOutcome(StrEnum):
    SUCCESS = "success"
    WARNING = "warning"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    run_id: RunId
    kind: str  # such as "backup"
    vm: str  # the name that its recovery points are kept under
    host: str | None
    started_at: datetime
    ended_at: datetime | None  # None: running, or killed
    outcome: RunOutcome | None
    error_code: str | None
    result: dict[str, Any]  # what the command prints for --json; opaque here
    job_run: RunId | None = None  # the run of a job that it is part of


class Runs:
    """The runs for single VMs. Those that `within` a job's run begin are part of it."""

    def __init__(
        self,
        database: Database,
        run_locks: RunLocks,
        clock: Clock,
        *,
        job_run: RunId | None = None,
    ) -> None:
        self._database = database
        self._run_locks = run_locks
        self._clock = clock
        self._job_run = job_run

    def within(self, job_run: RunId) -> Runs:
        return Runs(self._database, self._run_locks, self._clock, job_run=job_run)

    def begin(self, run_id: RunId, *, kind: str, vm: str, host: str | None = None) -> None:
        """Write down that it started. The run must hold its lock (`RunLocks.hold`)."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO runs (run_id, kind, vm, host, started_at, result, job_run)"
                " VALUES (?, ?, ?, ?, ?, '{}', ?)",
                (run_id, kind, vm, host, self._clock.now().isoformat(), self._job_run),
            )

    def end(
        self,
        run_id: RunId,
        outcome: RunOutcome,
        *,
        result: dict[str, Any] | None = None,
        error_code: str | None = None,
    ) -> None:
        """Write down how it ended; a second end changes nothing."""
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE runs SET ended_at = ?, outcome = ?, error_code = ?, result = ?"
                " WHERE run_id = ? AND ended_at IS NULL",
                (
                    self._clock.now().isoformat(),
                    outcome,
                    error_code,
                    json.dumps(result or {}, default=str),
                    run_id,
                ),
            )

    def get(self, run_id: RunId) -> RunRecord:
        """Raises RunNotFoundError."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM runs WHERE run_id = ?", (run_id,)
            ).fetchone()
        if row is None:
            raise RunNotFoundError(f"no run {run_id!r}")
        return _run(row)

    def close_interrupted(self) -> list[RunId]:
        """End runs whose process is gone as failed, `run.interrupted`; return their ids."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT run_id FROM runs WHERE ended_at IS NULL").fetchall()
        alive = self._run_locks.alive()  # asked after: a run that begins meanwhile is not in rows
        dead = [RunId(row[0]) for row in rows if row[0] not in alive]
        for run_id in dead:
            self.end(run_id, RunOutcome.FAILED, error_code=RunInterruptedError.code)
        return dead

    def remember(self, points: Iterable[tuple[RunId, str, datetime, datetime]]) -> int:
        """Write down backups that the repository tells of: run, VM, begin and end of each.

        All or none; return how many were not known.
        """
        with self._database.writing() as connection:
            return connection.executemany(
                "INSERT OR IGNORE INTO runs (run_id, kind, vm, started_at, ended_at, outcome,"
                " result) VALUES (?, 'backup', ?, ?, ?, 'success', '{}')",
                (
                    (run_id, vm, started_at.isoformat(), ended_at.isoformat())
                    for run_id, vm, started_at, ended_at in points
                ),
            ).rowcount

    def backed_up_in(self, first_run: RunId) -> frozenset[str]:
        """The VMs that got a point in a job's run or in a repetition of it."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT DISTINCT vm FROM runs JOIN job_runs ON runs.job_run = job_runs.run_id"
                " WHERE job_runs.first_run = ? AND runs.outcome IN ('success', 'warning')",
                (first_run,),
            ).fetchall()
        return frozenset(row[0] for row in rows)

    def empty(self) -> bool:
        """Nothing was ever tried, or the catalog that knew is lost."""
        with self._database.reading() as connection:
            return connection.execute("SELECT 1 FROM runs LIMIT 1").fetchone() is None

    def list(
        self,
        *,
        vm: str | None = None,
        job_run: RunId | None = None,
        kinds: Sequence[str] = (),
        limit: int = 1000,
    ) -> list[RunRecord]:
        """Return the newest `limit` runs, of one VM, one job's run, some kinds or all, oldest
        first."""
        wanted = f" AND kind IN ({', '.join('?' * len(kinds))})" if kinds else ""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM runs"
                " WHERE (? IS NULL OR vm = ?) AND (? IS NULL OR job_run = ?)"
                f"{wanted} ORDER BY run_id DESC LIMIT ?",
                (vm, vm, job_run, job_run, *kinds, limit),
            ).fetchall()
        return [_run(row) for row in reversed(rows)]


def _run(row: _Row) -> RunRecord:
    run_id, kind, vm, host, started_at, ended_at, outcome, error_code, result, job_run = row
    return RunRecord(
        run_id=RunId(run_id),
        kind=kind,
        vm=vm,
        host=host,
        started_at=datetime.fromisoformat(started_at),
        ended_at=datetime.fromisoformat(ended_at) if ended_at else None,
        outcome=RunOutcome(outcome) if outcome else None,
        error_code=error_code,
        result=json.loads(result),
        job_run=RunId(job_run) if job_run else None,
    )
