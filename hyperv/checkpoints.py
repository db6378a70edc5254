"""Recovery checkpoints: a consistent moment of a VM, its frozen files, and how it goes away again.

    take -> (named, so it is ours) -> disks -> [read] -> every handle closed -> remove | convert

Invariants: a checkpoint that was made is named with our marker or removed again before an error
leaves here; which consistency was reached is what was asked for in the call that succeeded, never
what was wished. A cancel is heeded between steps, not while the host is making a checkpoint: it
would go on behind our back.

Thread model: one VM, one thread; functions block.
Source: design notes section 3; Msvm_VirtualSystemSnapshotService.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hyperv.errors import (
    AccessError,
    BusyError,
    CheckpointError,
    ConsistencyError,
    DeadlineError,
    GoneError,
    HypervError,
    LoginError,
    MergeError,
    ProtocolError,
    ScriptError,
    SessionLostError,
)
from hyperv.findings import Finding, Weight
from hyperv.host_session import HostSession
from hyperv.inventory import OFF, SAVED, vm_state
from hyperv.jobs import wait_for_job
from hyperv.marker import Marker
from hyperv.patience import Patience
from hyperv.script_types import (
    Checkpoint,
    CheckpointDisks,
    Checkpoints,
    CheckpointStarted,
    Removing,
    Started,
)

BUSY_DEADLINE_S: Final = 600.0
MERGE_DEADLINE_S: Final = 4 * 3600.0
_BUSY_STATUSES: Final = range(32768, 32775)  # creating, applying, deleting, …, merging, migrating
_MERGING_STATUSES: Final = frozenset({32768, 32769, 32770, 32772})
_MAY_BE_MADE: Final = "a checkpoint may have been made, and bears no name of ours"


class Level(StrEnum):
    """Consistency that is asked for."""

    APPLICATION = "application"
    CRASH = "crash"


class BackupType(StrEnum):
    COPY = "copy"
    FULL = "full"  # writers in the guest may truncate their logs


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenCheckpoint:
    id: str
    level: Level
    findings: tuple[Finding, ...] = ()


def list_checkpoints(host: HostSession, vm_id: str, patience: Patience) -> list[Checkpoint]:
    """Of one VM; of all with an empty `vm_id`. Raises HypervError."""
    found = host.call("list_checkpoints", {"vm_id": vm_id}, Checkpoints, patience=patience)
    return found.checkpoints


def wait_until_idle(host: HostSession, vm_id: str, patience: Patience) -> None:
    """Wait until nobody makes, applies, deletes or merges a checkpoint of the VM.

    Raises: BusyError: it takes too long; GoneError, CancelledError, HypervError.
    """
    try:
        for _ in patience.looks(BUSY_DEADLINE_S, "waiting for another task of the VM"):
            state = vm_state(host, vm_id, patience)
            if not any(status in _BUSY_STATUSES for status in state.operational_status[1:2]):
                return
    except DeadlineError as error:
        raise BusyError(f"{host.address}, {state.name}: {error}") from error


def take_checkpoint(
    host: HostSession,
    vm_id: str,
    marker: Marker,
    *,
    levels: Sequence[Level],
    backup_type: BackupType,
    patience: Patience,
    on_made: Callable[[str], None] = lambda _: None,
) -> TakenCheckpoint:
    """Make a recovery checkpoint with the first of `levels` that the VM allows.

    Args:
        on_made: is told the id of the checkpoint before it is named.

    Raises:
        ConsistencyError: none of `levels` could be reached.
        CheckpointError, GoneError, CancelledError, HypervError. Then there is no checkpoint of
        this call, unless the error carries a note that says so.
    """
    patience.check()
    before = {found.id for found in list_checkpoints(host, vm_id, patience)}
    findings: list[Finding] = []
    wanted = _possible(host, vm_id, levels, findings, patience)
    for number, level in enumerate(wanted):
        try:
            made = _make(host, vm_id, before, level, backup_type, patience.unstoppable())
        except (GoneError, AccessError):
            raise
        except (CheckpointError, ScriptError) as error:
            if getattr(error, "__notes__", ()):  # another try would make another checkpoint
                raise
            if number + 1 == len(wanted):
                raise ConsistencyError(f"{host.address}: {error}") from error
            findings.append(_downgraded(error))
            continue
        on_made(made)
        try:
            _name(host, made, marker, patience.unstoppable())
            patience.check()
        except HypervError as error:
            _remove_again(host, made, error, patience)
            raise
        return TakenCheckpoint(id=made, level=level, findings=tuple(findings))
    raise ConsistencyError(f"{host.address}: no consistency was asked for that the VM can have")


def read_disks(host: HostSession, checkpoint_id: str, patience: Patience) -> CheckpointDisks:
    """Return the frozen files. Raises: GoneError, HypervError."""
    parameters = {"checkpoint_id": checkpoint_id}
    return host.call("checkpoint_disks", parameters, CheckpointDisks, patience=patience)


def remove_checkpoint(
    host: HostSession, vm_id: str, checkpoint_id: str, patience: Patience
) -> None:
    """Remove a recovery checkpoint and wait for the merge. One that is gone is no error.

    Every handle on its files must be closed. Raises: MergeError, CheckpointError, HypervError.
    """
    parameters = {"checkpoint_id": checkpoint_id}
    started = host.call("remove_checkpoint", parameters, Removing, patience=patience)
    wait_for_job(host, started.job_id, "removing a checkpoint", patience)
    if any(found.id == checkpoint_id for found in list_checkpoints(host, vm_id, patience)):
        raise CheckpointError(f"{host.address}: checkpoint {checkpoint_id} is still there")
    wait_for_merge(host, vm_id, patience)


def wait_for_merge(
    host: HostSession, vm_id: str, patience: Patience, *, deadline_s: float = MERGE_DEADLINE_S
) -> None:
    """Raises: MergeError: it takes too long; CancelledError, HypervError."""
    try:
        for _ in patience.looks(deadline_s, "merging the disks"):
            state = vm_state(host, vm_id, patience)
            if not _MERGING_STATUSES & set(state.operational_status[1:2]):
                return
    except DeadlineError as error:
        raise MergeError(f"{host.address}, {state.name}: {error}") from error


# One try


def _possible(
    host: HostSession,
    vm_id: str,
    levels: Sequence[Level],
    findings: list[Finding],
    patience: Patience,
) -> list[Level]:
    """A VM that does not run has nobody to ask for more than its disks as they are."""
    if vm_state(host, vm_id, patience).state not in (OFF, SAVED):
        return list(levels)
    if Level.CRASH not in levels:
        findings.append(
            Finding(
                "vm.not-running",
                "the VM does not run, so its applications have nothing to bring to rest",
                "none: its disks are as its last shutdown left them",
                Weight.NOTE,
            )
        )
    return [Level.CRASH]


def _make(
    host: HostSession,
    vm_id: str,
    before: set[str],
    level: Level,
    backup_type: BackupType,
    patience: Patience,
) -> str:
    parameters = {
        "vm_id": vm_id,
        "consistency": level.value,
        "backup_type": backup_type.value,
    }
    try:
        started = host.call("create_checkpoint", parameters, CheckpointStarted, patience=patience)
    except SessionLostError:  # it may have been carried out: what is there decides
        started = CheckpointStarted(job_id="", checkpoint_id="")
        with _making_unknown():
            wait_until_idle(host, vm_id, patience)
    except (DeadlineError, LoginError, ProtocolError) as error:
        error.add_note(_MAY_BE_MADE)
        raise
    with _making_unknown():
        job = wait_for_job(host, started.job_id, "making a checkpoint", patience)
        new = [
            found.id
            for found in list_checkpoints(host, vm_id, patience)
            if found.kind == "recovery" and found.id not in before
        ]
    named = {started.checkpoint_id, *(job.checkpoints if job else ())}
    ours = [found for found in new if found in named] or new
    if not ours:
        raise CheckpointError("no new recovery checkpoint after asking for one")
    if len(ours) > 1:
        nobodys = CheckpointError(
            f"{len(new)} new recovery checkpoints after asking for one;"
            " is another product backing up this VM?"
        )
        nobodys.add_note(_MAY_BE_MADE)
        raise nobodys
    return ours[0]


@contextmanager
def _making_unknown() -> Iterator[None]:
    """Note at whatever ends the block, but a job that failed, that nobody knows what was made."""
    try:
        yield
    except CheckpointError:
        raise
    except HypervError as error:
        error.add_note(_MAY_BE_MADE)
        raise


def _name(host: HostSession, checkpoint_id: str, marker: Marker, patience: Patience) -> None:
    parameters = {"checkpoint_id": checkpoint_id, "marker": marker.text}
    started = host.call("name_checkpoint", parameters, Started, patience=patience)
    wait_for_job(host, started.job_id, "naming a checkpoint", patience)


def _remove_again(
    host: HostSession, checkpoint_id: str, error: HypervError, patience: Patience
) -> None:
    try:
        parameters = {"checkpoint_id": checkpoint_id}
        started = host.call(
            "remove_checkpoint", parameters, Removing, patience=patience.unstoppable()
        )
        wait_for_job(host, started.job_id, "removing a checkpoint", patience.unstoppable())
    except HypervError as second:
        error.add_note(f"checkpoint {checkpoint_id} is still there: {second}")


def _downgraded(error: HypervError) -> Finding:
    return Finding(
        "consistency.downgraded",
        f"the guest could not be brought to rest ({error}), so the point is crash-consistent",
        "look at the guest's VSS writers, or its hv_vss_daemon, and at its integration services",
    )
