"""Whether there is room for what guests of recovery sessions write; each write goes to our disk.

Below `WARN_SHARE` of the disk every start and every list says so, below the reserve nothing is
started; the server itself then refuses writes (`SessionTree`), which stops the guests.
Thread model: functions.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from appliance.base.errors import StorageError, StorageFullError
from appliance.base.reasons import Reason
from appliance.base.units import format_size

WARN_SHARE = 0.20
URGENT_SHARE = 0.10


class NoRoomForSessionsError(StorageFullError):
    """The disk of the recovery sessions is full up to its reserve. Finalise or discard sessions, or
    give the state folder more room; running guests are stopped until there is some."""

    code = "session.no-room"


def space_reasons(folder: Path) -> tuple[Reason, ...]:
    """What to say about the room left. Raises StorageError."""
    total_bytes, free_bytes = _space(folder)
    share = free_bytes / total_bytes if total_bytes else 0.0
    left = f"{format_size(free_bytes)} ({share:.0%}) are left where guests' writes are kept"
    if share < URGENT_SHARE:
        return (
            Reason(
                "session.space-urgent",
                left,
                "finalise or discard sessions now: guests stop when it is full",
            ),
        )
    if share < WARN_SHARE:
        return (
            Reason("session.space-low", left, "finalise or discard sessions, or enlarge the disk"),
        )
    return ()


def refuse_without_room(folder: Path, reserve_bytes: int) -> None:
    """Raises NoRoomForSessionsError, StorageError."""
    _, free_bytes = _space(folder)
    if free_bytes <= reserve_bytes:
        raise NoRoomForSessionsError(
            f"{folder}: {format_size(free_bytes)} are left, "
            f"{format_size(reserve_bytes)} are kept free"
        )


def _space(folder: Path) -> tuple[int, int]:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}") from error
    return usage.total, usage.free
