"""What a source hands over for one run: disks that do not change while they are read.

Data path: a source (image files, vSphere) freezes a VM and describes it with these; `jobs.backup`
reads the disks and commits a recovery point. Neither knows the other.

Invariants: a `FrozenVm` is valid inside the block that froze it. Every changed-extents list is a
superset of what differs from the point it was asked for, and lies inside the disk.

Thread model: values; a disk's reader and transfer may be used from several threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from appliance.base.consistency import Consistency
from appliance.base.reasons import Reason
from appliance.blocks.device import BlockReader
from appliance.blocks.extents import Extent


class Access(StrEnum):
    """How a transport can read a disk."""

    RANDOM = "random"
    STREAM = "stream"  # in ascending order, all of it: a change list saves nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """How a disk was read, for the result of the run."""

    transport: str
    access: Access = Access.RANDOM
    refusals: tuple[Reason, ...] = ()  # why better transports were not used, best first
    reasons: tuple[Reason, ...] = ()  # what happened on the way: retries, another transport
    reopened: int = 0


class Transfer(Protocol):
    """The connection behind a disk's reader. It opens at the first read, or at `begin`."""

    def begin(self, planned: Sequence[Extent] | None) -> None:
        """Open the best transport; once it is open, this does nothing.

        Args:
            planned: what will be read, as a hint for reading ahead; None: all of it.

        Raises:
            DiskNotCoverableError: no transport can ever read this disk as things are.
            SourceError: it could not be opened, with all retries.
        """
        ...

    def report(self) -> TransferReport:
        """Call after `begin`, and again when all is read; later calls know more.

        Raises:
            SourceError: what was read so far cannot all be of one frozen state.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskIdentity:
    """What must be equal for a change id of one run to be asked about in another."""

    uuid: str  # of the backing; empty when the hypervisor has none
    place: str  # controller and unit: `scsi0:1`
    change_id: str | None = None  # as the hypervisor said it, whether it is believed or not


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDisk:
    """A disk of an earlier state of the VM that the repository holds."""

    number: int
    label: str
    size_bytes: int
    change_id: str | None  # None: there was none, or it is not believed any more
    identity: DiskIdentity | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownState:
    """An earlier state that changes can be asked against: a recovery point, or a broken run."""

    run_id: str
    instance: str  # `FrozenVm.instance` of then
    disks: tuple[KnownDisk, ...]

    def disk(self, number: int) -> KnownDisk | None:
        return next((disk for disk in self.disks if disk.number == number), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenDisk:
    """A disk that does not change while it is read."""

    number: int
    label: str
    reader: BlockReader
    changed: Sequence[Extent] | None = None  # since the parent; None: not known
    changed_since_broken: Sequence[Extent] | None = None  # since the broken run; None: not known
    change_id: str | None = None  # the base of the next change list; None: do not ask
    reasons: tuple[Reason, ...] = ()
    identity: DiskIdentity | None = None
    transfer: Transfer | None = None  # None: the reader is open, and reads a local file
    datastore: str = ""  # what its reads load, for limits and the latency brake


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedDisk:
    """A disk that is not in the recovery point, and why."""

    label: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenVm:
    """What a source has frozen for one run."""

    name: str  # of the VM's recovery points
    created_at: datetime
    consistency: Consistency
    source: str  # "image", "vsphere"
    disks: Sequence[FrozenDisk]
    hardware: dict[str, Any] = field(default_factory=dict)  # as captured: a JSON document
    instance: str = ""  # tells this VM from another one of the same name
    skipped: tuple[SkippedDisk, ...] = ()
    reasons: tuple[Reason, ...] = ()  # of the VM, not of one disk
