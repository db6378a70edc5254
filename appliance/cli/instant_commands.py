"""`holdfast instant`: VMs that run from the repository, until they are moved or dropped."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.run_context import Progress, RunContext
from appliance.base.units import format_duration
from appliance.cli import instant_local
from appliance.cli.daemon_words import daemon_words
from appliance.cli.options import home_path, open_repository
from appliance.cli.output import ExitCode, note, note_reasons, show, table

if TYPE_CHECKING:
    from appliance.base.reasons import Reason
    from appliance.catalog.catalog import Catalog
    from appliance.exports.datastore.session import SessionRecord
    from appliance.jobs.instant_recovery import StartResult
    from appliance.jobs.recovery_end import EndResult
    from appliance.jobs.recovery_room import RecoveryRoom
    from appliance.service.recoveries import LostSession
    from appliance.targets.recovery import MoveRequest, RecoveryRequest, RecoveryTarget

_KEEP = ("keep", "new")
_ISOLATED = "isolated"


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("instant", help="run VMs from the repository within seconds")
    verbs = group.add_subparsers(metavar="VERB", required=True)
    _add_start(verbs.add_parser("start", parents=[common], help="make a VM of a point and run it"))
    listing = verbs.add_parser("list", parents=[common], help="sessions, and what is stuck")
    listing.set_defaults(run=run_list)
    finalise = verbs.add_parser(
        "finalise", parents=[common], help="move the VM to production storage and end the session"
    )
    finalise.add_argument("session", metavar="S")
    finalise.add_argument("--datastore", default="", metavar="D", help="vSphere datastore")
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


def _add_start(start: argparse.ArgumentParser) -> None:
    start.add_argument("point", nargs="?", metavar="P")
    start.add_argument("--resume", metavar="S", help="go on with a start that did not end")
    start.add_argument("--host", metavar="H", help="registered host (default: the only one)")
    start.add_argument(
        "--target",
        choices=("host", "local"),
        default="host",
        help="local: boot it here, in the sandbox, from NBD (default: host)",
    )
    start.add_argument("--name", default="", metavar="N", help="of the VM")
    start.add_argument("--on", default="", metavar="ESX", help="name of the ESXi host")
    start.add_argument("--folder", default="", metavar="F", help="inventory path of the folder")
    start.add_argument(
        "--pool", default="", metavar="P", help="inventory path of the resource pool"
    )
    start.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="connect what was on network OLD to NEW; OLD=isolated, or isolated alone for all: to "
        "a network that leads nowhere; may be repeated",
    )
    start.add_argument(
        "--disconnect",
        action="append",
        default=[],
        metavar="OLD",
        help="leave what was on network OLD unconnected; may be repeated",
    )
    default = "default: keep, unless the original is still there"
    start.add_argument("--mac", choices=_KEEP, help=f"hardware addresses ({default})")
    start.add_argument("--uuid", choices=_KEEP, help=f"uuids of the VM and its disks ({default})")
    start.add_argument("--power-on", action="store_true", help="start the VM, await its heartbeat")
    start.add_argument(
        "--heartbeat-timeout", type=float, default=600.0, metavar="SECONDS", help="(default: 600)"
    )
    start.add_argument(
        "--address", default="", metavar="A", help="where hosts reach this machine's NFS server"
    )
    start.add_argument(
        "--mount-on",
        choices=("host", "cluster"),
        default="host",
        help="which hosts get the datastore (default: the one that runs the VM)",
    )
    start.add_argument(
        "--reserve", default="1G", metavar="SIZE", help="space kept free where guests' writes go"
    )
    instant_local.add_options(start)
    start.set_defaults(run=run_start)


# start


def run_start(args: argparse.Namespace) -> int:
    from appliance.base.units import parse_size
    from appliance.jobs.instant_recovery import StartOptions, resume, start

    if (args.point is None) == (args.resume is None):
        raise UsageError("name a recovery point, or a session with --resume")
    if instant_local.wanted(args):
        return instant_local.run_start(args)
    options = StartOptions(
        power_on=args.power_on,
        heartbeat_within_s=args.heartbeat_timeout,
        reserve_bytes=parse_size(args.reserve),
    )
    context = RunContext(args.cancel, Progress())
    with _opened(args, _host_of(args), daemon=True) as opened:
        if args.resume:
            result = resume(opened.room, opened.target, args.resume, options, context)
        else:
            manifest = opened.room.repository.points.find(args.point)
            request = _request(args, opened.room, manifest)
            result = start(opened.room, opened.target, manifest, request, options, context)
    note_reasons(result.reasons)
    show(args, _started(result), lambda: _started_text(result))
    return _exit_code(result.reasons)


def _request(args: argparse.Namespace, room: RecoveryRoom, manifest: Any) -> RecoveryRequest:
    from appliance.jobs.instant_recovery import wanted_disks
    from appliance.targets.contract import Keep, WantedVmPlace
    from appliance.targets.recovery import Breadth, RecoveryRequest

    networks, isolated, isolate_all = _networks(args.network)
    return RecoveryRequest(
        session_id=room.store.new_id(),
        name=args.name,
        hardware=manifest.hardware,
        disks=wanted_disks(manifest),
        place=WantedVmPlace(folder=args.folder, pool=args.pool, machine=args.on),
        networks=networks,
        isolated=isolated,
        isolate_all=isolate_all,
        unconnected=frozenset(args.disconnect),
        mac=Keep(args.mac or "auto"),
        identity=Keep(args.uuid or "auto"),
        address=args.address,
        breadth=Breadth(args.mount_on),
    )


def _networks(words: Sequence[str]) -> tuple[tuple[tuple[str, str], ...], frozenset[str], bool]:
    """Pairs, what is isolated, whether all is. Raises UsageError."""
    pairs: list[tuple[str, str]] = []
    isolated: set[str] = set()
    for word in words:
        old, equals, new = word.partition("=")
        if word == _ISOLATED:
            continue
        if not old or not equals or not new:
            raise UsageError(f"--network takes OLD=NEW or isolated, not {word!r}")
        if new == _ISOLATED:
            isolated.add(old)
        else:
            pairs.append((old, new))
    isolate_all = _ISOLATED in words
    if isolate_all and (pairs or isolated):
        raise UsageError("--network isolated is for all adapters; it stands alone")
    return tuple(pairs), frozenset(isolated), isolate_all


def _started(result: StartResult) -> dict[str, Any]:
    life = result.life
    return _session(result.record) | {
        "guest": None
        if life is None
        else {"heartbeat": life.life, "host_name": life.host_name, "address": life.address},
        "reasons": [reason.as_json() for reason in result.reasons],
    }


def _started_text(result: StartResult) -> str:
    record = result.record
    lines = [f"session {record.session_id}: {record.vm} is {record.phase} on {record.host}"]
    lines += [f"  {step.name:<10} {format_duration(step.seconds)}" for step in record.steps]
    if result.life is not None:
        lines.append(f"  guest {result.life.host_name} {result.life.address}: {result.life.life}")
    return "\n".join(lines)


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
    records = SessionStore(folder).list()
    served: dict[str, Any] | None
    try:
        served = {each["session_id"]: each for each in DaemonClient(home).sessions()}
    except DaemonUnreachableError:
        served = None
        if records:
            note("no daemon serves these sessions: `holdfast serve` starts it")
    reasons = space_reasons(folder) if records else ()
    note_reasons(reasons)
    sessions = [_session(record) | _serving(record, served) for record in records]
    document = {
        "daemon": served is not None,
        "sessions": sessions,
        "lost": [{"session_id": each.session_id, "host": each.host} for each in lost],
        "reasons": [reason.as_json() for reason in reasons],
    }
    show(args, document, lambda: _list_text(sessions, lost))
    stuck = any(each["stuck"] or each["failure"] for each in sessions)
    return ExitCode.WARNING if lost or stuck or (served is None and records) else ExitCode.SUCCESS


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
    with _opened(args, _host_of(args), daemon=True) as opened:
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
        host = _host_of(args)
    except SessionNotFoundError:
        return _discard_lost(args)
    with _opened(args, host, daemon=True) as opened:
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
        with open_recovery_target(catalog, lost.host) as target:
            reasons = clear_lost(catalog, target, lost)
    note_reasons(reasons)
    document = {"session_id": args.session, "reasons": [reason.as_json() for reason in reasons]}
    show(args, document, lambda: f"session {args.session}: what was left on {lost.host} is removed")
    return _exit_code(reasons)


def _show_end(args: argparse.Namespace, result: EndResult, what: str) -> int:
    note_reasons(result.reasons)
    document = _session(result.record) | {
        "reasons": [reason.as_json() for reason in result.reasons]
    }
    record = result.record
    show(args, document, lambda: f"session {record.session_id}: {record.vm} {what}")
    return _exit_code(result.reasons)


# shared


@dataclass(frozen=True, slots=True)
class _Opened:
    catalog: Catalog
    room: RecoveryRoom
    target: RecoveryTarget


@contextmanager
def _opened(args: argparse.Namespace, host: str | None, *, daemon: bool) -> Iterator[_Opened]:
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
        open_recovery_target(catalog, host) as target,
    ):
        if daemon and ensure_daemon(home, daemon_words(args), args.cancel):
            note(f"started `holdfast serve`; it logs to {home / 'daemon.log'}")
        yield _Opened(catalog, recovery_room(home, catalog, repository, step_ends), target)


def _host_of(args: argparse.Namespace) -> str | None:
    """The host of the session that is named, or the one that was asked for.

    Raises SessionNotFoundError.
    """
    from appliance.exports.datastore.session import SessionStore
    from appliance.service.recovery_server import sessions_folder

    session_id = getattr(args, "session", None) or getattr(args, "resume", None)
    if session_id:
        return SessionStore(sessions_folder(home_path(args))).get(session_id).host
    return str(args.host) if args.host else None


def _session(record: SessionRecord) -> dict[str, Any]:
    return {
        "session_id": record.session_id,
        "point_id": record.point_id,
        "vm": record.vm,
        "vm_key": record.vm_key,
        "host": record.host,
        "phase": record.phase,
        "datastore": record.datastore,
        "created_at": record.created_at,
        "steps": [{"name": step.name, "seconds": round(step.seconds, 3)} for step in record.steps],
        "seconds": round(sum(step.seconds for step in record.steps), 3),
        "stuck": record.stuck,
    }


def _exit_code(reasons: Sequence[Reason]) -> ExitCode:
    return ExitCode.WARNING if any(reason.warning for reason in reasons) else ExitCode.SUCCESS
