"""Write a disk of a recovery point out: `restore image`.

Data path: `disk_restore` reads the disk and writes it to a `restore_targets` target.

Whatever ends a restore early (an error, cancelling, Ctrl-C), the output's name is not touched and
nothing is left behind; `restore_targets` holds the rules.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from appliance.base.errors import ApplianceError
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.base.units import format_size
from appliance.jobs.disk_restore import DiskRestore
from appliance.jobs.restore_targets import DeviceHalfWrittenError, open_target
from appliance.repository.errors import PointNotFoundError
from appliance.repository.format import SEGMENT_BYTES
from appliance.repository.image_tree import TreeReader, segment_count
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.sources.image_format import ImageFormat

__all__ = ["ImageFormat", "RestoreResult", "restore_image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    size_bytes: int
    written_bytes: int  # what is not written is a hole
    seconds: float
    reasons: tuple[Reason, ...] = ()


def restore_image(
    repository: Repository,
    manifest: Manifest,
    disk_number: int,
    output: Path,
    *,
    format: ImageFormat = ImageFormat.RAW,
    force: bool = False,
    sync: bool = False,
    context: RunContext | None = None,
) -> RestoreResult:
    """Write one disk to `output`, a new file or, with `force`, an old one or a block device.

    `sync`: return when it is on the disk. What replaces something always is.

    Raises:
        PointNotFoundError, OutputExistsError, OutputTooSmallError, UsageError: nothing was done.
        CorruptError, CancelledError, StorageFullError, StorageError, ExternalProgramError: nothing
            is left; on a block device, DeviceHalfWrittenError instead, with the cause as its cause.
    """
    started_s = time.perf_counter()
    disk = manifest.disk(disk_number)
    if disk is None:
        raise PointNotFoundError(f"{manifest.point_id} disk {disk_number}")
    reader = repository.open_image(manifest, disk_number)
    try:
        reasons = _space_warning(reader.tree, disk.size_bytes, output)
        target = open_target(output, format, disk.size_bytes, force=force, sync=sync)
        restore = DiskRestore(
            repository.chunks,
            reader.tree,
            disk.size_bytes,
            target,
            repository.options.workers,
            context or RunContext.quiet(),
        )
        try:
            restore.run()
            target.commit()
        except BaseException as error:
            target.abort()
            if target.holds_old_content and isinstance(error, ApplianceError):
                raise DeviceHalfWrittenError(f"{output}: half written: {error}") from error
            raise
    finally:
        reader.close()
    return RestoreResult(
        size_bytes=disk.size_bytes,
        written_bytes=restore.written_bytes,
        seconds=time.perf_counter() - started_s,
        reasons=reasons,
    )


def _space_warning(tree: TreeReader, size_bytes: int, output: Path) -> tuple[Reason, ...]:
    """The file is sparse, so how much it takes is only known within a segment per leaf."""
    try:
        free = os.statvfs(output.absolute().parent)
    except OSError:
        return ()  # opening the target says it better
    free_bytes = free.f_bavail * free.f_frsize
    most_bytes = min(
        sum(SEGMENT_BYTES for _ in tree.leaves(0, segment_count(size_bytes))), size_bytes
    )
    if output.is_block_device() or most_bytes <= free_bytes:
        return ()
    return (
        Reason(
            "restore.little-space",
            f"up to {format_size(most_bytes)} to write, {format_size(free_bytes)} free",
            "free space if the restore fails for lack of it",
        ),
    )
