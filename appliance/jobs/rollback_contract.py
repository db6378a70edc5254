"""What is asked of a roll-back (`jobs.vm_rollback`) and what it answers.

Values only: the command line, the API and the service make and read them. Thread model: frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from appliance.base.ids import RunId
from appliance.base.reasons import Reason
from appliance.base.run_context import Progress


class RollbackMode(StrEnum):
    CHANGED = "changed"  # the hypervisor said what has changed
    COMPARED = "compared"  # the whole disk was read and compared


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackOptions:
    power_off: bool = False  # consent, if the VM runs
    power_on: bool = False
    verify: bool = True
    configuration: bool = False
    networks: tuple[tuple[str, str], ...] = ()  # for the configuration
    shutdown_within_s: float = 300.0
    transports: tuple[str, ...] = ()  # for reading


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBackDisk:
    number: int
    label: str
    size_bytes: int
    mode: RollbackMode
    written_bytes: int
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackResult:
    run_id: RunId
    vm: str
    key: str
    disks: tuple[RolledBackDisk, ...]
    verified: bool
    powered_on: bool
    seconds: float
    vm_reasons: tuple[Reason, ...]

    @property
    def reasons(self) -> list[Reason]:
        return [*self.vm_reasons, *(reason for disk in self.disks for reason in disk.reasons)]


PhaseBegins = Callable[[str, Progress], None]
"""Told of each phase of a disk (`compare disk 0`, …) with its progress."""
