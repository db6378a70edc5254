"""The audit log: who changed what, when, from where, and whether it was allowed.

Append-only: the database refuses to change or remove an entry, and each carries a hash over itself
and the one before, so that a change by other means shows. What is written holds no secret.

Thread model: as `db.py`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime

from appliance.base.clock import Clock
from appliance.catalog.db import Database

_COLUMNS = "id, at, actor, address, action, object, outcome, hash"
_TEXT_CHARS_MAX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    id: int
    at: datetime
    actor: str  # account, "token NAME", "setup" or "-"
    address: str
    action: str  # such as "POST /api/v1/hosts"
    object: str  # what it was about
    outcome: str  # "ok", or the code of the error


class AuditLog:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def append(
        self, *, actor: str, address: str, action: str, object: str = "", outcome: str = "ok"
    ) -> None:
        """Durable on return."""
        words = [self._clock.now().isoformat()]
        words += [text[:_TEXT_CHARS_MAX] for text in (actor, address, action, object, outcome)]
        with self._database.writing() as connection:
            last = connection.execute("SELECT hash FROM audit ORDER BY id DESC LIMIT 1").fetchone()
            connection.execute(
                "INSERT INTO audit (at, actor, address, action, object, outcome, hash)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*words, _chained(last[0] if last else b"", words)),
            )

    def page(self, *, before: int | None = None, limit: int = 100) -> list[AuditEntry]:
        """Newest first; `before`: the id to go on from."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?",
                (before if before is not None else 1 << 62, limit),
            ).fetchall()
        return [
            AuditEntry(
                id=row[0],
                at=datetime.fromisoformat(row[1]),
                actor=row[2],
                address=row[3],
                action=row[4],
                object=row[5],
                outcome=row[6],
            )
            for row in rows
        ]

    def first_broken(self) -> int | None:
        """The id of the first entry that does not follow from the one before; None: all do."""
        previous = b""
        with self._database.reading() as connection:
            for row in connection.execute(f"SELECT {_COLUMNS} FROM audit ORDER BY id"):
                if _chained(previous, list(row[1:7])) != row[7]:
                    return int(row[0])
                previous = row[7]
        return None


def _chained(previous: bytes, words: list[str]) -> bytes:
    return hashlib.sha256(previous + json.dumps(words).encode()).digest()
