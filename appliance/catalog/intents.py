"""The journal of what we make on hypervisors: recorded before the call, closed after removal.

    record (durable) -> the call, with our marker -> complete (moref) -> … -> removal -> close

Killed anywhere, the journal names everything that may be left: an intent without a moref says what
to look for (`target_moref`, `name`, `detail`) and that it may not have come to be. Closing what was
never made is right. Whoever removes debris works through `abandoned` while holding
`RunLocks.cleaning`; removal must be idempotent, because it may be killed before `close`.

A lost catalog loses the journal; then the markers on the hypervisor still say what is ours.

Thread model: as `db.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NewType

from appliance.base.clock import Clock
from appliance.base.ids import RunId
from appliance.catalog.db import Database
from appliance.catalog.errors import HostNotFoundError
from appliance.catalog.run_locks import RunLocks

IntentId = NewType("IntentId", int)
DETAIL_LIMIT_CHARS = 65536
_COLUMNS = "id, kind, host, run_id, target_moref, name, detail, recorded_at, made_moref"
_Row = tuple[int, str, str, str, str, str, str, str, str | None]


class IntentKind(StrEnum):
    SNAPSHOT = "snapshot"
    HOT_ADDED_DISK = "hot-added-disk"
    LEASE = "lease"
    VM = "vm"
    FILE = "file"
    DATASTORE = "datastore"
    PORT_GROUP = "port-group"
    REFERENCE_POINT = "reference-point"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    id: IntentId
    kind: IntentKind
    host: str  # a registered host
    run_id: RunId
    target_moref: str  # what it is made on: VM, host, folder
    name: str  # what it is called there, or the file it is about
    detail: str  # what else its maker needs to find and remove it; opaque here
    recorded_at: datetime
    made_moref: str | None  # None: not known to have come to be


class IntentJournal:
    def __init__(self, database: Database, run_locks: RunLocks, clock: Clock) -> None:
        self._database = database
        self._run_locks = run_locks
        self._clock = clock

    def record(
        self,
        kind: IntentKind,
        *,
        host: str,
        run_id: RunId,
        target_moref: str,
        name: str,
        detail: str = "",
    ) -> IntentId:
        """Write down what is about to be made; durable on return. The run must hold its lock.

        Raises: HostNotFoundError, and as `Database`: then nothing may be made.
        """
        if len(detail) > DETAIL_LIMIT_CHARS:
            raise ValueError(f"a detail of {len(detail)} characters")
        now = self._clock.now().isoformat()
        with self._database.writing() as connection:
            if not connection.execute("SELECT 1 FROM hosts WHERE name = ?", (host,)).fetchone():
                raise HostNotFoundError(host)
            cursor = connection.execute(
                "INSERT INTO intents (kind, host, run_id, target_moref, name, detail, recorded_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (kind, host, run_id, target_moref, name, detail, now),
            )
            assert cursor.lastrowid is not None
            return IntentId(cursor.lastrowid)

    def complete(self, intent_id: IntentId, moref: str) -> None:
        """It came to be and is called `moref`; durable on return."""
        with self._database.writing() as connection:
            connection.execute("UPDATE intents SET made_moref = ? WHERE id = ?", (moref, intent_id))

    def close(self, intent_id: IntentId) -> None:
        """It is removed, or was never made. Idempotent."""
        with self._database.writing() as connection:
            connection.execute("DELETE FROM intents WHERE id = ?", (intent_id,))

    def open_intents(self, *, host: str | None = None, run_id: RunId | None = None) -> list[Intent]:
        """Return what is not closed, the newest first: the order in which to remove it."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM intents"
                " WHERE (?1 IS NULL OR host = ?1) AND (?2 IS NULL OR run_id = ?2)"
                " ORDER BY id DESC",
                (host, run_id),
            ).fetchall()
        return [_intent(row) for row in rows]

    def abandoned(self, *, host: str | None = None) -> list[Intent]:
        """Return open intents of runs that are no longer alive, the newest first.

        Which runs are alive is asked after the intents are read (a run that begins meanwhile is
        not mistaken for a dead one), and the intents are read again after that (one that ended
        meanwhile had closed its own). Raises: as `RunLocks.alive`, `Database`.
        """
        runs = {intent.run_id for intent in self.open_intents(host=host)}
        dead = runs - self._run_locks.alive()
        return [intent for intent in self.open_intents(host=host) if intent.run_id in dead]


def _intent(row: _Row) -> Intent:
    number, kind, host, run_id, target_moref, name, detail, recorded_at, made_moref = row
    return Intent(
        id=IntentId(number),
        kind=IntentKind(kind),
        host=host,
        run_id=RunId(run_id),
        target_moref=target_moref,
        name=name,
        detail=detail,
        recorded_at=datetime.fromisoformat(recorded_at),
        made_moref=made_moref,
    )
