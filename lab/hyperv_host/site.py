"""What the machines of a practice Hyper-V host share.

Thread model: set up once, then read by any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lab.faults import FaultSwitches
from lab.hyperv_host.errors import NotFoundError
from lab.hyperv_host.file_holds import FileHolds, NoHolds
from lab.hyperv_host.iscsi import WholeDisk
from lab.hyperv_host.windows_path import Volumes


def _no_disk(number: int) -> WholeDisk:
    raise NotFoundError(f"the host has no disk {number}")


def _never() -> bool:
    return False


@dataclass(slots=True, kw_only=True)
class HostSite:
    volumes: Volumes
    run_folder: Path  # its path must be short
    faults: FaultSwitches
    holds: FileHolds = field(default_factory=NoHolds)
    reachable_switches: frozenset[str] = frozenset()
    stopping: Callable[[], bool] = _never
    heartbeat_s: float = 5.0
    whole_disk: Callable[[int], WholeDisk] = _no_disk  # for pass-through, by the host's number
