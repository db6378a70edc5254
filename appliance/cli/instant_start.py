"""`holdfast instant start`: a recovery point becomes a running VM, or a start goes on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.run_context import Progress, RunContext
from appliance.base.units import format_duration
from appliance.cli import instant_local
from appliance.cli.instant_room import exit_code, host_of, opened_room, session_document
from appliance.cli.numbers import seconds
from appliance.cli.output import note_reasons, show

if TYPE_CHECKING:
    from appliance.jobs.instant_recovery import StartResult
    from appliance.jobs.recovery_room import RecoveryRoom
    from appliance.repository.manifest import Manifest
    from appliance.targets.recovery import RecoveryRequest

_KEEP = ("keep", "new")
_ISOLATED = "isolated"
RESERVE = "1G"
PRESENTATIONS = {"volume": "iscsi", "pass-through": "pass-through", "share": "share"}


def add_start(start: argparse.ArgumentParser) -> None:
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
        "--heartbeat-timeout", type=seconds, default=600.0, metavar="SECONDS", help="(default: 600)"
    )
    start.add_argument(
        "--address",
        default="",
        metavar="A",
        help="where hosts reach this machine's NFS or iSCSI server",
    )
    start.add_argument(
        "--mount-on",
        choices=("host", "cluster"),
        default="host",
        help="which hosts get the datastore (default: the one that runs the VM)",
    )
    start.add_argument(
        "--presentation",
        choices=tuple(PRESENTATIONS),
        help="how a Hyper-V host sees the disks: VHDX files on an iSCSI volume, whole iSCSI disks,"
        " or VHDX files on an SMB share (default: volume)",
    )
    start.add_argument(
        "--reserve", default=RESERVE, metavar="SIZE", help="space kept free where guests' writes go"
    )
    instant_local.add_options(start)
    start.set_defaults(run=run_start)


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
    with opened_room(args, host_of(args)) as opened:
        if args.resume:
            result = resume(opened.room, opened.target, args.resume, options, context)
        else:
            manifest = opened.room.repository.points.find(args.point)
            request = _request(args, opened.room, manifest)
            result = start(opened.room, opened.target, manifest, request, options, context)
    note_reasons(result.reasons)
    show(args, _started(result), lambda: _started_text(result))
    return exit_code(result.reasons)


def _request(args: argparse.Namespace, room: RecoveryRoom, manifest: Manifest) -> RecoveryRequest:
    from appliance.exports.datastore.session import Presentation
    from appliance.jobs.instant_recovery import wanted_disks
    from appliance.targets.contract import Keep, WantedVmPlace
    from appliance.targets.recovery import Breadth, RecoveryRequest

    networks, isolated, isolate_all = wanted_networks(args.network)
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
        presentation=Presentation(PRESENTATIONS[args.presentation]) if args.presentation else None,
    )


def wanted_networks(
    words: Sequence[str],
) -> tuple[tuple[tuple[str, str], ...], frozenset[str], bool]:
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
    return session_document(result.record) | {
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
