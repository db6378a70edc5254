"""What the commands of `instant` share: the room of its jobs, and how a session is shown."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.cli.daemon_words import daemon_words
from appliance.cli.options import home_path, open_repository
from appliance.cli.output import ExitCode, note

if TYPE_CHECKING:
    from appliance.base.reasons import Reason
    from appliance.catalog.catalog import Catalog
    from appliance.exports.datastore.session import SessionRecord
    from appliance.jobs.recovery_room import RecoveryRoom
    from appliance.targets.recovery import RecoveryTarget


@dataclass(frozen=True, slots=True)
class Opened:
    catalog: Catalog
    room: RecoveryRoom
    target: RecoveryTarget


@contextmanager
def opened_room(args: argparse.Namespace, host: str | None) -> Iterator[Opened]:
    """The repository is opened first: a wrong passphrase must not start a daemon."""
    from appliance.service.daemon_start import ensure_daemon
    from appliance.service.home import Home
    from appliance.service.recoveries import open_recovery_target, recovery_room

    home = home_path(args)

    def step_ends(name: str, seconds: float) -> None:
        if not args.quiet:
            note(f"{name}: {seconds:.2f} s")

    with (
        Home(home).open_catalog() as catalog,
        open_repository(args) as repository,
        open_recovery_target(catalog, home, host) as target,
    ):
        if ensure_daemon(home, daemon_words(args), args.cancel):
            note(f"started `holdfast serve`; it logs to {home / 'daemon.log'}")
        yield Opened(catalog, recovery_room(home, catalog, repository, step_ends), target)


def host_of(args: argparse.Namespace) -> str | None:
    """The host of the session that is named, or the one that was asked for.

    Raises SessionNotFoundError.
    """
    from appliance.exports.datastore.session import SessionStore
    from appliance.service.recovery_server import sessions_folder

    session_id = getattr(args, "session", None) or getattr(args, "resume", None)
    if session_id:
        return SessionStore(sessions_folder(home_path(args))).get(session_id).host
    return str(args.host) if args.host else None


def session_document(record: SessionRecord) -> dict[str, Any]:
    return {
        "session_id": record.session_id,
        "point_id": record.point_id,
        "vm": record.vm,
        "vm_key": record.vm_key,
        "host": record.host,
        "phase": record.phase,
        "presentation": record.presentation,
        "datastore": record.datastore,
        "created_at": record.created_at,
        "steps": [{"name": step.name, "seconds": round(step.seconds, 3)} for step in record.steps],
        "seconds": round(sum(step.seconds for step in record.steps), 3),
        "stuck": record.stuck,
    }


def exit_code(reasons: Sequence[Reason]) -> ExitCode:
    return ExitCode.WARNING if any(reason.warning for reason in reasons) else ExitCode.SUCCESS
