"""`holdfast backup image`: disk image files or block devices become one recovery point.

`backup vm` has a module of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.base.errors import UsageError
from appliance.base.run_context import Progress, RunContext
from appliance.base.units import format_duration, format_rate, format_size
from appliance.cli import vm_backup_commands
from appliance.cli.options import open_repository
from appliance.cli.output import ExitCode, note_reasons, progress_shown, show

if TYPE_CHECKING:
    from appliance.blocks.extents import Extent
    from appliance.jobs.backup import BackupOutcome

_CHANGED_LIMIT_BYTES = 256 << 20
_VM_NAME_CHARS = 255


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    group = commands.add_parser("backup", help="make a recovery point")
    verbs = group.add_subparsers(metavar="SOURCE", required=True)
    image = verbs.add_parser(
        "image", parents=[common], help="back up disk image files or block devices as one VM"
    )
    image.add_argument("disks", nargs="+", type=Path, metavar="DISK")
    image.add_argument("--vm", required=True, metavar="NAME", help="the VM these disks belong to")
    image.add_argument(
        "--changed",
        type=Path,
        action="append",
        metavar="FILE",
        help='JSON list of {"start", "length"} in bytes: what changed since the newest point; '
        "once per disk, in the same order",
    )
    image.add_argument(
        "--format",
        default="auto",
        choices=("auto", "raw", "qcow2", "vmdk", "vhdx", "vhd"),
        help="format of the disks (auto: by content)",
    )
    image.add_argument(
        "--allow-external",
        action="store_true",
        help="open images that take content from other files; only those no guest has written",
    )
    image.add_argument("--full", action="store_true", help="do not build on an earlier point")
    image.set_defaults(run=run_backup_image)
    vm_backup_commands.add(verbs, common)


def read_changed(path: Path) -> list[Extent]:
    """Parse and check a --changed file. Raises UsageError naming the entry."""
    from appliance.blocks.extents import Extent, normalise

    try:
        if path.stat().st_size > _CHANGED_LIMIT_BYTES:
            raise UsageError(f"{path}: larger than {format_size(_CHANGED_LIMIT_BYTES)}")
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not isinstance(entries, list):
        raise UsageError(f"{path}: not a JSON list")
    extents = []
    for number, entry in enumerate(entries):
        start, length = (
            (entry.get("start"), entry.get("length")) if isinstance(entry, dict) else (None, None)
        )
        if type(start) is not int or type(length) is not int or start < 0 or length < 0:
            raise UsageError(f'{path}: entry {number} is not {{"start": bytes, "length": bytes}}')
        if length:
            extents.append(Extent(start, length))
    return normalise(extents)


def run_backup_image(args: argparse.Namespace) -> int:
    from appliance.base.consistency import Consistency
    from appliance.jobs.backup import back_up
    from appliance.sources.frozen import FrozenDisk, FrozenVm
    from appliance.sources.image import open_disk_image
    from appliance.sources.image_format import ImageFormat

    if not 0 < len(args.vm) <= _VM_NAME_CHARS:
        raise UsageError(f"--vm {args.vm[:80]!r}: 1 to {_VM_NAME_CHARS} characters")
    changed: Sequence[Path | None] = args.changed or [None] * len(args.disks)
    if len(changed) != len(args.disks):
        raise UsageError(f"{len(args.disks)} disks and {len(changed)} --changed files")
    context = RunContext(args.cancel, Progress())
    started_s = time.perf_counter()
    with open_repository(args) as repository, ExitStack() as opened:
        created_at = repository.clock.now()
        disks = []
        for number, path in enumerate(args.disks):
            reader = opened.enter_context(
                open_disk_image(path, ImageFormat(args.format), allow_external=args.allow_external)
            )
            listed = changed[number]
            extents = None if listed is None else read_changed(listed)
            if extents and extents[-1].end > reader.size_bytes:
                raise UsageError(f"{listed}: {extents[-1]} lies outside {path}")
            disks.append(
                FrozenDisk(number=number, label=_label(path), reader=reader, changed=extents)
            )
        vm = FrozenVm(
            name=args.vm,
            created_at=created_at,
            consistency=Consistency.OFFLINE,
            source="image",
            disks=disks,
        )
        with progress_shown(args, context.progress):
            outcome = back_up(repository, vm, context, full=args.full)
    seconds = time.perf_counter() - started_s
    note_reasons(outcome.reasons)
    show(args, _as_json(outcome, seconds, context), lambda: _as_text(outcome, seconds))
    warned = any(reason.warning for reason in outcome.reasons)
    return ExitCode.WARNING if warned else ExitCode.SUCCESS


def _label(path: Path) -> str:
    """Its name; bytes of it that are no UTF-8 as `\\xNN`, for a label is text."""
    return os.fsencode(path.name).decode(errors="backslashreplace")


def _as_json(outcome: BackupOutcome, seconds: float, context: RunContext) -> dict[str, Any]:
    bottleneck = context.progress.snapshot().bottleneck
    return {
        "point_id": outcome.manifest.point_id,
        "vm": outcome.manifest.vm,
        "created_at": outcome.manifest.created_at.isoformat(),
        "consistency": outcome.manifest.consistency,
        "parent": outcome.manifest.parent,
        "seconds": round(seconds, 3),
        "bottleneck": bottleneck,
        "disks": [
            {
                "number": disk.number,
                "label": disk.label,
                "mode": disk.mode,
                "size_bytes": disk.image.size_bytes,
                "read_bytes": disk.image.read_bytes,
                "changed_bytes": disk.image.changed_bytes,
                "new_bytes": disk.image.new_bytes,
                "stored_bytes": disk.image.stored_bytes,
                "reasons": [reason.as_json() for reason in disk.reasons],
            }
            for disk in outcome.disks
        ],
    }


def _as_text(outcome: BackupOutcome, seconds: float) -> str:
    lines = [f"recovery point {outcome.manifest.point_id} of {outcome.manifest.vm}"]
    for disk in outcome.disks:
        image = disk.image
        lines.append(
            f"  disk {disk.number} ({disk.label}): {format_size(image.size_bytes)}, "
            f"{disk.mode}, read {format_size(image.read_bytes)}, "
            f"changed {format_size(image.changed_bytes)}, new {format_size(image.new_bytes)}, "
            f"stored {format_size(image.stored_bytes)}"
        )
    read_bytes = sum(disk.image.read_bytes for disk in outcome.disks)
    lines.append(
        f"  {format_duration(seconds)}, {format_rate(read_bytes / max(seconds, 1e-9))} read"
    )
    return "\n".join(lines)
