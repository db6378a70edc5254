"""`holdfast restore vm`: a recovery point becomes a new VM, or its VM is rolled back to it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.run_context import Progress, RunContext
from appliance.base.units import format_duration, format_rate, format_size
from appliance.cli.options import home_path, open_repository
from appliance.cli.output import ExitCode, note, note_reasons, progress_shown, show

if TYPE_CHECKING:
    from appliance.base.reasons import Reason
    from appliance.jobs.rollback_contract import RollbackOptions, RollbackResult
    from appliance.jobs.vm_restore import VmRestoreOptions, VmRestoreResult
    from appliance.service.vm_sources import OpenedTarget
    from appliance.sources.contract import Orphan

_KEEP = ("keep", "new")
_NEW_ONLY = ("name", "datastore", "folder", "pool", "on", "mac", "uuid", "disconnect", "transport")
_IN_PLACE_ONLY = ("power_off", "no_verify", "configuration")


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add `vm` to the verbs of `restore`."""
    vm = verbs.add_parser(
        "vm", parents=[common], help="make a VM of a recovery point, or roll its VM back to it"
    )
    vm.add_argument("point", metavar="P")
    vm.add_argument("--host", metavar="H", help="registered host (default: the only one)")
    vm.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="connect what was on network OLD to NEW; OLD may also be an adapter "
        "('Network adapter 1') or its address; may be repeated",
    )
    vm.add_argument("--power-on", action="store_true", help="start the VM when it is restored")
    _add_new(vm.add_argument_group("a new VM"))
    _add_in_place(vm.add_argument_group("the VM itself"))
    vm.set_defaults(run=run_restore_vm)


def _add_new(new: Any) -> None:
    new.add_argument(
        "--transport",
        action="append",
        default=[],
        metavar="T",
        help="write its disks in this way only: hot-add, nfc-lease (vSphere), smb (Hyper-V); "
        "may be repeated",
    )
    new.add_argument("--name", metavar="N", help="of the new VM (default: that of the original)")
    new.add_argument("--datastore", metavar="D", help="vSphere datastore for all its files")
    new.add_argument(
        "--folder",
        metavar="F",
        help="inventory path of the folder; on Hyper-V a folder of the host",
    )
    new.add_argument("--pool", metavar="P", help="vSphere inventory path of the resource pool")
    new.add_argument("--on", metavar="ESX", help="name of the ESXi host")
    new.add_argument(
        "--disconnect",
        action="append",
        default=[],
        metavar="OLD",
        help="leave what was on network OLD unconnected; may be repeated",
    )
    default = "default: keep, unless the original is still there"
    new.add_argument("--mac", choices=_KEEP, help=f"hardware addresses ({default})")
    new.add_argument("--uuid", choices=_KEEP, help=f"uuids of the VM and its disks ({default})")


def _add_in_place(place: Any) -> None:
    place.add_argument(
        "--in-place",
        action="store_true",
        help="roll the VM that the point is of back to it, writing only what differs",
    )
    place.add_argument(
        "--power-off", action="store_true", help="shut the VM down first, should it run"
    )
    place.add_argument(
        "--no-verify", action="store_true", help="do not compare the disks by hash afterwards"
    )
    place.add_argument(
        "--configuration",
        action="store_true",
        help="set processors, memory, boot and networks back too",
    )


def run_restore_vm(args: argparse.Namespace) -> int:
    from appliance.jobs.vm_restore import RestoreRoom, restore_vm
    from appliance.jobs.vm_rollback import roll_back_vm
    from appliance.service.home import Home
    from appliance.service.source_tools import source_tools
    from appliance.service.vm_sources import clean_up, open_target

    check_together(args)
    context = RunContext(args.cancel, Progress())
    with (
        Home(home_path(args)).open_catalog() as catalog,
        open_repository(args) as repository,
        open_target(catalog, args.host, source_tools(home_path(args))) as opened,
    ):
        manifest = repository.points.find(args.point)
        catalog.runs.close_interrupted()
        _note_orphans(clean_up(catalog, [opened.source]))
        room = RestoreRoom(repository=repository, runs=catalog.runs, run_locks=catalog.run_locks)
        with progress_shown(args, context.progress):
            if args.in_place:
                rolled = roll_back_vm(
                    room,
                    home_path(args),
                    opened.source,
                    opened.target,
                    manifest,
                    _rollback_options(args),
                    context,
                )
                return _show_rollback(args, opened, rolled, manifest.point_id)
            made = restore_vm(room, opened.target, manifest, _options(args), context)
            return _show_new(args, opened, made, manifest.point_id)


