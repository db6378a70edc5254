"""Write a disk of a recovery point out: `restore image`.

Data path: the leaves of the disk's tree, in order, are handed to a few worker threads; each loads
the chunks of its segment (8 MiB) past the chunk cache, proven against their digests, and writes
them in contiguous runs. Holes are not written. Memory: a few MiB per worker.

Whatever ends a restore early (an error, cancelling, Ctrl-C), the output's name is not touched and
nothing is left behind; `restore_targets` holds the rules.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from appliance.base.bounded_map import bounded_map
from appliance.base.errors import ApplianceError
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext, Stage
from appliance.base.units import GIB, format_size
from appliance.jobs.restore_targets import DeviceHalfWrittenError, RestoreTarget, open_target
from appliance.repository.chunk_store import ChunkStore
from appliance.repository.errors import CorruptError, PointNotFoundError
from appliance.repository.format import BLOCK_BYTES, SEGMENT_BYTES
from appliance.repository.image_tree import LeafEntry, TreeReader, segment_count
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.sources.image_format import ImageFormat

__all__ = ["ImageFormat", "RestoreResult", "restore_image"]

_AHEAD = 2  # segments per worker: queued, not loaded
_ZERO_MOST_BYTES = GIB  # so that cancelling is noticed
# About 2 MiB. With a whole segment at once the allocator returns and faults in 8 MiB for each:
# 520,000 page faults and 1.0 s of system time per 1.5 GiB, against none and 0.05 s (measured).
_CHUNKS_AT_ONCE = 32
_Run = tuple[int, list[bytes | memoryview]]  # first byte in the segment, buffers


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
        restore = _DiskRestore(
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


class _DiskRestore:
    """The state of writing one disk out."""

    def __init__(
        self,
        chunks: ChunkStore,
        tree: TreeReader,
        size_bytes: int,
        target: RestoreTarget,
        workers: int,
        context: RunContext,
    ) -> None:
        self._chunks = chunks
        self._tree = tree
        self._size_bytes = size_bytes
        self._target = target
        self._workers = workers + 1  # one writes (targets write one at a time), the rest decode
        self._context = context
        self.written_bytes = 0

    def run(self) -> None:
        self._context.progress.expect(self._size_bytes)
        written = bounded_map(
            self._segment, self._leaves(), workers=self._workers, ahead=_AHEAD, name="restore"
        )
        with closing(written):
            for written_bytes in written:
                self.written_bytes += written_bytes

    def _leaves(self) -> Iterator[tuple[int, bytes]]:
        """Yield (segment, leaf), leaving out what is between them."""
        done = 0
        for segment, digest in self._tree.leaves(0, segment_count(self._size_bytes)):
            self._leave_out(done, segment * SEGMENT_BYTES)
            yield segment, digest
            done = (segment + 1) * SEGMENT_BYTES
        self._leave_out(done, self._size_bytes)

    def _leave_out(self, start: int, end: int) -> None:
        """Account for [start, end), which is all zeros."""
        while start < end:
            self._context.cancel.check()
            length = min(end - start, _ZERO_MOST_BYTES if self._zeroes else end - start)
            if self._zeroes:
                self._target.zero(start, length)
            self._context.progress.advance(length)
            start += length

    @property
    def _zeroes(self) -> bool:
        return self._target.holds_old_content

    # One segment, on a worker thread

    def _segment(self, work: tuple[int, bytes]) -> int:
        """Write one segment; return the bytes written."""
        segment, digest = work
        self._context.cancel.check()
        base = segment * SEGMENT_BYTES
        length = min(SEGMENT_BYTES, self._size_bytes - base)
        entries = self._tree.load_leaf(digest).entries
        written = position = 0
        for first in range(0, len(entries), _CHUNKS_AT_ONCE):
            for start, buffers in self._load(entries[first : first + _CHUNKS_AT_ONCE], length):
                started_s = time.perf_counter()
                if self._zeroes and position < start:
                    self._target.zero(base + position, start - position)
                self._target.write(base + start, buffers)
                size = sum(map(len, buffers))
                written, position = written + size, start + size
                self._context.progress.spend(Stage.WRITE, time.perf_counter() - started_s)
        if self._zeroes and position < length:
            self._target.zero(base + position, length - position)
        self._context.progress.advance(length)
        return written

    def _load(self, entries: Sequence[LeafEntry], length: int) -> list[_Run]:
        """Return the contiguous runs of these chunks, cut at `length`."""
        started_s = time.perf_counter()
        raw_of = self._chunks.load_many([entry.digest for entry in entries])
        self._context.progress.spend(Stage.READ, time.perf_counter() - started_s)
        return list(_runs(entries, raw_of, length))


def _runs(entries: Sequence[LeafEntry], raw_of: dict[bytes, bytes], length: int) -> Iterator[_Run]:
    first, end = 0, 0
    buffers: list[bytes | memoryview] = []
    for entry in entries:
        raw = raw_of[entry.digest]
        start = entry.start * BLOCK_BYTES
        if len(raw) != entry.blocks * BLOCK_BYTES or start >= length:
            raise CorruptError(f"chunk {entry.digest.hex()[:16]}… does not fit its leaf")
        if buffers and start != end:
            yield first, buffers
            buffers = []
        if not buffers:
            first = start
        end = start + len(raw)
        buffers.append(raw if end <= length else memoryview(raw)[: length - start])
    if buffers:
        yield first, buffers


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
