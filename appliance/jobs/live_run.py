"""A run while it goes on: what it is doing, per disk how fast, how long still, and what limits it.

The runner tells it; the daemon's local socket and the UI read snapshots. Nothing of it is durable:
what is worth keeping stands in the result.

Thread model: told by the run's threads, read by any.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from appliance.base.clock import Clock
from appliance.base.ids import RunId
from appliance.base.run_context import (
    CancelToken,
    Progress,
    ProgressSnapshot,
    RunContext,
    Stage,
)


class CancelCause(StrEnum):
    """Who ends a run before its time."""

    ADMINISTRATOR = "administrator"
    SHUTDOWN = "shutdown"  # of the daemon; the run is repeated at its next start


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveDisk:
    vm: str
    disk: str
    progress: ProgressSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSnapshot:
    run_id: RunId
    step: str  # what it is doing, for people
    vm_count: int
    ended_vm_count: int
    whole: ProgressSnapshot
    disks: tuple[LiveDisk, ...]  # those that are being read

    def as_json(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "step": self.step,
            "vm_count": self.vm_count,
            "ended_vm_count": self.ended_vm_count,
            **progress_document(self.whole),
            "disks": [
                {"vm": disk.vm, "disk": disk.disk, **progress_document(disk.progress)}
                for disk in self.disks
            ],
        }


def progress_document(now: ProgressSnapshot) -> dict[str, Any]:
    return {
        "done_bytes": now.done_bytes,
        "total_bytes": now.total_bytes,
        "seconds": round(now.seconds, 3),
        "bytes_per_s": round(now.bytes_per_s),
        "eta_s": None if now.eta_s is None else round(max(now.eta_s, 0.0), 1),
        "bottleneck": now.bottleneck,
    }


class LiveRun:
    def __init__(self, run_id: RunId, clock: Clock) -> None:
        self.run_id = run_id
        self.context = RunContext(CancelToken(), Progress(clock))
        self.shutdown = CancelToken()  # what is still done for a run that somebody cancelled
        self._lock = threading.Lock()
        self._cause: CancelCause | None = None
        self._step = "beginning"
        self._vm_count = 0
        self._ended_vms = 0
        self._disks: dict[tuple[str, str], Progress] = {}

    # Told by the run

    def begins(self, step: str) -> None:
        with self._lock:
            self._step = step

    def expects_vms(self, count: int) -> None:
        with self._lock:
            self._vm_count = count

    def disk_begins(self, vm: str, disk: str, progress: Progress) -> None:
        with self._lock:
            self._disks[vm, disk] = progress

    def vm_ends(self, vm: str) -> Stage | None:
        """Count it, forget its disks; return what limited most of them."""
        with self._lock:
            self._ended_vms += 1
            mine = [key for key in self._disks if key[0] == vm]
            limits = [self._disks.pop(key).snapshot().bottleneck for key in mine]
        known = [stage for stage in limits if stage is not None]
        return max(known, key=known.count) if known else None

    # Asked by others

    def cancel(self, cause: CancelCause) -> None:
        """The first cause counts. Idempotent."""
        with self._lock:
            self._cause = self._cause or cause
        if cause is CancelCause.SHUTDOWN:
            self.shutdown.cancel()
        self.context.cancel.cancel()

    @property
    def cancel_cause(self) -> CancelCause | None:
        with self._lock:
            return self._cause

    def snapshot(self) -> LiveSnapshot:
        with self._lock:
            disks = list(self._disks.items())
            step, vm_count, ended = self._step, self._vm_count, self._ended_vms
        return LiveSnapshot(
            run_id=self.run_id,
            step=step,
            vm_count=vm_count,
            ended_vm_count=ended,
            whole=self.context.progress.snapshot(),
            disks=tuple(
                LiveDisk(vm=vm, disk=disk, progress=progress.snapshot())
                for (vm, disk), progress in disks
            ),
        )
