"""`holdfast backup vm`: VMs of the registered hypervisors, each becomes a recovery point."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.error_document import error_document, next_step
from appliance.base.errors import ApplianceError, UsageError
from appliance.base.run_context import Progress, RunContext
from appliance.base.units import format_duration, format_rate, format_size
from appliance.cli.options import home_path, open_repository
from appliance.cli.output import ExitCode, note, note_reasons, show
from appliance.cli.vm_progress import VmProgress

if TYPE_CHECKING:
    from appliance.jobs.vm_backup import VmBackupOptions, VmResult
    from appliance.jobs.vm_selection import HostFailure
    from appliance.sources.contract import Orphan

_TRANSPORTS = ("hot-add", "vddk", "datastore-https", "nfc-lease", "smb")
_CONSISTENCIES = ("application", "file-system", "crash")


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add `vm` to the verbs of `backup`."""
    vm = verbs.add_parser(
        "vm", parents=[common], help="back up VMs of registered hypervisors (`host add`)"
    )
    vm.add_argument(
        "names", nargs="*", metavar="NAME", help="name, FOLDER/NAME, or a glob such as 'web*'"
    )
    vm.add_argument("--host", metavar="H", help="only VMs of this registered host")
    vm.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="T",
        help="VMs that carry this tag (NAME or CATEGORY/NAME); may be repeated",
    )
    vm.add_argument("--full", action="store_true", help="read everything, build on nothing")
    vm.add_argument(
        "--quiesce",
        choices=_CONSISTENCIES,
        default="application",
        help="the best consistency to try for (default: application)",
    )
    vm.add_argument(
        "--quiesce-least",
        choices=_CONSISTENCIES,
        default="crash",
        help="fail rather than make a point of less than this (default: crash)",
    )
    vm.add_argument(
        "--guest-logs",
        choices=("keep", "truncate"),
        default="keep",
        help="truncate: applications in Hyper-V guests are told of a full backup (default: keep)",
    )
    vm.add_argument(
        "--cbt-audit",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="share of the blocks reported unchanged that is read again (default: 1)",
    )
    vm.add_argument(
        "--transport",
        action="append",
        default=[],
        choices=_TRANSPORTS,
        help="read disks in this way only (may be repeated; default: the best that works)",
    )
    vm.add_argument("--parallel", type=int, metavar="N", help="VMs at a time")
    vm.add_argument(
        "--latency-limit",
        type=float,
        default=250.0,
        metavar="MS",
        help="milliseconds per MiB above which a vSphere datastore is read by fewer at once; "
        "0: never (default: 250)",
    )
    vm.add_argument(
        "--vddk",
        type=Path,
        metavar="DIR",
        help="folder that VMware's VDDK was unpacked into (default: HOME/vddk if it is there)",
    )
    vm.set_defaults(run=run_backup_vm)


def run_backup_vm(args: argparse.Namespace) -> int:
    from appliance.jobs.backup_limits import BackupLimits
    from appliance.jobs.vm_backup import BackupRoom, Followers, back_up_vms
    from appliance.jobs.vm_selection import select_vms
    from appliance.service.home import Home
    from appliance.service.protection import point_names
    from appliance.service.source_tools import source_tools
    from appliance.service.vm_sources import clean_up, open_sources

    options = _options(args)
    tools = source_tools(home_path(args), args.vddk)
    context = RunContext(args.cancel, Progress())
    started_s = time.perf_counter()
    with (
        Home(home_path(args)).open_catalog() as catalog,
        open_repository(args) as repository,
        open_sources(catalog, [args.host] if args.host else (), tools) as opened,
    ):
        catalog.runs.close_interrupted()
        orphans = clean_up(catalog, opened.sources)
        names = point_names(repository.points.list())
        selection = select_vms(opened.sources, args.names, args.tag, names, opened.failures)
        room = BackupRoom(
            repository=repository,
            runs=catalog.runs,
            run_locks=catalog.run_locks,
            limits=BackupLimits(_limits(args)),
            state_folder=home_path(args),
        )
        with VmProgress(context.progress, quiet=args.quiet) as progress:
            results = back_up_vms(
                room,
                selection.vms,
                options,
                context,
                Followers(disk_begins=progress.disk_begins, vm_ends=progress.vm_ends),
            )
    seconds = time.perf_counter() - started_s
    _note_what_happened(orphans, selection.failures, results)
    show(
        args,
        _as_json(orphans, selection.failures, results, seconds),
        lambda: "\n".join(_as_text(result) for result in results),
    )
    return _exit_code(orphans, selection.failures, results)


