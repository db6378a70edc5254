"""Forgetting recovery points at the console: at once, or as a request where deletion is guarded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from appliance.base.errors import UsageError
from appliance.cli.administrator import administrator
from appliance.cli.options import home_path

if TYPE_CHECKING:
    from appliance.base.ids import RecoveryPointId
    from appliance.repository.repository import Repository
    from appliance.service.deletion import Asked


def forget_points(
    args: argparse.Namespace, repository: Repository, points: Sequence[RecoveryPointId]
) -> Asked:
    """A repository without state folder has no guard.

    Raises: UsageError: guarded, and no administrator is named; as `Deletion.forget`.
    """
    from appliance.catalog.approvals import Guard
    from appliance.service.console_deletion import console_deletion
    from appliance.service.deletion import Asked
    from appliance.service.home import Home
    from appliance.service.points_in_use import refuse_if_in_use

    home = home_path(args)
    if not (home / "catalog.sqlite").exists():
        refuse_if_in_use(home, points)
        for point in points:
            repository.points.forget(point)
        return Asked(approval=None)
    with Home(home).open_catalog() as catalog:
        by = "console"
        if catalog.approvals.guard() is not Guard.NOTHING:
            if not args.account:
                raise UsageError(
                    "forgetting points needs a second administrator's approval here; "
                    "say who asks: --account"
                )
            by = administrator(args, catalog)
        asked = console_deletion(catalog, repository, home).forget(points, by=by)
        catalog.audit.append(
            actor=by,
            address="console",
            action="forget points" if asked.approval is None else "ask to forget points",
            object=" ".join(points),
        )
        return asked
