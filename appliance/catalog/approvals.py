"""What one administrator asked for and another has to approve; and whether that is demanded.

    waiting -> approved -> done
            -> refused | expired

Whether deletion is guarded is a setting of its own; it can be raised by one administrator and
lowered only by two. Who asked never decides; the database refuses that too.

Thread model: as `db.py`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from appliance.base.clock import Clock
from appliance.base.errors import UsageError
from appliance.catalog.db import Database
from appliance.catalog.errors import ApprovalDecidedError, ApprovalNotFoundError, OwnRequestError

EXPIRES_DAYS = 7
OBJECTS_MAX = 10_000
_REASON_CHARS_MAX = 500
_GUARD = "deletion guard"
_COLUMNS = (
    "id, kind, objects, reason, requested_by, requested_at, expires_at, state, decided_by,"
    " decided_at"
)


class Guard(StrEnum):
    NOTHING = "nothing"
    SECOND_ADMINISTRATOR = "second-administrator"


class ApprovalKind(StrEnum):
    FORGET_POINTS = "forget-points"
    LOWER_GUARD = "lower-guard"
    DELETE_REPOSITORY = "delete-repository"  # carried out by who asked, not by the approval


class ApprovalState(StrEnum):
    WAITING = "waiting"
    APPROVED = "approved"  # and not yet, or not wholly, carried out
    DONE = "done"
    REFUSED = "refused"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    id: int
    kind: ApprovalKind
    objects: tuple[str, ...]  # such as the ids of points
    reason: str  # for people
    requested_by: str  # an account
    requested_at: datetime
    expires_at: datetime
    state: ApprovalState
    decided_by: str | None
    decided_at: datetime | None


class Approvals:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def guard(self) -> Guard:
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT value FROM settings WHERE name = ?", (_GUARD,)
            ).fetchone()
        return Guard(row[0]) if row else Guard.NOTHING

    def set_guard(self, guard: Guard) -> None:
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (_GUARD, guard)
            )

    def ask(
        self, kind: ApprovalKind, objects: Sequence[str], *, by: str, reason: str = ""
    ) -> Approval:
        """Ask for it; the same once more is the request that waits. Raises UsageError: too much."""
        if len(objects) > OBJECTS_MAX:
            raise UsageError(f"{len(objects)} things at once; at most {OBJECTS_MAX}")
        now, document = self._clock.now(), json.dumps(sorted(objects))
        with self._database.writing() as connection:
            self._expire(connection)
            known = connection.execute(
                f"SELECT {_COLUMNS} FROM approvals WHERE state = 'waiting' AND kind = ?"
                " AND objects = ? AND requested_by = ?",
                (kind, document, by),
            ).fetchone()
            if known is not None:
                return _approval(known)
            row = connection.execute(
                "INSERT INTO approvals (kind, objects, reason, requested_by, requested_at,"
                f" expires_at, state) VALUES (?, ?, ?, ?, ?, ?, 'waiting') RETURNING {_COLUMNS}",
                (
                    *(kind, document, reason[:_REASON_CHARS_MAX], by, now.isoformat()),
                    (now + timedelta(days=EXPIRES_DAYS)).isoformat(),
                ),
            ).fetchone()
        return _approval(row)

    def get(self, number: int) -> Approval:
        """Raises ApprovalNotFoundError."""
        with self._database.reading() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM approvals WHERE id = ?", (number,)
            ).fetchone()
        if row is None:
            raise ApprovalNotFoundError(f"no request {number}")
        return _approval(row)

    def decide(self, number: int, state: ApprovalState, *, by: str) -> Approval:
        """Approve or refuse. Durable on return, and nobody else decides it again.

        Raises: ApprovalNotFoundError; ApprovalDecidedError: it is decided or has expired;
        OwnRequestError: who asked cannot approve; refusing it takes it back.
        """
        assert state in (ApprovalState.APPROVED, ApprovalState.REFUSED)
        with self._database.writing() as connection:
            self._expire(connection)
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM approvals WHERE id = ?", (number,)
            ).fetchone()
            if row is None:
                raise ApprovalNotFoundError(f"no request {number}")
            found = _approval(row)
            if state is ApprovalState.APPROVED and found.requested_by == by:
                raise OwnRequestError(f"{by} asked for this; another administrator approves it")
            if found.state is ApprovalState.WAITING:
                connection.execute(
                    "UPDATE approvals SET state = ?, decided_by = ?, decided_at = ? WHERE id = ?",
                    (state, by, self._clock.now().isoformat(), number),
                )
        if found.state is not ApprovalState.WAITING:  # raised here: that it expired is kept
            raise ApprovalDecidedError(f"request {number} is {found.state}")
        return self.get(number)

    def approved(self) -> list[Approval]:
        """What is still to be carried out, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM approvals WHERE state = 'approved' ORDER BY id"
            ).fetchall()
        return [_approval(row) for row in rows]

    def done(self, number: int) -> Approval:
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE approvals SET state = 'done' WHERE id = ? AND state = 'approved'", (number,)
            )
        return self.get(number)

    def list(self, *, limit: int = 100) -> list[Approval]:
        """The newest first."""
        with self._database.writing() as connection:
            self._expire(connection)
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM approvals ORDER BY id DESC LIMIT ?", (limit,)
            ).fetchall()
        return [_approval(row) for row in rows]

    def _expire(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "UPDATE approvals SET state = 'expired' WHERE state = 'waiting' AND expires_at <= ?",
            (self._clock.now().isoformat(),),
        )


def _approval(row: Sequence[Any]) -> Approval:
    (
        number,
        kind,
        objects,
        reason,
        requested_by,
        requested_at,
        expires_at,
        state,
        decided_by,
        decided_at,
    ) = row
    return Approval(
        id=number,
        kind=ApprovalKind(kind),
        objects=tuple(json.loads(objects)),
        reason=reason,
        requested_by=requested_by,
        requested_at=datetime.fromisoformat(requested_at),
        expires_at=datetime.fromisoformat(expires_at),
        state=ApprovalState(state),
        decided_by=decided_by,
        decided_at=datetime.fromisoformat(decided_at) if decided_at else None,
    )
