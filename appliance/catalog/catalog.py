"""The catalog as one thing to open: all tables of one state folder.

Thread model: as `db.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from appliance.base.clock import Clock, SystemClock
from appliance.base.ids import RunId, new_run_id
from appliance.catalog.accounts import Accounts
from appliance.catalog.appliance_id import ApplianceId, appliance_id
from appliance.catalog.approvals import Approvals
from appliance.catalog.audit import AuditLog
from appliance.catalog.db import Database
from appliance.catalog.history import History
from appliance.catalog.hosts import Hosts
from appliance.catalog.intents import IntentJournal
from appliance.catalog.job_runs import JobRuns
from appliance.catalog.jobs import Jobs
from appliance.catalog.logins import ApiTokens, Sessions
from appliance.catalog.notifications import Notifications
from appliance.catalog.points import Points
from appliance.catalog.run_locks import RunLocks
from appliance.catalog.runs import Runs
from appliance.catalog.sealing import SecretSealer
from appliance.catalog.verifications import Verifications


def recovery_run(session_id: str) -> RunId:
    """The run of a recovery session: it is alive until the session's folder is gone."""
    return RunId(f"instant-{session_id}")


def recovery_runs(sessions: Path) -> frozenset[RunId]:
    """Raises OSError."""
    if not sessions.is_dir():
        return frozenset()
    return frozenset(
        recovery_run(path.name) for path in sessions.iterdir() if (path / "session.json").exists()
    )


class Catalog:
    """Hosts, intents, runs, jobs, proofs, accounts, logins and audit log, over one database."""

    def __init__(self, folder: Path, database: Database, clock: Clock) -> None:
        self._database = database
        self.clock = clock
        self.run_locks = RunLocks(folder / "runs", lambda: recovery_runs(folder / "sessions"))
        sealer = SecretSealer(folder / "secrets.key")
        self.hosts = Hosts(database, sealer)
        self.accounts = Accounts(database, sealer, clock)
        self.web_sessions = Sessions(database, clock)
        self.api_tokens = ApiTokens(database, clock)
        self.audit = AuditLog(database, clock)
        self.intents = IntentJournal(database, self.run_locks, clock)
        self.runs = Runs(database, self.run_locks, clock)
        self.verifications = Verifications(database)
        self.jobs = Jobs(database, clock)
        self.job_runs = JobRuns(database, self.run_locks, clock)
        self.notifications = Notifications(database, sealer, clock)
        self.points = Points(database)
        self.approvals = Approvals(database, clock)
        self.history = History(database, clock)
        self.appliance_id: ApplianceId = appliance_id(folder / "appliance-id")

    @classmethod
    def open(cls, folder: Path, *, clock: Clock | None = None) -> Self:
        """Open the catalog in an existing folder, making it if need be. Raises: as `Database.open`,
        `appliance_id`."""
        database = Database.open(folder / "catalog.sqlite")
        try:
            return cls(folder, database, clock or SystemClock())
        except BaseException:
            database.close()
            raise

    def new_run_id(self) -> RunId:
        return new_run_id(self.clock.now())

    def copy_to(self, path: Path) -> None:
        """A consistent copy, made while others go on working. Raises: as `Database.open`."""
        self._database.copy_to(path)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