def check_together(args: argparse.Namespace) -> None:
    """Raises UsageError: an option that does not go with (or without) --in-place."""
    wrong = _NEW_ONLY if args.in_place else _IN_PLACE_ONLY
    for name in wrong:
        if getattr(args, name):
            what = "does not go with" if args.in_place else "needs"
            raise UsageError(f"--{name.replace('_', '-')} {what} --in-place")
    if args.in_place and args.network and not args.configuration:
        raise UsageError("--network needs --configuration when rolling back in place")


def network_pairs(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Raises UsageError."""
    pairs = []
    for word in words:
        old, equals, new = word.partition("=")
        if not old or not equals or not new:
            raise UsageError(f"--network takes OLD=NEW, not {word!r}")
        pairs.append((old, new))
    return tuple(pairs)


def _options(args: argparse.Namespace) -> VmRestoreOptions:
    from appliance.jobs.vm_restore import VmRestoreOptions
    from appliance.targets.contract import Keep, WantedVmPlace

    return VmRestoreOptions(
        name=args.name or "",
        place=WantedVmPlace(
            folder=args.folder or "",
            pool=args.pool or "",
            machine=args.on or "",
            datastore=args.datastore or "",
        ),
        networks=network_pairs(args.network),
        unconnected=frozenset(args.disconnect),
        mac=Keep(args.mac or "auto"),
        identity=Keep(args.uuid or "auto"),
        power_on=args.power_on,
        transports=tuple(dict.fromkeys(args.transport)),
    )


def _rollback_options(args: argparse.Namespace) -> RollbackOptions:
    from appliance.jobs.rollback_contract import RollbackOptions

    return RollbackOptions(
        power_off=args.power_off,
        power_on=args.power_on,
        verify=not args.no_verify,
        configuration=args.configuration,
        networks=network_pairs(args.network),
    )


def _note_orphans(orphans: Sequence[Orphan]) -> None:
    for orphan in orphans:
        what = f"{orphan.what} of {orphan.vm}, left by run {orphan.run_id}"
        note(f"warning: {what}: {orphan.failure}" if orphan.failure else f"removed {what}")


def _exit_code(reasons: Sequence[Reason]) -> ExitCode:
    return ExitCode.WARNING if any(reason.warning for reason in reasons) else ExitCode.SUCCESS


def _show_new(
    args: argparse.Namespace, opened: OpenedTarget, made: VmRestoreResult, point_id: str
) -> ExitCode:
    from appliance.service.recovery_results import restored_result

    note_reasons(made.reasons)
    document = {
        "point_id": point_id,
        "host": opened.target.name,
        "in_place": False,
        **restored_result(made),
        "reasons": [reason.as_json() for reason in made.reasons],
    }
    written = sum(disk.written_bytes for disk in made.disks)
    show(
        args,
        document,
        lambda: (
            f"{made.vm} ({made.key}): restored by {made.transport}, "
            f"{format_size(written)} written in {format_duration(made.seconds)} "
            f"({format_rate(written / max(made.seconds, 1e-9))})"
            f"{', powered on' if made.powered_on else ''}"
        ),
    )
    return _exit_code(made.reasons)


def _show_rollback(
    args: argparse.Namespace, opened: OpenedTarget, rolled: RollbackResult, point_id: str
) -> ExitCode:
    note_reasons(rolled.reasons)
    document = {
        "point_id": point_id,
        "host": opened.target.name,
        "vm": rolled.vm,
        "id": rolled.key,
        "in_place": True,
        "verified": rolled.verified,
        "powered_on": rolled.powered_on,
        "disks": [
            {
                "number": disk.number,
                "label": disk.label,
                "mode": disk.mode,
                "size_bytes": disk.size_bytes,
                "written_bytes": disk.written_bytes,
                "reasons": [reason.as_json() for reason in disk.reasons],
            }
            for disk in rolled.disks
        ],
        "seconds": round(rolled.seconds, 3),
        "reasons": [reason.as_json() for reason in dict.fromkeys(rolled.vm_reasons)],
    }
    written = sum(disk.written_bytes for disk in rolled.disks)
    show(
        args,
        document,
        lambda: (
            f"{rolled.vm} ({rolled.key}): rolled back to {point_id}, "
            f"{format_size(written)} written in {format_duration(rolled.seconds)}, "
            f"{'compared by hash' if rolled.verified else 'not compared'}"
            f"{', powered on' if rolled.powered_on else ''}"
        ),
    )
    return _exit_code(rolled.reasons)
