"""What a hypervisor is to the jobs that read from it: `VmSource`.

Data path: `jobs.vm_selection` picks VMs from `list_vms`; `jobs.vm_backup` freezes each and hands
the `FrozenVm` to `jobs.backup`. vSphere is the first implementation; nothing here is vSphere's own.

Invariants of every implementation:

- Whatever it creates on the hypervisor (a snapshot, an attached disk, a lease) is written to the
  intent journal before the call that creates it, carries the appliance's marker and the run id,
  and is gone when the block of `freeze` has ended, however it ended.
- What it could not remove is named by a warning, and `remove_orphans` takes it later.
- It never removes what does not carry this appliance's marker.

Thread model: all methods may be called from several threads. They block, and are synchronous.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from appliance.base.consistency import Consistency, GuestLogs
from appliance.base.errors import SourceError, UsageError
from appliance.base.ids import RunId
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.sources.frozen import FrozenVm, KnownState
from appliance.sources.vm_identity import VmIdentity


class DiskNotCoverableError(SourceError):
    """No way to read this disk exists as things are; the reasons stand beside it."""

    code = "source.disk-not-coverable"

    def __init__(self, label: str, refusals: tuple[Reason, ...]) -> None:
        words = "; ".join(f"[{refusal.code}] {refusal.text}" for refusal in refusals)
        super().__init__(f"{label}: {words or 'no transport is configured'}")
        self.refusals = refusals


class VmNotProtectableError(SourceError):
    """This VM cannot be backed up as it is; the message says what has to be changed first."""

    code = "source.vm-not-protectable"

    def __init__(self, vm: str, obstacle: Reason) -> None:
        super().__init__(f"{vm}: {obstacle.text}; next step: {obstacle.next_step}")
        self.obstacle = obstacle


class VmNotFoundError(UsageError):
    """No VM of the registered hosts matches; `holdfast vm list` shows what there is."""

    code = "source.vm-not-found"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceVm:
    """A VM as it stands in a hypervisor's inventory."""

    key: str  # of the source: unique and stable as long as the VM is registered
    name: str  # not unique
    identity: VmIdentity
    folder: str = ""  # inventory path of what it lies in
    host: str = ""  # the machine that runs it, for limits
    datastores: tuple[str, ...] = ()
    size_bytes: int = 0
    obstacles: tuple[Reason, ...] = ()  # why it cannot be backed up at all; empty: it can


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyPolicy:
    """The best consistency to try for, and the least that still makes a recovery point."""

    wanted: Consistency = Consistency.APPLICATION
    least: Consistency = Consistency.CRASH


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeRequest:
    """How one VM is to be frozen for one run."""

    run_id: RunId
    point_name: str  # becomes `FrozenVm.name`
    consistency: ConsistencyPolicy = ConsistencyPolicy()
    parent: KnownState | None = None  # asked for `FrozenDisk.changed`
    broken: KnownState | None = None  # asked for `FrozenDisk.changed_since_broken`
    reset_due: bool = False  # the tracking failed an audit, which a full run must not forget
    transports: tuple[str, ...] = ()  # only these; empty: all, best first
    guest_logs: GuestLogs = GuestLogs.KEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """Something a dead run had left on the hypervisor."""

    vm: str
    what: str
    run_id: str
    failure: str = ""  # why it is still there; empty: it has been removed


class VmSource(Protocol):
    @property
    def name(self) -> str:
        """The name of the registered host."""
        ...

    def list_vms(self) -> list[SourceVm]:
        """Return all VMs, also those that cannot be backed up; no templates.

        Raises: SourceError.
        """
        ...

    def keys_with_tag(self, tag: str) -> frozenset[str]:
        """Return the keys of the VMs that carry a tag, by its name or `category/name`.

        None carry a tag that does not exist. Raises: SourceError.
        """
        ...

    def freeze(
        self, vm: SourceVm, request: FreezeRequest, context: RunContext
    ) -> AbstractContextManager[FrozenVm]:
        """Freeze the VM for the block. At its end readers are closed and the snapshot is gone.

        The end of the block raises nothing of its own: what could not be removed is a reason in
        `leftovers`, and is taken by the next `remove_orphans`.

        Raises:
            VmNotProtectableError: a snapshot would be refused, or cover none of its disks.
            SourceError: with `retryable` set when another attempt may succeed.
            CancelledError.
        """
        ...

    def leftovers(self, run_id: RunId) -> tuple[Reason, ...]:
        """What the end of a run's `freeze` has to say: not removed, needs consolidation.

        Call once the block has ended; a second call for the same run returns nothing.
        """
        ...

    def remove_orphans(self, alive: Callable[[], Collection[str]]) -> list[Orphan]:
        """Remove what dead runs of this appliance have left. Repeatable.

        Args:
            alive: the ids of the runs that are alive. Asked after the hypervisor was looked
                through, so that a run which begins meanwhile is not taken for a dead one.

        Raises: SourceError: the hypervisor could not be asked.
        """
        ...

    def close(self) -> None:
        """Log out; idempotent."""
        ...
