"""What a virtual machine is at a moment: power, snapshots, guest, question. Values.

Names of states are VMware's. Source: vSphere Web Services API (VirtualMachineRuntimeInfo,
VirtualMachineSnapshotTree, GuestInfo, VirtualMachineQuestionInfo).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from lab.esx.errors import HostError
from lab.esx.hardware import VmConfig


class PowerState(StrEnum):
    ON = "poweredOn"
    OFF = "poweredOff"


class Heartbeat(StrEnum):
    GRAY = "gray"  # tools never reported
    GREEN = "green"
    RED = "red"  # they did, and do not answer now


class VmStateError(HostError):
    """The virtual machine is not in a state for this."""

    fault = "InvalidState"


class PowerStateError(VmStateError):
    """Fields: requestedState, existingState."""

    fault = "InvalidPowerState"


class TaskInProgressError(VmStateError):
    """Another operation has the virtual machine."""

    fault = "TaskInProgress"


class NotSupportedError(HostError):
    """This host cannot do that, ever."""

    fault = "NotSupported"


class NotFoundError(HostError):
    """The object is not there."""

    fault = "NotFound"


class CancelledError(HostError):
    """The task was cancelled."""

    fault = "RequestCanceled"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestInfo:
    """`ready_line` is what the guest announced itself with; empty while tools do not run."""

    tools_running: bool = False
    heartbeat: Heartbeat = Heartbeat.GRAY
    host_name: str = ""
    ip_address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    key: str
    label: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """An operation waits for `LabVm.answer`."""

    id: str
    message_id: str
    text: str
    choices: tuple[Choice, ...]
    default_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """`config` is frozen: its disks name files that are read-only now, and their change ids."""

    id: int
    name: str
    description: str
    created_at: datetime
    power: PowerState
    quiesced: bool
    config: VmConfig
    parent: int | None
