"""`holdfast verify`: prove a recovery point by its hashes, or by booting it in isolation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.run_context import Progress, RunContext
from appliance.base.units import format_duration, format_rate, format_size
from appliance.cli.options import home_path, open_repository
from appliance.cli.output import ExitCode, note, note_reasons, progress_shown, show

if TYPE_CHECKING:
    from appliance.jobs.verification import BootOutcome
    from appliance.repository.manifest import Manifest
    from appliance.repository.repository import Repository


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    verify = commands.add_parser(
        "verify", parents=[common], help="prove that a recovery point works"
    )
    verify.add_argument("point", nargs="?", metavar="P")
    verify.add_argument("--vm", metavar="NAME", help="the newest point of this VM")
    verify.add_argument("--boot", action="store_true", help="boot it in the sandbox")
    verify.add_argument(
        "--probe",
        action="append",
        default=[],
        metavar="PROBE",
        help="tcp:PORT, http:PORT/PATH or serial:REGEX; all must pass (may be repeated)",
    )
    verify.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS")
    verify.add_argument("--memory", type=int, default=512, metavar="MIB")
    verify.add_argument("--cpus", type=int, default=1, metavar="N")
    verify.add_argument(
        "--disk-interface", default="virtio", choices=("virtio", "ide", "sata", "nvme", "pvscsi")
    )
    verify.add_argument(
        "--artifacts", type=Path, metavar="DIR", help="where serial log and screenshot go"
    )
    verify.set_defaults(run=run_verify)


def run_verify(args: argparse.Namespace) -> int:
    if (args.point is None) == (args.vm is None):
        raise UsageError("name a recovery point or --vm, not both")
    if args.boot and not args.probe:
        raise UsageError("--boot needs at least one --probe to know when the guest is ready")
    with open_repository(args) as repository:
        manifest = repository.points.find(args.point or f"latest:{args.vm}")
        return (_boot if args.boot else _hash)(args, repository, manifest)


def _hash(args: argparse.Namespace, repository: Repository, manifest: Manifest) -> int:
    from appliance.jobs.verification import verify_hashes

    context = RunContext(args.cancel, Progress())
    with progress_shown(args, context.progress):
        outcome = verify_hashes(repository, manifest, context)
    document = {
        "point_id": manifest.point_id,
        "verified": True,
        "chunk_count": outcome.chunk_count,
        "verified_bytes": outcome.verified_bytes,
        "seconds": round(outcome.seconds, 3),
    }
    rate = format_rate(outcome.verified_bytes / max(outcome.seconds, 1e-9))
    show(
        args,
        document,
        lambda: (
            f"{manifest.point_id}: {outcome.chunk_count} chunks, "
            f"{format_size(outcome.verified_bytes)} proven in "
            f"{format_duration(outcome.seconds)} ({rate})"
        ),
    )
    return ExitCode.SUCCESS


def _boot(args: argparse.Namespace, repository: Repository, manifest: Manifest) -> int:
    from appliance.jobs.verification import BootOptions, verify_boot
    from appliance.sandbox.probes import parse_probe
    from appliance.sandbox.spec import DiskInterface

    context = RunContext(args.cancel, Progress())
    artifacts = args.artifacts or home_path(args) / "verify" / manifest.point_id
    options = BootOptions(
        memory_mib=args.memory,
        cpus=args.cpus,
        disk_interface=DiskInterface(args.disk_interface),
        deadline_s=args.timeout,
    )
    probes = [parse_probe(text) for text in args.probe]
    note(f"booting {manifest.vm} from {manifest.point_id}")
    outcome = verify_boot(
        repository, manifest, probes, context, options=options, artifact_folder=artifacts
    )
    note_reasons([outcome.report.accelerator_reason])
    show(args, _as_json(manifest, outcome), lambda: _as_text(manifest, outcome))
    return ExitCode.SUCCESS if outcome.report.ok else ExitCode.FAILED


def _as_json(manifest: Manifest, outcome: BootOutcome) -> dict[str, Any]:
    report = outcome.report
    return {
        "point_id": manifest.point_id,
        "vm": manifest.vm,
        "ready": report.ok,
        "start_seconds": round(outcome.start_seconds, 3),
        "first_byte_seconds": report.first_serial_byte_s,
        "ready_seconds": report.ready_s,
        "read_bytes": outcome.read_bytes,
        "prefetched_bytes": outcome.prefetched_bytes,
        "accelerator": report.accelerator,
        "reasons": [report.accelerator_reason.as_json()],
        "probes": [
            {
                "probe": probe.probe,
                "passed": probe.ok,
                "seconds": probe.seconds,
                "detail": probe.detail,
            }
            for probe in report.probes
        ],
        "screenshot_path": report.screenshot_path,
        "serial_log_path": report.serial_log_path,
        "power_off": report.power_off,
    }


def _as_text(manifest: Manifest, outcome: BootOutcome) -> str:
    report = outcome.report
    verdict = "ready" if report.ok else "NOT READY"
    lines = [
        f"{manifest.vm} {manifest.point_id}: {verdict}"
        + (f" after {format_duration(report.ready_s)}" if report.ready_s is not None else ""),
        f"  sandbox up in {format_duration(outcome.start_seconds)}, "
        f"{format_size(outcome.read_bytes)} read, "
        f"{format_size(outcome.prefetched_bytes)} fetched ahead, accelerator {report.accelerator}",
    ]
    if report.first_serial_byte_s is not None:
        lines.append(f"  first serial byte after {format_duration(report.first_serial_byte_s)}")
    for probe in report.probes:
        mark = "passed" if probe.ok else "FAILED"
        when = f" after {format_duration(probe.seconds)}" if probe.seconds is not None else ""
        lines.append(f"  probe {probe.probe}: {mark}{when} ({probe.detail})")
    lines.append(f"  screenshot {report.screenshot_path}, serial log {report.serial_log_path}")
    return "\n".join(lines)
