"""Progress of parallel VM backups on standard error: a line per disk that is being read.

On a terminal the lines stand still and are drawn over; elsewhere they are printed now and then.

Thread model: told by the threads of the VMs, drawn by one of its own, which `__exit__` joins.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from appliance.base.run_context import Progress
from appliance.base.units import format_rate
from appliance.cli.output import plain, progress_line

if TYPE_CHECKING:
    from appliance.jobs.vm_backup import VmResult
    from appliance.jobs.vm_selection import SelectedVm
    from appliance.sources.frozen import FrozenDisk

_TERMINAL_EVERY_S = 0.5
_LOG_EVERY_S = 10.0
_MOST_LINES = 20


class VmProgress:
    def __init__(self, whole: Progress, *, quiet: bool) -> None:
        self._whole = whole
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._disks: dict[tuple[str, str], Progress] = {}
        self._ended: list[str] = []
        self._drawn = 0
        self._thread = threading.Thread(target=self._follow, name="progress")

    def __enter__(self) -> Self:
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._quiet:
            self._stop.set()
            self._thread.join()
            self._draw(last=True)

    def disk_begins(self, vm: SelectedVm, disk: FrozenDisk, progress: Progress) -> None:
        with self._lock:
            self._disks[vm.point_name, f"disk {disk.number} ({disk.label})"] = progress

    def vm_ends(self, result: VmResult) -> None:
        with self._lock:
            for key in [key for key in self._disks if key[0] == result.vm]:
                del self._disks[key]
            self._ended.append(f"{result.vm}: {result.status}")

    def _follow(self) -> None:
        while not self._stop.wait(_TERMINAL_EVERY_S if self._live else _LOG_EVERY_S):
            self._draw(last=False)

    def _draw(self, *, last: bool) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
            disks = list(self._disks.items())
        lines = [
            f"{vm} {disk}: {progress_line(progress.snapshot())}"
            for (vm, disk), progress in disks[:_MOST_LINES]
        ]
        if len(disks) > 1:
            lines.append(f"together {format_rate(self._whole.snapshot().bytes_per_s)}")
        write: Callable[[str], object] = sys.stderr.write
        if self._live and self._drawn:
            write(f"\033[{self._drawn}F\033[J")
        for line in (*ended, *(() if last else lines)):
            write(f"{plain(line)}\n")
        self._drawn = 0 if last else len(lines)
        sys.stderr.flush()
