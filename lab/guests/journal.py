"""The numbered journal of the tiny guest, read from the disk image alone.

The guest appends records to a partition of its own, fsyncs each, and only then announces
`ACK n` on its serial line. Record n is `RECORD_BYTES` long at (n - 1) * RECORD_BYTES and holds the
number n as `COPIES` lines of 15 digits, so a record that is torn, stale or misplaced shows.
An acknowledged number that is missing here is a broken durability promise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from appliance.base.units import MIB

JOURNAL_OFFSET = 248 * MIB
JOURNAL_BYTES = 8 * MIB
RECORD_BYTES = 512
COPIES = RECORD_BYTES // 16
_EMPTY = bytes(RECORD_BYTES)


class JournalError(Exception):
    """The journal has a gap or a record that is not what the guest wrote."""


class Readable(Protocol):
    def read_at(self, offset: int, length: int) -> bytes: ...


def read_journal(disk: Path | Readable) -> list[int]:
    """Return the numbers on the disk, which are 1 to n in order.

    Raises:
        JournalError: a record is damaged, misplaced, or follows an empty one.
    """
    raw = _journal_bytes(disk)
    numbers: list[int] = []
    for place in range(JOURNAL_BYTES // RECORD_BYTES):
        record = raw[place * RECORD_BYTES : (place + 1) * RECORD_BYTES]
        if record == _EMPTY:
            continue
        if record != record_bytes(place + 1):
            raise JournalError(f"record {place + 1} is damaged: {record[:32]!r}")
        if place != len(numbers):
            raise JournalError(f"record {len(numbers) + 1} is missing, {place + 1} is there")
        numbers.append(place + 1)
    return numbers


def record_bytes(number: int) -> bytes:
    return b"%015d\n" % number * COPIES


def _journal_bytes(disk: Path | Readable) -> bytes:
    if not isinstance(disk, Path):
        return disk.read_at(JOURNAL_OFFSET, JOURNAL_BYTES)
    with disk.open("rb") as file:
        file.seek(JOURNAL_OFFSET)
        return file.read(JOURNAL_BYTES)
