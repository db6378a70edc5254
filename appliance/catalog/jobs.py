"""Saved jobs and policies.

`since` of a job is the moment from which its schedule counts: it was created or enabled then, or
its schedule changed. What would have been due before it is not caught up.

Thread model: as `db.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from appliance.base.clock import Clock
from appliance.base.errors import UsageError
from appliance.catalog.db import Database
from appliance.catalog.errors import (
    CatalogDamagedError,
    JobNotFoundError,
    PolicyInUseError,
    PolicyNotFoundError,
)
from appliance.catalog.job import JOB, Job, RetentionJob
from appliance.catalog.policy import MANUAL, Policy
from appliance.catalog.validation import describe

_SELECT = (
    "SELECT jobs.document, jobs.since, policies.document FROM jobs"
    " LEFT JOIN policies ON jobs.policy = policies.name"
)
_Row = tuple[str, str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedJob:
    job: Job
    policy: Policy  # `MANUAL` where the job names none
    since: datetime

    @property
    def name(self) -> str:
        return self.job.name


class _NotKeptError(Exception):
    """Undoes a transaction."""


class Jobs:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def policies(self) -> list[Policy]:
        """Return all, by name."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT document FROM policies ORDER BY name").fetchall()
        return [_policy(row[0]) for row in rows]

    def list(self) -> list[SavedJob]:
        """Return all, by name. Raises CatalogDamagedError."""
        with self._database.reading() as connection:
            rows = connection.execute(f"{_SELECT} ORDER BY jobs.name").fetchall()
        return [_saved(row) for row in rows]

    def get(self, name: str) -> SavedJob:
        """Raises JobNotFoundError."""
        with self._database.reading() as connection:
            return _get(connection, name)

    def save(self, policies: Sequence[Policy], jobs: Sequence[Job]) -> None:
        """Add or replace all of them, or none. Saving what is saved already changes nothing.

        Raises: PolicyNotFoundError: a job names a policy that is neither given nor saved;
            UsageError: a retention job without anything to go by.
        """
        with self._database.writing() as connection:
            self._save(connection, policies, jobs)

    def check(self, policies: Sequence[Policy], jobs: Sequence[Job]) -> None:
        """Raise what `save` would raise, and change nothing."""
        with suppress(_NotKeptError), self._database.writing() as connection:
            self._save(connection, policies, jobs)
            raise _NotKeptError

    def _save(
        self, connection: sqlite3.Connection, policies: Sequence[Policy], jobs: Sequence[Job]
    ) -> None:
        before = {saved.name: saved for saved in _all(connection)}
        for policy in policies:
            connection.execute(
                "INSERT INTO policies VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET document = excluded.document",
                (policy.name, policy.model_dump_json()),
            )
        for job in jobs:
            self._put(connection, job)
        for saved in _all(connection):
            self._settle(connection, before.get(saved.name), saved)

    def enable(self, name: str) -> None:
        """Its schedule counts from now on. Idempotent. Raises JobNotFoundError."""
        self._switch(name, enabled=True)

    def disable(self, name: str) -> None:
        """A run that goes on is not ended. Idempotent. Raises JobNotFoundError."""
        self._switch(name, enabled=False)

    def remove(self, name: str) -> None:
        """Its runs stay on record, its recovery points stay. Raises JobNotFoundError."""
        with self._database.writing() as connection:
            if not connection.execute("DELETE FROM jobs WHERE name = ?", (name,)).rowcount:
                raise JobNotFoundError(name)

    def remove_policy(self, name: str) -> None:
        """Raises PolicyNotFoundError, PolicyInUseError."""
        try:
            with self._database.writing() as connection:
                if not connection.execute("DELETE FROM policies WHERE name = ?", (name,)).rowcount:
                    raise PolicyNotFoundError(name)
        except sqlite3.IntegrityError as error:
            raise PolicyInUseError(f"jobs go by policy {name!r}") from error

    def count_from(self, name: str, since: datetime) -> None:
        """Set the moment from which the schedule counts: for a clock that was wrong."""
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE jobs SET since = ? WHERE name = ?", (since.isoformat(), name)
            )

    def _switch(self, name: str, *, enabled: bool) -> None:
        with self._database.writing() as connection:
            saved = _get(connection, name)
            if saved.job.enabled != enabled:
                self._put(connection, saved.job.model_copy(update={"enabled": enabled}))
                self._settle(connection, saved, _get(connection, name))

    def _put(self, connection: sqlite3.Connection, job: Job) -> None:
        try:
            connection.execute(
                "INSERT INTO jobs (name, kind, policy, enabled, document, since)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
                " kind = excluded.kind, policy = excluded.policy, enabled = excluded.enabled,"
                " document = excluded.document",
                (
                    job.name,
                    job.kind,
                    job.policy,
                    int(job.enabled),
                    job.model_dump_json(),
                    self._clock.now().isoformat(),
                ),
            )
        except sqlite3.IntegrityError as error:
            raise PolicyNotFoundError(job.policy or "", job.name) from error

    def _settle(
        self, connection: sqlite3.Connection, before: SavedJob | None, now: SavedJob
    ) -> None:
        """Check what a job and its policy make together, and let a new schedule count from now."""
        if isinstance(now.job, RetentionJob) and now.policy.retention.empty:
            raise UsageError(
                f"job {now.name!r} removes recovery points: give it a policy with a retention"
            )
        if before is not None and (
            (before.policy.timing, before.job.enabled, before.job.kind)
            != (now.policy.timing, now.job.enabled, now.job.kind)
        ):
            connection.execute(
                "UPDATE jobs SET since = ? WHERE name = ?",
                (self._clock.now().isoformat(), now.name),
            )


def _all(connection: sqlite3.Connection) -> list[SavedJob]:
    return [_saved(row) for row in connection.execute(_SELECT).fetchall()]


def _get(connection: sqlite3.Connection, name: str) -> SavedJob:
    row = connection.execute(f"{_SELECT} WHERE jobs.name = ?", (name,)).fetchone()
    if row is None:
        raise JobNotFoundError(name)
    return _saved(row)


def _saved(row: _Row) -> SavedJob:
    document, since, policy = row
    try:
        job = JOB.validate_json(document)
    except ValidationError as error:
        raise CatalogDamagedError(f"a saved job cannot be read: {describe(error)}") from error
    return SavedJob(
        job=job,
        policy=_policy(policy) if policy is not None else MANUAL,
        since=datetime.fromisoformat(since),
    )


def _policy(document: str) -> Policy:
    try:
        return Policy.model_validate_json(document)
    except ValidationError as error:
        raise CatalogDamagedError(f"a saved policy cannot be read: {describe(error)}") from error
