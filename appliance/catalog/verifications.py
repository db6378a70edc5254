"""What verifications measured, per VM: verdict, time to recover, age of the point. The trend.

The proof itself is the certificate; these rows are for looking back, and are made from the
certificates when they are lost (`jobs/certified_run.py`).

Thread model: as `db.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from appliance.catalog.db import Database

_COLUMNS = (
    "run_id, vm, point_id, started_at, verdict, recovery_s, rto_s, point_age_s, rpo_s, certificate,"
    " place, reasons"
)
_NOT_BOOTED = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationRecord:
    run_id: str
    vm: str
    point_id: str
    started_at: datetime
    verdict: str  # passed, failed, skipped
    recovery_s: float | None  # None: it did not come up, or was not booted
    rto_s: float | None  # as the policy asked at that time
    point_age_s: float
    rpo_s: float | None
    certificate: int | None  # its sequence number; None: none was issued
    place: str | None = None  # sandbox, hypervisor; None: not booted
    reasons: tuple[str, ...] = ()  # codes


class Verifications:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, records: Sequence[VerificationRecord]) -> None:
        """Write down a run; in one transaction. The same again replaces it."""
        with self._database.writing() as connection:
            connection.executemany(
                f"INSERT OR REPLACE INTO verifications ({_COLUMNS})"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(record.run_id, record.vm, record.point_id),
                        *(record.started_at.isoformat(), record.verdict),
                        *(record.recovery_s, record.rto_s, record.point_age_s, record.rpo_s),
                        *(record.certificate, record.place or _NOT_BOOTED),
                        " ".join(record.reasons),
                    )
                    for record in records
                ],
            )

    def empty(self) -> bool:
        with self._database.reading() as connection:
            return connection.execute("SELECT 1 FROM verifications LIMIT 1").fetchone() is None

    def newest(self, *, limit: int) -> list[VerificationRecord]:
        """The newest of each VM and place, by name; of the first `limit` VMs that have points."""
        columns = ", ".join(f"v.{name.strip()}" for name in _COLUMNS.split(","))
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {columns} FROM (SELECT vm FROM point_vms ORDER BY vm LIMIT ?) AS p"
                " JOIN verifications AS v ON v.vm = p.vm AND v.run_id ="
                " (SELECT max(run_id) FROM verifications WHERE vm = p.vm)"
                " GROUP BY v.vm, v.place ORDER BY v.vm, v.place",
                (limit,),
            ).fetchall()
        return [_record(row) for row in rows]

    def trend(self, vm: str, *, limit: int = 100) -> list[VerificationRecord]:
        """Return the newest `limit` of one VM, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM verifications WHERE vm = ? ORDER BY run_id DESC LIMIT ?",
                (vm, limit),
            ).fetchall()
        return [_record(row) for row in reversed(rows)]


def _record(row: Sequence[Any]) -> VerificationRecord:
    run_id, vm, point_id, started_at, verdict, recovery_s, rto_s, age_s, rpo_s, *rest = row
    certificate, place, reasons = rest
    return VerificationRecord(
        run_id=run_id,
        vm=vm,
        point_id=point_id,
        started_at=datetime.fromisoformat(started_at),
        verdict=verdict,
        recovery_s=recovery_s,
        rto_s=rto_s,
        point_age_s=age_s,
        rpo_s=rpo_s,
        certificate=certificate,
        place=place or None,
        reasons=tuple(reasons.split()),
    )
