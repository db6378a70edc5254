"""`holdfast run …`: the runs of jobs: what waits, goes on, and how each ended."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from appliance.base.units import format_duration, format_rate, format_size
from appliance.cli.options import home_path
from appliance.cli.output import ExitCode, note, show, table

if TYPE_CHECKING:
    from appliance.service.appliance_client import RunClient

_LOOK_S = 0.5
_SHOWN_EVERY_LOOKS = 10
_MOST_DISKS_SHOWN = 20


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("run", help="what jobs have done and are doing")
    verbs = group.add_subparsers(metavar="VERB", required=True)

    listing = verbs.add_parser("list", parents=[common], help="list them, oldest first")
    listing.add_argument("--job", metavar="NAME")
    listing.add_argument(
        "--limit", type=int, default=50, metavar="N", help="the newest N (default: 50)"
    )
    listing.set_defaults(run=run_list)

    showing = verbs.add_parser("show", parents=[common], help="everything about one")
    showing.add_argument("id", metavar="RUN")
    showing.set_defaults(run=run_show)

    cancelling = verbs.add_parser("cancel", parents=[common], help="end one in order")
    cancelling.add_argument("id", metavar="RUN")
    cancelling.set_defaults(run=run_cancel)


def exit_code_of(outcome: str) -> ExitCode:
    codes = {"success": ExitCode.SUCCESS, "warning": ExitCode.WARNING}
    return codes.get(outcome, ExitCode.FAILED)


def follow(args: argparse.Namespace, client: RunClient, run_id: str) -> dict[str, Any]:
    """Wait for the end of a run, showing its progress; return it.

    Interrupted, it returns the run as it is, and the run goes on. Raises DaemonUnreachableError.
    """
    looks = 0
    while True:
        run = client.run(run_id)
        if run["state"] == "ended":
            return run
        if not args.quiet and looks % _SHOWN_EVERY_LOOKS == 0:
            for line in live_lines(run.get("live")):
                print(line, file=sys.stderr, flush=True)
        looks += 1
        if args.cancel.wait(_LOOK_S):
            note(f"run {run_id} goes on; `holdfast run cancel {run_id}` ends it")
            return run


def show_begun(args: argparse.Namespace, client: RunClient, run: dict[str, Any]) -> ExitCode:
    """Show the run of a job that has begun; with `--wait`, its end. Raises as `follow`."""
    if not args.wait:
        show(args, run, lambda: f"run {run['run_id']} of job {args.name}")
        return ExitCode.SUCCESS
    ended = follow(args, client, run["run_id"])
    end = ended["outcome"] or ended["state"]
    show(args, ended, lambda: f"run {ended['run_id']} of job {args.name}: {end}")
    if ended["error"]:
        note(f"[{ended['error_code']}] {ended['error']}")
    return exit_code_of(end)


def live_lines(live: dict[str, Any] | None) -> list[str]:
    """What a run is doing: a line in all, and one per disk that is being read."""
    if live is None:
        return []
    lines = [f"{live['step']}: {live['ended_vm_count']} of {live['vm_count']} VMs"]
    if not live["vm_count"]:
        lines = [live["step"]]
    for disk in live["disks"][:_MOST_DISKS_SHOWN]:
        parts = [
            f"{format_size(disk['done_bytes'])} of {format_size(disk['total_bytes'])}",
            format_rate(disk["bytes_per_s"]),
        ]
        if disk["eta_s"] is not None:
            parts.append(f"{format_duration(disk['eta_s'])} left")
        if disk["bottleneck"]:
            parts.append(f"bottleneck: {disk['bottleneck']}")
        lines.append(f"  {disk['vm']} {disk['disk']}: {', '.join(parts)}")
    return lines


def run_list(args: argparse.Namespace) -> int:
    from appliance.service.home import Home
    from appliance.service.job_documents import run_document

    with Home(home_path(args)).open_catalog() as catalog:
        runs = catalog.job_runs.list(job=args.job, limit=max(1, min(args.limit, 10_000)))

    def text() -> str:
        rows = [
            (
                run.run_id,
                run.job,
                run.kind,
                run.cause,
                f"{run.started_at:%Y-%m-%d %H:%M:%S}" if run.started_at else "-",
                str(run.outcome or run.state),
                run.error_code or "",
            )
            for run in runs
        ]
        return table(rows, ("RUN", "JOB", "KIND", "CAUSE", "STARTED (UTC)", "END", "ERROR"))

    show(args, [run_document(run) for run in runs], text)
    return ExitCode.SUCCESS


def run_show(args: argparse.Namespace) -> int:
    from appliance.service.daemon_client import DaemonClient, DaemonUnreachableError
    from appliance.service.home import Home
    from appliance.service.job_documents import run_detail
    from appliance.service.job_service import run_view

    with Home(home_path(args)).open_catalog() as catalog:
        document = run_detail(run_view(catalog, args.id))
    if document["state"] == "running":
        try:
            document = DaemonClient(home_path(args)).run(args.id)
        except DaemonUnreachableError:
            note("no daemon answers: the run was interrupted, which the next daemon will say")
    show(args, document, lambda: "\n".join(detail_lines(document)))
    return ExitCode.SUCCESS


def detail_lines(run: dict[str, Any]) -> list[str]:
    lines = [
        f"run      {run['run_id']} of job {run['job']}",
        f"kind     {run['kind']}, {run['cause']}, attempt {run['attempt']}",
        f"begun    {run['started_at'] or '-'}",
        f"ended    {run['ended_at'] or '-'}",
        f"outcome  {run['outcome'] or run['state']}",
    ]
    if run["error"]:
        lines.append(f"error    [{run['error_code']}] {run['error']}")
    lines += [
        f"reason   [{reason['code']}] {reason['text']}; {reason['next_step']}"
        for reason in run["reasons"]
    ]
    lines += live_lines(run.get("live"))
    certificate = run["result"].get("certificate")
    if certificate:
        lines.append(f"proof    certificate {certificate['sequence']}")
    for vm in run["result"].get("vms", []):
        error = f", [{vm['error']['code']}] {vm['error']['message']}" if vm["error"] else ""
        proof = _proof(vm) if "verdict" in vm else ""
        lines.append(f"  {vm['vm']}: {vm['outcome']}, {vm['point_id'] or 'no point'}{proof}{error}")
        lines += [f"    [{reason['code']}] {reason['text']}" for reason in vm["reasons"]]
    for point in run["result"].get("removed", []):
        lines.append(f"  removed {point['point_id']} of {point['vm']}: {point['reason']}")
    return lines


def run_cancel(args: argparse.Namespace) -> int:
    from appliance.service.daemon_client import DaemonClient

    DaemonClient(home_path(args)).cancel_run(args.id)
    show(args, {"cancelled": args.id}, lambda: f"asked run {args.id} to end")
    return ExitCode.SUCCESS


def _proof(vm: dict[str, Any]) -> str:
    """Of a verification: where, the verdict, how long it took and might have taken."""
    place = f" in the {vm['place']}" if vm["place"] else ""
    said = f", {vm['verdict'] or 'not verified'}{place}"
    if vm["recovery_seconds"] is not None:
        said += f", ready in {format_duration(vm['recovery_seconds'])}"
    if vm["rto_seconds"] is not None:
        said += f" (objective {format_duration(vm['rto_seconds'])})"
    return said
