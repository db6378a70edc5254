"""What a hypervisor is to the jobs that write to it: `VmTarget`.

Data path: a recovery point -> `jobs.vm_restore` -> `VmTarget.build`, a new VM whose disks it
fills; or `jobs.vm_rollback` -> the disks of the VM that the point is of. vSphere and Hyper-V are
the implementations; nothing here is one's own.

Invariants of every implementation:

- Whatever it creates is written to the intent journal before the call that creates it, carries the
  appliance's marker and the run id until it is finished, and is gone when the block of `build` has
  ended without `finish`. What could not be removed is named by `leftovers`, and
  `VmSource.remove_orphans` takes it later.
- It never removes or overwrites what it has not made, but for the disks that `open_disk` names.
- A sink that was closed without an error is durable at the hypervisor.

Thread model: methods of a target may be called from several threads; a sink belongs to one thread
at a time, different sinks to different threads. They block, and are synchronous.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.ids import RunId
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken, RunContext
from appliance.sources.frozen import DiskIdentity


class TargetError(ApplianceError):
    """The VM cannot be written to the hypervisor; the message says what and why."""

    code = "target.failed"


class NoWriterError(TargetError):
    """There is no way to write the disks of this VM as things are; the message says what would
    allow one."""

    code = "target.no-writer"


class TrackingNotResetError(TargetError):
    """Changed block tracking of this VM could not be reset, and it does not see what would be
    written, so later backups would miss it. Nothing was written. Mend what the message says."""

    code = "restore.tracking-not-reset"


class NoSuchPlaceError(UsageError):
    """What was asked for (folder, pool, host, datastore, network) is not there; the message says
    what is."""

    code = "restore.no-such-place"


class Keep(StrEnum):
    """Whether the new VM gets what the old one had."""

    AUTO = "auto"  # keep it, unless the old VM is still there
    KEEP = "keep"
    NEW = "new"


class Power(StrEnum):
    ON = "on"
    OFF = "off"
    OTHER = "other"  # suspended, or not known


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedDisk:
    """A disk of the point that the new VM shall have."""

    number: int
    label: str
    place: str  # controller and unit in the captured configuration: `scsi0:1`
    size_bytes: int
    data_bytes: int  # at most this much of it is not zeros


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedVmPlace:
    """Where the VM goes; what is empty is chosen."""

    folder: str = ""  # vSphere: in the inventory; Hyper-V: a path of the host
    pool: str = ""  # vSphere
    machine: str = ""  # vSphere: the host that is to run it
    datastore: str = ""  # vSphere


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVmRequest:
    run_id: RunId
    name: str
    hardware: Mapping[str, Any]  # `Manifest.hardware`
    disks: tuple[WantedDisk, ...]
    place: WantedVmPlace = WantedVmPlace()
    networks: tuple[tuple[str, str], ...] = ()  # old name -> new name
    unconnected: frozenset[str] = frozenset()  # old names
    mac: Keep = Keep.AUTO
    identity: Keep = Keep.AUTO  # the VM's and the disks' uuids
    transports: tuple[str, ...] = ()  # only these; empty: all, best first


class DiskSink(Protocol):
    """A disk that is being written."""

    @property
    def size_bytes(self) -> int: ...

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data`.

        Of a new disk writes come in ascending order, and what is never written reads as zeros; of
        an existing one in any order.

        Raises: TargetError, CancelledError.
        """
        ...

    def zero_at(self, offset: int, length: int) -> None:
        """Make the range read as zeros; as `write_at`."""
        ...

    def close(self) -> None:
        """Make it durable and give the disk back; idempotent.

        Raises: TargetError: it may not be durable, or is still held.
        """
        ...


class NewVm(Protocol):
    """A VM under construction, inside the block of `VmTarget.build`."""

    @property
    def transport(self) -> str: ...

    @property
    def same_vm(self) -> bool:
        """It takes the identity of the original, rather than being a copy."""
        ...

    @property
    def reasons(self) -> Sequence[Reason]:
        """What differs from the original, why better transports were not used, and so on."""
        ...

    def open_disk(self, number: int) -> DiskSink:
        """The empty disk to fill; close it, once per disk. Raises TargetError."""
        ...

    def finish(self) -> str:
        """Make it an ordinary VM, which stays when the block ends; return its key.

        All disks are closed. Raises: TargetError: the end of the block removes it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingDisk:
    label: str
    identity: DiskIdentity
    size_bytes: int
    file_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingVm:
    """A VM as it is now, seen as something to write to."""

    key: str
    name: str
    power: Power
    has_snapshots: bool
    needs_consolidation: bool
    disks: tuple[ExistingDisk, ...]


class VmTarget(Protocol):
    @property
    def name(self) -> str:
        """The name of the registered host."""
        ...

    def build(self, request: NewVmRequest, context: RunContext) -> AbstractContextManager[NewVm]:
        """Make a VM with empty disks for the block; at its end it is finished, or gone.

        The end of the block raises nothing of its own; see `leftovers`.

        Raises: TargetError, SourceError (of the hypervisor), UsageError, CancelledError.
        """
        ...

    def leftovers(self, run_id: RunId) -> tuple[Reason, ...]:
        """What the end of a run's block could not remove; a second call returns nothing."""
        ...

    def power_on(self, key: str, *, same_vm: bool, cancel: CancelToken) -> None:
        """Start it. `same_vm`: should the hypervisor ask, it is the original, not a copy."""
        ...

    # A VM that is there

    def look(self, key: str) -> ExistingVm: ...

    def power_off(self, key: str, *, within_s: float, cancel: CancelToken) -> None:
        """Shut the guest down; pull the plug when it has not ended in time. Idempotent."""
        ...

    def refusal(self, key: str, disk: ExistingDisk, run_id: RunId) -> Reason | None:
        """Why the disk could not be written if its VM were off; None: nothing is known."""
        ...

    def open_disk(self, key: str, disk: ExistingDisk, run_id: RunId) -> DiskSink:
        """The disk of a VM that is off and has no snapshots. Raises NoWriterError, TargetError."""
        ...

    def reset_tracking(self, key: str, run_id: RunId) -> tuple[Reason, ...]:
        """Make every earlier change id void, so that the next backup reads everything.

        Raises: TrackingNotResetError: some may still be believed.
        """
        ...

    def roll_back_configuration(
        self, key: str, hardware: Mapping[str, Any], networks: Mapping[str, str]
    ) -> tuple[Reason, ...]:
        """Set processors, memory, boot and networks as captured; the VM is off."""
        ...
