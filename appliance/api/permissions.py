"""Who may do what: the one table that routes, UI and tests go by."""

from __future__ import annotations

from enum import StrEnum

from appliance.catalog.accounts import Role


class Permission(StrEnum):
    VIEW = "view"
    """See inventory, points, runs, reports."""

    RUN = "run"
    """Start and cancel backups, verifications and upkeep."""

    RESTORE = "restore"
    """Restore, and start, finalise and discard instant recoveries."""

    CONFIGURE = "configure"
    """Change hosts, jobs, policies and settings."""

    DELETE = "delete"
    """Forget recovery points."""

    ADMINISTER = "administer"
    """Accounts, tokens, audit log."""


_EVERYTHING = frozenset(Permission)
OF_ROLE: dict[Role, frozenset[Permission]] = {
    Role.ADMINISTRATOR: _EVERYTHING,
    Role.OPERATOR: frozenset(
        {Permission.VIEW, Permission.RUN, Permission.RESTORE, Permission.CONFIGURE}
    ),
    Role.RESTORE_ONLY: frozenset({Permission.VIEW, Permission.RESTORE}),
    Role.READ_ONLY: frozenset({Permission.VIEW}),
}


def may(role: Role, permission: Permission) -> bool:
    return permission in OF_ROLE[role]
