"""Reference points: what remains of a recovery checkpoint so that the next backup reads changes.

Invariants: only reference points whose ids were written down by us are ever removed; one that does
not give a change tracking id for every disk is removed at once, because nothing can be asked of it.
Disks are matched by Virtual Disk ID, never by position.

Thread model: one VM, one thread; functions block.
Source: design notes section 3; Msvm_VirtualSystemReferencePoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hyperv.checkpoints import list_checkpoints, wait_for_merge, wait_until_idle
from hyperv.errors import CheckpointError, HypervError, MergeError, SessionLostError
from hyperv.findings import Finding
from hyperv.host_session import HostSession
from hyperv.jobs import wait_for_job
from hyperv.patience import Patience
from hyperv.script_types import (
    CheckpointDisk,
    ReferencePoint,
    ReferencePoints,
    ReferencePointStarted,
    Removing,
)

_RCT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """`point` is None when the checkpoint went, but left nothing that could be asked."""

    point: ReferencePoint | None
    findings: tuple[Finding, ...] = ()


def list_reference_points(
    host: HostSession, vm_id: str, patience: Patience
) -> list[ReferencePoint]:
    """Of one VM; of all with an empty `vm_id`. Raises HypervError."""
    found = host.call("list_reference_points", {"vm_id": vm_id}, ReferencePoints, patience=patience)
    return found.reference_points


def convert(host: HostSession, vm_id: str, checkpoint_id: str, patience: Patience) -> Converted:
    """Turn a recovery checkpoint into a reference point and wait for the merge.

    Every handle on the frozen files must be closed, or the merge fails.

    Raises:
        CheckpointError: it failed; the checkpoint may still be there.
        GoneError, HypervError.
    """
    before = {point.id for point in list_reference_points(host, vm_id, patience)}
    parameters = {"checkpoint_id": checkpoint_id}
    try:
        started = host.call(
            "convert_to_reference_point", parameters, ReferencePointStarted, patience=patience
        )
    except SessionLostError:  # it may have been carried out: what is there decides
        started = ReferencePointStarted(job_id="", reference_point_id="")
        wait_until_idle(host, vm_id, patience)
    job = wait_for_job(host, started.job_id, "making a reference point", patience)
    if any(found.id == checkpoint_id for found in list_checkpoints(host, vm_id, patience)):
        raise CheckpointError(f"{host.address}: checkpoint {checkpoint_id} was not converted")
    found = _found(
        host,
        {started.reference_point_id, *(job.reference_points if job else ())},
        [point for point in list_reference_points(host, vm_id, patience) if point.id not in before],
        patience,
    )
    try:
        wait_for_merge(host, vm_id, patience)
    except HypervError as error:  # the point is there all the same, wherever its VM is now
        return replace(found, findings=(*found.findings, _not_merged(error)))
    return found


def _found(
    host: HostSession, named: set[str], new: Sequence[ReferencePoint], patience: Patience
) -> Converted:
    ours = [point for point in new if point.id in named] or list(new)
    if len(ours) != 1:
        return Converted(point=None, findings=(_unusable(f"{len(new)} new ones were found"),))
    doubt = _doubt(ours[0])
    if doubt:
        remove_reference_point(host, ours[0].id, patience)
        return Converted(point=None, findings=(_unusable(doubt),))
    return Converted(point=ours[0])


def remove_reference_point(host: HostSession, point_id: str, patience: Patience) -> None:
    """One that is gone is no error. Raises: CheckpointError, HypervError."""
    parameters = {"reference_point_id": point_id}
    started = host.call("remove_reference_point", parameters, Removing, patience=patience)
    wait_for_job(host, started.job_id, "removing a reference point", patience)


def rct_id_of(point: ReferencePoint, disk: CheckpointDisk) -> str:
    """Return the change tracking id of a disk, "" if the point has none for it."""
    place = _place(disk.attachment)
    same = [
        found
        for found in point.disks
        if found.virtual_disk_id in ("", disk.virtual_disk_id)
        and (found.virtual_disk_id or _place(found.attachment) == place)
    ]
    if len(same) > 1:  # copies of one disk in one VM: they differ by place only
        same = [found for found in same if _place(found.attachment) == place]
    return same[0].rct_id if len(same) == 1 else ""


def _place(attachment: str) -> tuple[str, ...]:
    """Controller, number and unit, without the VM or checkpoint before and the kind behind."""
    return tuple(attachment.lower().split("\\")[1:4])


def _doubt(point: ReferencePoint) -> str:
    if point.type != _RCT:
        return f"it is of type {point.type}, not of change tracking"
    if not point.disks or any(not disk.rct_id for disk in point.disks):
        return "it has no change tracking id for every disk"
    return ""


def _unusable(why: str) -> Finding:
    return Finding(
        "rct.no-reference-point",
        f"no usable reference point was left ({why}), so the next backup reads whole disks",
        "update the VM's configuration version to 8.0 or later if this comes back",
    )


def _not_merged(error: HypervError) -> Finding:
    what = "were not merged in time" if isinstance(error, MergeError) else "were not seen merged"
    return Finding(
        "checkpoint.not-merged",
        f"the disks of the checkpoint {what} ({error})",
        "look at the host's VMMS log (events 19080 and 19100) and at its free space",
    )
