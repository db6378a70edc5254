"""`holdfast instant`: VMs that run from the repository, until they are moved or dropped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.run_context import Progress, RunContext
from appliance.cli import instant_local
from appliance.cli.instant_room import exit_code, host_of, opened_room, session_document
from appliance.cli.instant_start import add_start
from appliance.cli.options import home_path
from appliance.cli.output import ExitCode, note, note_reasons, show, table

if TYPE_CHECKING:
    from appliance.exports.datastore.session import SessionRecord
    from appliance.jobs.recovery_end import EndResult
    from appliance.jobs.recovery_room import RecoveryRoom
    from appliance.service.recoveries import LostSession
    from appliance.targets.recovery import MoveRequest


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("instant", help="run VMs from the repository within seconds")
    verbs = group.add_subparsers(metavar="VERB", required=True)
    add_start(verbs.add_parser("start", parents=[common], help="make a VM of a point and run it"))
    listing = verbs.add_parser("list", parents=[common], help="sessions, and what is stuck")
    listing.set_defaults(run=run_list)
    finalise = verbs.add_parser(
        "finalise", parents=[common], help="move the VM to production storage and end the session"
    )
    finalise.add_argument("session", metavar="S")
    finalise.add_argument(
        "--datastore", default="", metavar="D", help="vSphere datastore; folder of a Hyper-V host"
    )
    finalise.add_argument(
        "--allow-downtime",
        action="store_true",
        help="shut the VM down for the move if it cannot move while it runs",
    )
    finalise.set_defaults(run=run_finalise)
    discard = verbs.add_parser(
        "discard", parents=[common], help="take the VM away and drop what its guest wrote"
    )
    discard.add_argument("session", metavar="S")
    discard.set_defaults(run=run_discard)


# list


def run_list(args: argparse.Namespace) -> int:
    from appliance.exports.datastore.session import SessionStore
    from appliance.jobs.session_space import space_reasons
    from appliance.service.daemon_client import DaemonClient, DaemonUnreachableError
    from appliance.service.home import Home
    from appliance.service.recoveries import lost_sessions
    from appliance.service.recovery_server import sessions_folder

    home = home_path(args)
    folder = sessions_folder(home)
    with Home(home).open_catalog() as catalog:
        lost = lost_sessions(catalog)
    store = SessionStore(folder)
    records, damaged = store.list(), store.damaged()
    served: dict[str, Any] | None
    try:
        served = {each["session_id"]: each for each in DaemonClient(home).sessions()}
    except DaemonUnreachableError:
        served = None
        if records:
            note("no daemon serves these sessions: `holdfast serve` starts it")
    reasons = space_reasons(folder) if records else ()
    note_reasons(reasons)
    sessions = [session_document(record) | _serving(record, served) for record in records]
    document = {
        "daemon": served is not None,
        "sessions": sessions,
        "lost": [{"session_id": each.session_id, "host": each.host} for each in lost],
        "damaged": [str(error) for error in damaged],
        "reasons": [reason.as_json() for reason in reasons],
    }
    for error in damaged:
        note(f"[{error.code}] {error}")
    show(args, document, lambda: _list_text(sessions, lost))
    stuck = any(each["stuck"] or each["failure"] for each in sessions)
    unserved = served is None and bool(records)
    return ExitCode.WARNING if lost or damaged or stuck or unserved else ExitCode.SUCCESS


def _serving(record: SessionRecord, served: dict[str, Any] | None) -> dict[str, Any]:
    known = (served or {}).get(record.session_id, {})
    return {"served": known.get("served", False), "failure": known.get("failure")}


def _list_text(sessions: Sequence[dict[str, Any]], lost: Sequence[LostSession]) -> str:
    rows = [
        (
            each["session_id"],
            each["vm"],
            each["phase"],
            "yes" if each["served"] else "no",
            each["host"] or "local",
            each["point_id"],
            each["stuck"] or each["failure"] or "",
        )
        for each in sessions
    ]
    rows += [
        (each.session_id, "?", "lost", "no", each.host, "", "its folder is gone: discard it")
        for each in lost
    ]
    header = ("SESSION", "VM", "PHASE", "SERVED", "HOST", "POINT", "STUCK")
    return table(rows, header) if rows else "no sessions"


# finalise and discard


def run_finalise(args: argparse.Namespace) -> int:
    from appliance.jobs.recovery_end import finalise

    if instant_local.is_local(args, args.session):
        raise UsageError("a session that runs here has no production storage to move to")
    context = RunContext(args.cancel, Progress())
    with opened_room(args, host_of(args)) as opened:
        request = _move_request(args, opened.room)
        result = finalise(
            opened.room, opened.target, args.session, request, context, _moved_percent(args)
        )
    return _show_end(args, result, "moved to production storage")


def _move_request(args: argparse.Namespace, room: RecoveryRoom) -> MoveRequest:
    from appliance.targets.recovery import MoveRequest

    record = room.store.get(args.session)
    placement = room.repository.points.find(record.point_id).hardware.get("placement")
    datastores = placement.get("datastores") if isinstance(placement, dict) else None
    names = [each.get("name") for each in datastores or () if isinstance(each, dict)]
    return MoveRequest(
        datastore=args.datastore,
        preferred=next((name for name in names if isinstance(name, str)), ""),
        need_bytes=0,  # disks arrive thin, so the host alone can tell
        allow_downtime=args.allow_downtime,
    )


def _moved_percent(args: argparse.Namespace) -> Any:
    def show_percent(percent: int) -> None:
        if not args.quiet and percent % 10 == 0:
            note(f"moving: {percent}%")

    return show_percent


def run_discard(args: argparse.Namespace) -> int:
    from appliance.exports.datastore.session import SessionNotFoundError
    from appliance.jobs.recovery_end import discard_session

    if instant_local.is_local(args, args.session):
        return instant_local.run_discard(args)
    context = RunContext(args.cancel, Progress())
    try:
        host = host_of(args)
    except SessionNotFoundError:
        return _discard_lost(args)
    with opened_room(args, host) as opened:
        result = discard_session(opened.room, opened.target, args.session, context)
    return _show_end(args, result, "discarded")


def _discard_lost(args: argparse.Namespace) -> int:
    """A session whose folder is gone: the journal says what may be left on the host."""
    from appliance.exports.datastore.session import SessionNotFoundError
    from appliance.service.home import Home
    from appliance.service.recoveries import clear_lost, lost_sessions, open_recovery_target

    with Home(home_path(args)).open_catalog() as catalog:
        lost = next((one for one in lost_sessions(catalog) if one.session_id == args.session), None)
        if lost is None:
            raise SessionNotFoundError(f"no recovery session {args.session!r}")
        with open_recovery_target(catalog, home_path(args), lost.host) as target:
            reasons = clear_lost(catalog, target, lost)
    note_reasons(reasons)
    document = {"session_id": args.session, "reasons": [reason.as_json() for reason in reasons]}
    show(args, document, lambda: f"session {args.session}: what was left on {lost.host} is removed")
    return exit_code(reasons)


def _show_end(args: argparse.Namespace, result: EndResult, what: str) -> int:
    note_reasons(result.reasons)
    document = session_document(result.record) | {
        "reasons": [reason.as_json() for reason in result.reasons]
    }
    record = result.record
    show(args, document, lambda: f"session {record.session_id}: {record.vm} {what}")
    return exit_code(result.reasons)
