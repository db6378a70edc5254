"""Forgetting what was long ago: old runs, verifications, logins; so the catalog stays small.

Kept, however old: the newest `KEPT_OF_JOB` runs of each job and kind (the scheduler and the next
run read them), the newest run and verification of each VM, what has not ended, and what nobody was
told of yet. The audit log is never trimmed. Deleting goes in small transactions: nobody waits long.

Thread model: as `db.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from appliance.base.clock import Clock
from appliance.catalog.db import Database
from appliance.catalog.logins import LONGEST

DEFAULT_DAYS = 365
KEPT_OF_JOB = 100
_AT_ONCE = 2000

_JOB_RUNS = """
DELETE FROM job_runs WHERE seq IN (
  SELECT seq FROM job_runs AS old
  WHERE ended_at < ?1 AND told = 1
    AND seq <= (SELECT seq FROM job_runs WHERE job = old.job AND kind = old.kind
                ORDER BY seq DESC LIMIT 1 OFFSET ?2)
  LIMIT ?3)
"""

_VM_RUNS = """
DELETE FROM runs WHERE run_id IN (
  SELECT run_id FROM runs AS old
  WHERE run_id < ?3 AND ended_at < ?1
    AND run_id < (SELECT max(run_id) FROM runs WHERE vm = old.vm)
    AND (job_run IS NULL OR job_run NOT IN (SELECT run_id FROM job_runs))
  LIMIT ?2)
"""

_VERIFICATIONS = """
DELETE FROM verifications WHERE (run_id, vm, point_id, place) IN (
  SELECT run_id, vm, point_id, place FROM verifications AS old
  WHERE run_id < ?3 AND started_at < ?1
    AND run_id < (SELECT max(run_id) FROM verifications WHERE vm = old.vm)
  LIMIT ?2)
"""

_LOGINS = "DELETE FROM web_sessions WHERE created_at < ?1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed:
    job_runs: int
    vm_runs: int
    verifications: int
    logins: int

    @property
    def any(self) -> bool:
        return bool(self.job_runs or self.vm_runs or self.verifications or self.logins)


class History:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def trim(self, days: int = DEFAULT_DAYS) -> Trimmed:
        """Forget what ended more than `days` ago. Killed half way, the next one goes on."""
        now = self._clock.now()
        oldest = now - timedelta(days=days)
        before, first_id = oldest.isoformat(), f"{oldest:%Y%m%dT%H%M%SZ}"  # ids begin so
        job_runs = self._delete(_JOB_RUNS, (before, KEPT_OF_JOB, _AT_ONCE))
        return Trimmed(
            job_runs=job_runs,
            vm_runs=self._delete(_VM_RUNS, (before, _AT_ONCE, first_id)),
            verifications=self._delete(_VERIFICATIONS, (before, _AT_ONCE, first_id)),
            logins=self._once(_LOGINS, ((now - LONGEST).isoformat(),)),
        )

    def _delete(self, statement: str, values: tuple[object, ...]) -> int:
        total = 0
        while deleted := self._once(statement, values):
            total += deleted
            if deleted < _AT_ONCE:
                break
        return total

    def _once(self, statement: str, values: tuple[object, ...]) -> int:
        with self._database.writing() as connection:
            return connection.execute(statement, values).rowcount
