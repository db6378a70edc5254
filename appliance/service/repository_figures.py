"""Figures of the repository that cost a walk over every shared leaf, kept for a while.

Thread model: any thread; the walk is on a thread of its own, one at a time, and so seldom that it
takes a few hundredths of a core. `stop` waits for the one that goes on.
"""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, StorageError
from appliance.base.log import EventLog
from appliance.repository.repository import Repository
from appliance.repository.stats import RepositoryStats, repository_stats

log = EventLog(__name__)

KEPT_S = 15 * 60.0
_QUICK_S = 0.05
_SHARE = 50  # walking costs at most one part in so many


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryDisk:
    total_bytes: int
    free_bytes: int


def repository_disk(path: Path) -> RepositoryDisk:
    """The file system that the repository is on. Raises StorageError: it is away."""
    try:
        found = shutil.disk_usage(path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    return RepositoryDisk(total_bytes=found.total, free_bytes=found.free)


class RepositoryFigures:
    def __init__(self, repository: Repository, clock: Clock, *, kept_s: float = KEPT_S) -> None:
        self._repository = repository
        self._clock = clock
        self._kept_s = kept_s
        self._lock = threading.Lock()
        self._stats: RepositoryStats | None = None
        self._good_until_s = 0.0
        self._walk_s = 0.0
        self._thread: threading.Thread | None = None
        self._stopped = False

    def known(self) -> RepositoryStats | None:
        """The newest figures, at once; None: not known yet. Old ones are made anew meanwhile."""
        with self._lock:
            old = self._stats is None or self._clock.monotonic_s() > self._good_until_s
            idle = self._thread is None or not self._thread.is_alive()
            if old and idle and not self._stopped:
                self._thread = threading.Thread(target=self._walk, name="repository-figures")
                self._thread.start()
            return self._stats

    def fresh(self) -> RepositoryStats | None:
        """Of now, if walking is quick here; else what is known, after the first walk."""
        with self._lock:
            quick = self._walk_s < _QUICK_S
            if quick:
                self._good_until_s = 0.0
        known = self.known()
        return known if known is not None and not quick else self.wait()

    def wait(self) -> RepositoryStats | None:
        """As `known`, after the walk that goes on."""
        self.known()
        thread = self._thread
        if thread is not None:
            thread.join()
        return self._stats

    def stop(self) -> None:
        """Idempotent."""
        with self._lock:
            self._stopped = True
        if self._thread is not None:
            self._thread.join()

    def _walk(self) -> None:
        begun_s = self._clock.monotonic_s()
        try:
            stats = repository_stats(self._repository)
        except ApplianceError as error:
            log.warning("repository figures are not known", error=error)
            return
        now_s = self._clock.monotonic_s()
        with self._lock:
            self._stats = stats
            self._walk_s = now_s - begun_s
            self._good_until_s = now_s + max(self._kept_s, _SHARE * (now_s - begun_s))
