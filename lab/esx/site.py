"""What all virtual machines of a lab share: datastores, locks, switches, folders, limits.

And how the engine talks to who asked for an operation: `Work` is what the operation sees of its
task. Thread model: a Site is set up once and then only read; its members are thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from lab.esx.datastore import Datastores
from lab.esx.file_locks import FileLocks
from lab.esx.nas_datastore import NasTimings
from lab.faults import FaultSwitches

CHANGED_AREAS_MAX = 2000


class Work(Protocol):
    """The task of an operation."""

    def progress(self, percent: int) -> None: ...

    def wait_cancelled(self, timeout_s: float) -> bool:
        """Wait for at most that long; True as soon as the task is cancelled."""
        ...


class NoTask:
    """For operations that nobody watches."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def progress(self, percent: int) -> None:
        del percent

    def wait_cancelled(self, timeout_s: float) -> bool:
        return self.cancelled.wait(timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """`folder` takes serial logs and sockets; its path must be short (a socket's limit is 108)."""

    folder: Path
    datastores: Datastores
    locks: FileLocks
    faults: FaultSwitches = field(default_factory=FaultSwitches)
    changed_areas_max: int = CHANGED_AREAS_MAX
    heartbeat_s: float = 5.0
    nas: NasTimings = field(default_factory=NasTimings)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
