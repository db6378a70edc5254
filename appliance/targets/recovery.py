"""What a hypervisor is to instant recovery: `RecoveryTarget`.

Data path: a session's folder, served as the plan's `presentation` -> `mount` -> `register` ->
`power_on` -> a VM that runs from it; later `move` to production storage, or `take_away`; then
`unmount`. Two implementations: vSphere (NFS datastore), Hyper-V (iSCSI disks or an SMB share).

Invariants of every implementation:

- Every step may be repeated: it looks before it acts, so a step that was killed half-way, or whose
  reply was lost, is done by doing it again.
- `state` is the target's own document. It is written to `session.json` and to the intent journal
  before anything is made, and is all that it takes to find and remove what was made.
- Nothing is switched off, unregistered or unmounted that does not carry this session's mark.

Thread model: one thread per session; calls block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NewType, Protocol

from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.exports.datastore.session import Presentation
from appliance.targets.contract import Keep, TargetError, WantedDisk, WantedVmPlace

TargetState = NewType("TargetState", str)
"""JSON, at most 64 KiB."""


class StillThereError(TargetError):
    """Something of the VM is still on the session's datastore, so the session must stay."""

    code = "instant.still-there"
    retryable = True


class PresentationError(UsageError):
    """Hosts of this kind cannot be shown a session in this way; leave `--presentation` out."""

    code = "instant.presentation"


class DowntimeNeededError(TargetError):
    """The VM cannot move while it runs: for want of a licence for Storage vMotion, or because its
    disks are pass-through. Run `instant finalise` with --allow-downtime: the VM is shut down, moved
    and started again."""

    code = "instant.downtime-needed"


class Breadth(StrEnum):
    """Which hosts get the datastore."""

    HOST = "host"  # the one that is to run the VM
    CLUSTER = "cluster"  # and every other one that it could run on


class Life(StrEnum):
    BEATING = "beating"
    NO_TOOLS = "no-tools"  # it runs; nothing in the guest reports


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryRequest:
    session_id: str
    name: str  # of the VM; empty: the original's, with the session's id if that is still there
    hardware: Mapping[str, Any]  # `Manifest.hardware`
    disks: tuple[WantedDisk, ...]
    place: WantedVmPlace
    networks: tuple[tuple[str, str], ...]  # old name -> new name
    isolated: frozenset[str]  # old names of what goes into a network that leads nowhere
    isolate_all: bool
    unconnected: frozenset[str]  # old names
    mac: Keep
    identity: Keep
    address: str  # that hosts mount from; empty: ours on the way to the hypervisor
    breadth: Breadth
    isolated_name: str = ""  # of the network that leads nowhere; empty: the session's own
    presentation: Presentation | None = None  # how hosts see the disks; None: the target's choice


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedDisk:
    number: int
    size_bytes: int
    file: str  # the flat file, in the VM's folder


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPlan:
    """Everything decided; nothing made yet."""

    vm_name: str
    folder: str  # of the VM, inside the datastore
    disks: tuple[PublishedDisk, ...]
    files: Mapping[str, bytes]  # beside the disks
    address: str  # that hosts mount from
    clients: tuple[str, ...]  # who may mount
    state: TargetState
    reasons: tuple[Reason, ...]
    presentation: Presentation


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredVm:
    key: str
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRequest:
    datastore: str  # empty: `preferred` if it has room, or the one with most
    preferred: str
    need_bytes: int
    allow_downtime: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestLife:
    life: Life
    host_name: str
    address: str


class Downtime(Protocol):
    """What a session remembers of a VM that was shut down to be moved, so that a move that was
    killed and is done again still knows that the VM was on."""

    @property
    def has_begun(self) -> bool:
        """And has not ended."""
        ...

    def begins(self) -> None:
        """Said before a VM that is on is shut down; durable on return."""
        ...

    def ends(self) -> None:
        """It is on again; durable on return."""
        ...


class RecoveryTarget(Protocol):
    @property
    def name(self) -> str:
        """The name of the registered host."""
        ...

    def plan(self, request: RecoveryRequest) -> RecoveryPlan:
        """Raises: UsageError (NoSuchPlaceError, PresentationError, …), SourceError."""
        ...

    def mount(self, state: TargetState, cancel: CancelToken) -> None:
        """Give the hosts the session's storage, and make the isolated network if one is wanted."""
        ...

    def register(
        self, state: TargetState, hardware: Mapping[str, Any], cancel: CancelToken
    ) -> RegisteredVm:
        """Make the VM of the published files, connected as planned, and off."""
        ...

    def power_on(self, state: TargetState, key: str, cancel: CancelToken) -> None: ...

    def wait_alive(self, key: str, *, within_s: float, cancel: CancelToken) -> GuestLife:
        """Wait for the guest's heartbeat."""
        ...

    def move(
        self,
        state: TargetState,
        key: str,
        request: MoveRequest,
        downtime: Downtime,
        cancel: CancelToken,
        on_progress: Callable[[int], None],
    ) -> tuple[Reason, ...]:
        """Move the VM off the datastore, while it runs if that can be.

        Where `downtime` has begun and not ended on return, the caller is to power the VM on.

        Raises: DowntimeNeededError, UsageError; SourceError: the VM is where it was.
        """
        ...

    def left_behind(self, state: TargetState, key: str) -> tuple[str, ...]:
        """The VM's files that are still on the datastore; empty proves that it has left.

        Raises SourceError: it cannot be told.
        """
        ...

    def settle(self, key: str, hardware: Mapping[str, Any]) -> None:
        """Make the VM that has left an ordinary one."""
        ...

    def take_away(self, state: TargetState, key: str | None) -> tuple[Reason, ...]:
        """Power the VM off and unregister it, whether it is known by key or not at all.

        A VM that has left the datastore is no longer the session's: it stays, and a reason says so.

        Raises: StillThereError: it has left in part.
        """
        ...

    def unmount(self, state: TargetState) -> tuple[Reason, ...]:
        """Take the datastore from every host, then the isolated network away.

        What of the network is in use by a VM that stays is left, and a reason says so.

        Raises: StillThereError: a VM is on the datastore. SourceError.
        """
        ...


class WitnessedTarget(RecoveryTarget, Protocol):
    """One that can be asked about the guests that run from sessions."""

    def machine_of(self, state: TargetState) -> str:
        """The name of the machine (ESXi host) that is to run the VM."""
        ...

    def screenshot(self, state: TargetState, key: str, cancel: CancelToken) -> bytes:
        """What the VM's screen shows, as a PNG of at most 16 MiB. The VM is on.

        Raises: SourceError: it cannot be had.
        """
        ...
