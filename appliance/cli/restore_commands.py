"""`holdfast restore image`: write a disk of a recovery point out as a file. See also
`vm_restore_commands`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from appliance.base.run_context import Progress, RunContext
from appliance.base.units import format_duration, format_rate, format_size
from appliance.cli import vm_restore_commands
from appliance.cli.options import open_repository
from appliance.cli.output import ExitCode, note_reasons, progress_shown, show


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("restore", help="get disks back")
    verbs = group.add_subparsers(metavar="TARGET", required=True)
    image = verbs.add_parser("image", parents=[common], help="write a disk to a file")
    image.add_argument("point", metavar="P")
    image.add_argument("--disk", type=int, default=0, metavar="N")
    image.add_argument(
        "--format", default="raw", choices=("raw", "qcow2", "vmdk", "vhdx"), metavar="FORMAT"
    )
    image.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    image.add_argument("--force", action="store_true", help="overwrite FILE")
    image.add_argument(
        "--sync", action="store_true", help="return when FILE is on the disk, not only written"
    )
    image.set_defaults(run=run_restore_image)
    vm_restore_commands.add(verbs, common)


def run_restore_image(args: argparse.Namespace) -> int:
    from appliance.jobs.restore import ImageFormat, restore_image

    context = RunContext(args.cancel, Progress())
    with open_repository(args) as repository:
        manifest = repository.points.find(args.point)
        with progress_shown(args, context.progress):
            result = restore_image(
                repository,
                manifest,
                args.disk,
                args.output,
                format=ImageFormat(args.format),
                force=args.force,
                sync=args.sync,
                context=context,
            )
    note_reasons(result.reasons)
    document = {
        "point_id": manifest.point_id,
        "disk": args.disk,
        "output": str(args.output),
        "format": args.format,
        "size_bytes": result.size_bytes,
        "written_bytes": result.written_bytes,
        "seconds": round(result.seconds, 3),
        "reasons": [reason.as_json() for reason in result.reasons],
    }
    rate = format_rate(result.written_bytes / max(result.seconds, 1e-9))
    show(
        args,
        document,
        lambda: (
            f"{args.output}: {format_size(result.size_bytes)}, "
            f"{format_size(result.written_bytes)} written in "
            f"{format_duration(result.seconds)} ({rate})"
        ),
    )
    return ExitCode.WARNING if result.reasons else ExitCode.SUCCESS
