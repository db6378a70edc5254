"""The runs of this appliance: what was tried, when, and how it ended.

A run ends in exactly one of success, warning, failed, cancelled. One whose process is gone without
an end was interrupted; `close_interrupted` says so at the next start.

Thread model: as `db.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from appliance.base.clock import Clock
from appliance.base.ids import RunId
from appliance.catalog.db import Database
from appliance.catalog.errors import RunInterruptedError, RunNotFoundError
from appliance.catalog.run_locks import RunLocks

_COLUMNS = "run_id, kind, vm, host, started_at, ended_at, outcome, error_code, result"
_Row = tuple[str, str, str, str | None, str, str | None, str | None, str | None, str]


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


class Runs:
    def __init__(self, database: Database, run_locks: RunLocks, clock: Clock) -> None:
        self._database = database
        self._run_locks = run_locks
        self._clock = clock

    def begin(self, run_id: RunId, *, kind: str, vm: str, host: str | None = None) -> None:
        """Write down that it started. The run must hold its lock (`RunLocks.hold`)."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO runs (run_id, kind, vm, host, started_at, result)"
                " VALUES (?, ?, ?, ?, ?, '{}')",
                (run_id, kind, vm, host, self._clock.now().isoformat()),
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

    def list(self, *, vm: str | None = None, limit: int = 1000) -> list[RunRecord]:
        """Return the newest `limit` runs, of one VM or all, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM runs WHERE ?1 IS NULL OR vm = ?1"
                " ORDER BY run_id DESC LIMIT ?2",
                (vm, limit),
            ).fetchall()
        return [_run(row) for row in reversed(rows)]


def _run(row: _Row) -> RunRecord:
    run_id, kind, vm, host, started_at, ended_at, outcome, error_code, result = row
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
    )
