"""What the repository's recovery points are, in short: for lists, pages, metrics of many points.

A copy: the repository is the truth, and `service/point_book.py` keeps this up with it. Nothing is
restored or removed by what stands here alone. Triggers keep a row per VM and per day in step, so
that a dashboard over a million points reads a few thousand rows.

Thread model: as `db.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from appliance.catalog.db import Database

_COLUMNS = (
    "point_id, vm, vm_key, created_at, consistency, parent, source, disk_count, size_bytes,"
    " stored_bytes"
)
_IDS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRow:
    """`vm_key`: of `sources/vm_identity.py`; None: of no hypervisor."""

    point_id: str
    vm: str
    vm_key: str | None
    created_at: datetime
    consistency: str
    parent: str | None
    source: str
    disk_count: int
    size_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VmPoints:
    """The points under one name; `newest` is the newest by time."""

    vm: str
    vm_key: str | None  # of the newest
    point_count: int
    stored_bytes: int
    newest_id: str
    newest_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PointTotals:
    point_count: int
    vm_count: int
    stored_bytes: int


class Points:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, rows: Iterable[PointRow]) -> None:
        """One transaction; those that are known stay as they are."""
        values = [
            (
                *(row.point_id, row.vm, row.vm_key, row.created_at.isoformat(), row.consistency),
                *(row.parent, row.source, row.disk_count, row.size_bytes, row.stored_bytes),
            )
            for row in rows
        ]
        with self._database.writing() as connection:
            connection.executemany(
                f"INSERT OR IGNORE INTO points ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )

    def remove(self, point_ids: Iterable[str]) -> None:
        """One transaction; unknown ones are no error."""
        with self._database.writing() as connection:
            connection.executemany(
                "DELETE FROM points WHERE point_id = ?", [(each,) for each in point_ids]
            )

    def ids(self) -> Iterator[str]:
        """All, in order, in bounded memory; what is added meanwhile may be left out."""
        after = ""
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(
                    "SELECT point_id FROM points WHERE point_id > ? ORDER BY point_id LIMIT ?",
                    (after, _IDS_AT_ONCE),
                ).fetchall()
            if not rows:
                return
            after = rows[-1][0]
            yield from (row[0] for row in rows)

    def page(
        self, *, vm: str | None = None, before: str | None = None, limit: int = 100
    ) -> list[PointRow]:
        """The newest first, by id, which begins with the time; `before`: the id to go on from."""
        where, words = [], []
        if vm is not None:
            where, words = ["vm = ?"], [vm]
        if before is not None:
            where, words = [*where, "point_id < ?"], [*words, before]
        clause = f" WHERE {' AND '.join(where)}" if where else ""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM points{clause} ORDER BY point_id DESC LIMIT ?",
                (*words, limit),
            ).fetchall()
        return [_row(row) for row in rows]

    def vms(self) -> list[VmPoints]:
        """All names that points are kept under, in order."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT vm, vm_key, point_count, stored_bytes, newest_id, newest_at"
                " FROM point_vms ORDER BY vm"
            ).fetchall()
        return [
            VmPoints(
                vm=vm,
                vm_key=vm_key,
                point_count=point_count,
                stored_bytes=stored_bytes,
                newest_id=newest_id,
                newest_at=datetime.fromisoformat(newest_at),
            )
            for vm, vm_key, point_count, stored_bytes, newest_id, newest_at in rows
        ]

    def totals(self) -> PointTotals:
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT total(point_count), count(*), total(stored_bytes) FROM point_vms"
            ).fetchone()
        return PointTotals(point_count=int(row[0]), vm_count=row[1], stored_bytes=int(row[2]))

    def stored_by_day(self, first: date) -> dict[date, int]:
        """Bytes that the points of each day (UTC) stored, from `first` on; days without are left
        out."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT day, stored_bytes FROM point_days WHERE day >= ? ORDER BY day",
                (first.isoformat(),),
            ).fetchall()
        return {date.fromisoformat(day): stored for day, stored in rows}

    def of_days(self, vm: str, first: date) -> dict[date, int]:
        """How many points of a VM each day (UTC) has, from `first` on."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT substr(created_at, 1, 10), count(*) FROM points"
                " WHERE vm = ? AND created_at >= ? GROUP BY 1",
                (vm, first.isoformat()),
            ).fetchall()
        return {date.fromisoformat(day): count for day, count in rows}


def _row(row: Sequence[Any]) -> PointRow:
    point_id, vm, vm_key, created_at, consistency, parent, source, disks, size, stored = row
    return PointRow(
        point_id=point_id,
        vm=vm,
        vm_key=vm_key,
        created_at=datetime.fromisoformat(created_at),
        consistency=consistency,
        parent=parent,
        source=source,
        disk_count=disks,
        size_bytes=size,
        stored_bytes=stored,
    )