def _options(args: argparse.Namespace) -> VmBackupOptions:
    from appliance.base.consistency import Consistency, GuestLogs
    from appliance.jobs.cbt_audit import AuditPolicy
    from appliance.jobs.vm_backup import VmBackupOptions
    from appliance.sources.contract import ConsistencyPolicy

    if _CONSISTENCIES.index(args.quiesce) > _CONSISTENCIES.index(args.quiesce_least):
        raise UsageError(
            f"--quiesce {args.quiesce} is less than --quiesce-least {args.quiesce_least}"
        )
    return VmBackupOptions(
        full=args.full,
        consistency=ConsistencyPolicy(
            wanted=Consistency(args.quiesce), least=Consistency(args.quiesce_least)
        ),
        transports=tuple(dict.fromkeys(args.transport)),
        audit=AuditPolicy(percent=args.cbt_audit),
        guest_logs=GuestLogs(args.guest_logs),
    )


def _limits(args: argparse.Namespace) -> Any:
    from appliance.jobs.backup_limits import LimitPolicy
    from appliance.jobs.latency_brake import BrakePolicy

    brake = BrakePolicy(threshold_s=args.latency_limit / 1000)
    if args.parallel is None:
        return LimitPolicy(brake=brake)
    # a wish for more at a time is a wish for more on one host too
    at_once = max(args.parallel, LimitPolicy().vms_per_host)
    return LimitPolicy(
        vms=args.parallel, vms_per_host=at_once, vms_per_datastore=at_once, brake=brake
    )


def _exit_code(
    orphans: Sequence[Orphan], failures: Sequence[HostFailure], results: Sequence[VmResult]
) -> ExitCode:
    from appliance.catalog.runs import RunOutcome

    ends = {result.status for result in results}
    if failures or ends & {RunOutcome.FAILED, RunOutcome.CANCELLED}:
        return ExitCode.FAILED
    if RunOutcome.WARNING in ends or any(orphan.failure for orphan in orphans):
        return ExitCode.WARNING
    return ExitCode.SUCCESS


def _note_what_happened(
    orphans: Sequence[Orphan], failures: Sequence[HostFailure], results: Sequence[VmResult]
) -> None:
    for orphan in orphans:
        what = f"{orphan.what} of {orphan.vm}, left by run {orphan.run_id}"
        note(f"warning: {what}: {orphan.failure}" if orphan.failure else f"removed {what}")
    for failure in failures:
        _note_error(failure.host, failure.error)
    for result in results:
        if result.error is not None:
            _note_error(result.vm, result.error)
        elif result.reasons:
            note(f"{result.vm}:")
        note_reasons(result.reasons)


def _note_error(about: str, error: ApplianceError) -> None:
    note(f"{about}: [{error.code}] {error}\n  {next_step(error)}")


def _as_json(
    orphans: Sequence[Orphan],
    failures: Sequence[HostFailure],
    results: Sequence[VmResult],
    seconds: float,
) -> dict[str, Any]:
    from appliance.jobs.vm_report import result_document

    return {
        "seconds": round(seconds, 3),
        "vms": [result_document(result) for result in results],
        "hosts_failed": [
            {"host": failure.host, "error": error_document(failure.error)} for failure in failures
        ],
        "orphans": [
            {
                "vm": orphan.vm,
                "what": orphan.what,
                "run_id": orphan.run_id,
                "failure": orphan.failure or None,
            }
            for orphan in orphans
        ],
    }


def _as_text(result: VmResult) -> str:
    if result.backup is None:
        return f"{result.vm}: {result.status}, no recovery point"
    manifest = result.backup.manifest
    lines = [
        f"{result.vm}: {result.status}, recovery point {manifest.point_id}, "
        f"{manifest.consistency}-consistent, {format_duration(result.seconds)}"
    ]
    for disk in result.backup.disks:
        image = disk.image
        lines.append(
            f"  disk {disk.number} ({disk.label}): {format_size(image.size_bytes)}, {disk.mode} "
            f"by {disk.transfer.transport}, read {format_size(image.read_bytes)} at "
            f"{format_rate(image.read_bytes / max(disk.seconds, 1e-9))}, "
            f"new {format_size(image.new_bytes)}, stored {format_size(image.stored_bytes)}"
        )
    lines += [f"  {disk.label}: left out" for disk in result.backup.skipped]
    return "\n".join(lines)
