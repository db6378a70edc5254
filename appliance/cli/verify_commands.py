"""`holdfast verify`: prove recovery points by hashes, file systems, and booting in isolation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.ids import new_run_id
from appliance.base.run_context import Progress, RunContext
from appliance.base.units import format_duration, format_size, parse_duration
from appliance.cli.numbers import seconds, whole
from appliance.cli.options import home_path, open_repository
from appliance.cli.output import ExitCode, note, note_reasons, progress_shown, show

if TYPE_CHECKING:
    from appliance.jobs.certified_run import CertifiedRun
    from appliance.jobs.verification_outcome import GuestOutcome
    from appliance.jobs.verification_plan import GuestPlan, VerificationPlan
    from appliance.repository.repository import Repository


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    verify = commands.add_parser(
        "verify", parents=[common], help="prove that a recovery point works"
    )
    verify.add_argument("point", nargs="?", metavar="P")
    verify.add_argument(
        "--vm",
        action="append",
        default=[],
        metavar="NAME",
        help="the newest point of this VM (may be repeated; each is verified by itself)",
    )
    verify.add_argument(
        "--application",
        type=Path,
        metavar="FILE",
        help="TOML file of guests that boot together, in order, on one isolated network",
    )
    verify.add_argument("--boot", action="store_true", help="boot it in the sandbox")
    verify.add_argument(
        "--probe",
        action="append",
        default=[],
        metavar="PROBE",
        help="tcp:PORT, http[s]:PORT/PATH, tls:PORT, dns:NAME, smb, mysql, postgres, mssql or "
        "serial:REGEX; all must pass (may be repeated)",
    )
    verify.add_argument(
        "--expect-text", metavar="TEXT", help="that the page of every HTTP probe must contain"
    )
    verify.add_argument(
        "--script",
        action="append",
        default=[],
        metavar="SCRIPT",
        help="'COMMAND => REGEX': typed on the serial line once the guest is ready, and its answer",
    )
    verify.add_argument(
        "--check-file-systems", action="store_true", help="check the guest's volumes read-only"
    )
    verify.add_argument(
        "--hash-share",
        type=float,
        metavar="SHARE",
        help="share of the chunks to re-hash, 0 to 1 (default 1; with --boot 0)",
    )
    verify.add_argument("--rto", metavar="TIME", help="warn when recovering takes longer: 5min")
    verify.add_argument("--rpo", metavar="TIME", help="warn when the point is older: 1d")
    verify.add_argument("--timeout", type=seconds, default=600.0, metavar="SECONDS")
    verify.add_argument("--memory", type=whole(1, 1 << 20), default=512, metavar="MIB")
    verify.add_argument("--cpus", type=whole(1, 256), default=1, metavar="N")
    verify.add_argument(
        "--disk-interface", default="virtio", choices=("virtio", "ide", "sata", "nvme", "pvscsi")
    )
    verify.add_argument(
        "--artifacts", type=Path, metavar="DIR", help="where serial log and screenshot go"
    )
    verify.add_argument("--report", type=Path, metavar="DIR", help="write a report there")
    verify.add_argument(
        "--no-certificate", action="store_true", help="neither sign nor record what was found"
    )
    verify.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace) -> int:
    if (args.point is not None) + bool(args.vm) + (args.application is not None) != 1:
        raise UsageError("name one of: a recovery point, --vm, --application")
    if args.boot and not args.probe:
        raise UsageError("--boot needs at least one --probe to know when the guest is ready")
    if (args.probe or args.script) and not args.boot:
        raise UsageError("--probe and --script need --boot")
    plans = _plans(args)
    with open_repository(args) as repository:
        runs = [_run(args, repository, plan, several=len(plans) > 1) for plan in plans]
    documents = [_document(run) for run in runs]
    document = documents[0] if len(documents) == 1 else {"runs": documents}
    show(args, document, lambda: "\n".join(_as_text(run) for run in runs))
    return max((_exit_code(run) for run in runs), key=_EXIT_ORDER.index)


_EXIT_ORDER = (ExitCode.SUCCESS, ExitCode.WARNING, ExitCode.FAILED)


def _plans(args: argparse.Namespace) -> list[VerificationPlan]:
    from appliance.jobs.verification_file import read_application
    from appliance.jobs.verification_plan import VerificationPlan

    if args.application is not None:
        if args.boot or args.hash_share is not None or args.check_file_systems:
            raise UsageError("--application says itself what is done with each guest")
        return [read_application(args.application)]
    points = [args.point] if args.point else [f"latest:{vm}" for vm in args.vm]
    return [VerificationPlan(guests=(_guest_plan(args, point),)) for point in points]


def _guest_plan(args: argparse.Namespace, point: str) -> GuestPlan:
    from appliance.jobs.verification_plan import BootOptions, GuestPlan
    from appliance.sandbox.probes import expecting_text, parse_probe
    from appliance.sandbox.serial_script import parse_script
    from appliance.sandbox.spec import DiskInterface

    probes = [parse_probe(text) for text in args.probe]
    if args.expect_text is not None:
        expecting = [expecting_text(probe, args.expect_text) for probe in probes]
        if expecting == probes:
            raise UsageError("--expect-text needs an HTTP probe")
        probes = expecting
    boot = BootOptions(
        memory_mib=args.memory,
        cpus=args.cpus,
        disk_interface=DiskInterface(args.disk_interface),
        deadline_s=args.timeout,
    )
    share = args.hash_share if args.hash_share is not None else (0.0 if args.boot else 1.0)
    return GuestPlan(
        point=point,
        name=point,
        boot=boot if args.boot else None,
        probes=tuple(probes),
        scripts=tuple(parse_script(text) for text in args.script),
        hash_share=share,
        check_file_systems=args.check_file_systems,
        rto=parse_duration(args.rto) if args.rto else None,
        rpo=parse_duration(args.rpo) if args.rpo else None,
    )


def _run(
    args: argparse.Namespace, repository: Repository, plan: VerificationPlan, *, several: bool
) -> CertifiedRun:
    from appliance.base.clock import SystemClock
    from appliance.jobs.certified_run import write_report
    from appliance.service.certified_verification import (
        certified_verification,
        uncertified_verification,
    )
    from appliance.service.home import Home

    context = RunContext(args.cancel, Progress())
    run_id = new_run_id(SystemClock().now())
    names = ", ".join(repository.points.find(guest.point).vm for guest in plan.guests)
    note(f"verifying {names}")
    folder = args.artifacts or home_path(args) / "verify"
    if several or args.artifacts is None:
        folder = folder / run_id
    with progress_shown(args, context.progress):
        if args.no_certificate:
            run = uncertified_verification(
                repository, plan, context, run_id=run_id, artifact_folder=folder
            )
        else:
            run = certified_verification(
                Home(home_path(args)),
                repository,
                plan,
                context,
                run_id=run_id,
                artifact_folder=folder,
            )
    boots = [guest.boot for guest in run.outcome.guests if guest.boot is not None]
    note_reasons([*(boot.report.accelerator_reason for boot in boots), *run.reasons])
    if args.report is not None:
        page = write_report(run, args.report / run_id if several else args.report)
        note(f"report: {page}")
    return run


def _exit_code(run: CertifiedRun) -> ExitCode:
    from appliance.jobs.verification_stages import Verdict

    if run.outcome.verdict is Verdict.FAILED:
        return ExitCode.FAILED
    if run.outcome.verdict is Verdict.SKIPPED or any(reason.warning for reason in run.reasons):
        return ExitCode.WARNING
    return ExitCode.SUCCESS


def _document(run: CertifiedRun) -> dict[str, Any]:
    """With one guest, what is said about it stands at the top too."""
    from appliance.jobs.verification_report import report_json
    from appliance.jobs.verification_stages import Verdict

    document: dict[str, Any] = report_json(run.outcome, run.certificate, run.trends)
    if len(run.outcome.guests) == 1:
        document |= document["guests"][0]
    document["verified"] = run.outcome.verdict is Verdict.PASSED
    boots = [guest.boot for guest in run.outcome.guests if guest.boot is not None]
    reasons = dict.fromkeys([*(boot.report.accelerator_reason for boot in boots), *run.reasons])
    document["reasons"] = [reason.as_json() for reason in reasons]
    return document


def _as_text(run: CertifiedRun) -> str:
    lines = [line for guest in run.outcome.guests for line in _guest_lines(guest)]
    if run.certificate is not None:
        lines.append(f"certificate {run.certificate.sequence}: {run.certificate.path}")
    return "\n".join(lines)


def _guest_lines(guest: GuestOutcome) -> list[str]:
    from appliance.jobs.verification_stages import NOT_ASKED

    recovered = ""
    if guest.recovery_s is not None:
        recovered = f", recovered in {format_duration(guest.recovery_s)}"
    lines = [f"{guest.manifest.vm} {guest.manifest.point_id}: {guest.verdict}{recovered}"]
    for stage in guest.stages:
        if stage.reason is NOT_ASKED:
            continue
        when = f" in {format_duration(stage.seconds)}" if stage.seconds else ""
        why = f" [{stage.reason.code}]" if stage.reason else ""
        said = f": {stage.detail}" if stage.detail else ""
        lines.append(f"  {stage.stage}: {stage.verdict}{when}{why}{said}")
    if guest.boot is not None:
        lines.append(
            f"  {format_size(guest.boot.read_bytes)} read, "
            f"{format_size(guest.boot.prefetched_bytes)} fetched ahead, "
            f"accelerator {guest.boot.report.accelerator}"
        )
    lines += [f"  {kept.name}: {kept.path}" for kept in guest.evidence]
    return lines
