"""How one backup run goes about it: what it builds on, and who has a say while it reads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from appliance.base.run_context import CancelToken, Progress
from appliance.blocks.device import BlockReader
from appliance.jobs.broken_run import BrokenRun, BrokenRunJournal
from appliance.jobs.cbt_audit import AuditPolicy
from appliance.repository.manifest import Manifest
from appliance.sources.frozen import FrozenDisk

OpenForReading = Callable[[FrozenDisk, CancelToken], AbstractContextManager[BlockReader]]
"""Waits for its turn to read a disk; the reader it gives may be slowed down."""


def read_directly(disk: FrozenDisk, cancel: CancelToken) -> AbstractContextManager[BlockReader]:
    return nullcontext(disk.reader)


def nobody_follows(disk: FrozenDisk, progress: Progress) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupPlan:
    """The default is that of disk images."""

    full: bool = False
    parent: Manifest | None = None  # what `FrozenDisk.changed` was asked against
    broken: BrokenRun | None = None  # what `changed_since_broken` was asked against
    journal: BrokenRunJournal | None = None
    audit: AuditPolicy | None = None
    disks_at_once: int = 1
    open_for_reading: OpenForReading = read_directly
    follow: Callable[[FrozenDisk, Progress], None] = nobody_follows
    """Hears of each disk as its transfer begins, with the disk's own progress."""
