"""Deleting a repository by hand: who has to want it, and what must not run meanwhile.

    ask -> another administrator approves -> within a week, `repo delete` again carries it out

Unlike other requests it is not carried out by the approval: the daemon, where that may happen, has
the repository open. No daemon may serve the state folder while a repository is deleted, and no
recovery session of it may run from one of its points.

Thread model: functions; they block.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from appliance.catalog.approvals import (
    EXPIRES_DAYS,
    Approval,
    ApprovalKind,
    ApprovalState,
)
from appliance.catalog.catalog import Catalog
from appliance.repository.removal import remove_repository, repository_facts
from appliance.service.daemon_lock import daemon_lock
from appliance.service.deletion import announced_request
from appliance.service.points_in_use import refuse_if_in_use

_LOOKED_AT = 1000


def approved_deletion(catalog: Catalog, repository_id: str) -> Approval | None:
    """The approval that still counts; None: there is none, or it is too old."""
    since = catalog.clock.now() - timedelta(days=EXPIRES_DAYS)
    for found in catalog.approvals.list(limit=_LOOKED_AT):
        if (
            found.kind is ApprovalKind.DELETE_REPOSITORY
            and found.state is ApprovalState.APPROVED
            and found.objects == (repository_id,)
            and found.decided_at is not None
            and found.decided_at > since
        ):
            return found
    return None


def ask_for_deletion(catalog: Catalog, repository_id: str, *, by: str) -> Approval:
    """Another administrator decides; people are told."""
    return announced_request(catalog, ApprovalKind.DELETE_REPOSITORY, (repository_id,), by, "")


def delete_repository(home: Path, path: Path, repository_id: str) -> tuple[str, ...]:
    """Delete it now; return the names of what else lies there and stays.

    Raises: DaemonRunningError, PointInUseError, SessionDamagedError; as `remove_repository`.
    """
    with ExitStack() as stack:
        if home.is_dir():
            stack.enter_context(daemon_lock(home))
            refuse_if_in_use(home, sorted(repository_facts(path).point_ids))
        return remove_repository(path, repository_id)
