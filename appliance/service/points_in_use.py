"""Recovery points that recovery sessions of this appliance run from; they are not forgotten.

A session reads every block that its guest has not written from its point. While the daemon runs it
pins the point's chunks; while it does not, only the point itself keeps them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from appliance.base.errors import UsageError
from appliance.base.ids import RecoveryPointId
from appliance.exports.datastore.session import SessionStore
from appliance.service.recovery_server import sessions_folder


class PointInUseError(UsageError):
    """A recovery session runs from this point; finalise or discard the session first."""

    code = "point.in-use"


def points_in_use(home: Path) -> dict[RecoveryPointId, str]:
    """The session of each point that one runs from.

    Raises: SessionDamagedError: it is not known which point a session runs from; StorageError.
    """
    store = SessionStore(sessions_folder(home))
    records = store.list()
    for error in store.damaged():
        raise error
    return {RecoveryPointId(record.point_id): record.session_id for record in records}


def refuse_if_in_use(home: Path, points: Iterable[str]) -> None:
    """Raises PointInUseError, and as `points_in_use`."""
    used = points_in_use(home)
    for point in map(RecoveryPointId, points):
        if point in used:
            raise PointInUseError(f"session {used[point]} runs from {point}")
