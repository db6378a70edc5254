"""After a snapshot is out of the tree: are its disks merged, and if not, merge them.

A removal can take the snapshot out of the tree and still leave its delta files in the chain;
vSphere then says `consolidationNeeded`. File locks (another backup product, a reader not yet
closed) are the usual cause, and pass.

Source: vSphere API reference, VirtualMachine.ConsolidateVMDisks_Task, runtime.consolidationNeeded.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from enum import StrEnum

from pyVmomi import vim

from vmware.errors import ObjectGoneError, VsphereError
from vmware.findings import Finding
from vmware.patience import Patience
from vmware.properties import fetch_one
from vmware.session import Session
from vmware.tasks import wait_for_task

TRIES = 5
FIRST_PAUSE_S = 10.0


class Consolidation(StrEnum):
    CLEAN = "clean"  # none was needed
    DONE = "done"
    PENDING = "pending"  # still needed after all tries


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsolidationOutcome:
    consolidation: Consolidation
    findings: tuple[Finding, ...] = ()


def consolidation_needed(session: Session, vm_moref: str) -> bool:
    """Asks the server to look again first. False when the VM is gone."""
    vm = session.object(vim.VirtualMachine, vm_moref)
    with contextlib.suppress(VsphereError):  # what it refreshes is read below either way
        session.call(f"refresh {vm_moref}", vm.RefreshStorageInfo)
    try:
        read = fetch_one(
            session, f"look at {vm_moref}", vm, ("runtime.consolidationNeeded",)
        ).values
    except ObjectGoneError:
        return False
    return bool(read.get("runtime.consolidationNeeded"))


def consolidate(
    session: Session, vm_moref: str, *, patience: Patience, deadline_s: float
) -> ConsolidationOutcome:
    """Merge what is left until the VM needs it no more, at most `TRIES` times with pauses.

    Raises: CancelledError. Any other failure is the outcome PENDING, with what was said.
    """
    what = f"consolidate the disks of {vm_moref}"
    said = "vSphere reports no error, and still asks for it"
    vm = session.object(vim.VirtualMachine, vm_moref)
    for attempt in range(TRIES + 1):
        try:
            if not consolidation_needed(session, vm_moref):
                done = Consolidation.DONE if attempt else Consolidation.CLEAN
                return ConsolidationOutcome(consolidation=done)
            if attempt == TRIES:
                break
            patience.pause(FIRST_PAUSE_S * (2**attempt - 1))
            task = session.call(what, vm.ConsolidateVMDisks_Task)
            wait_for_task(
                session, task, what=what, deadline_s=deadline_s, cancelled=patience.cancelled
            )
        except VsphereError as error:
            patience.check()
            said = str(error)
            if not error.retryable:
                break
    return ConsolidationOutcome(
        consolidation=Consolidation.PENDING,
        findings=(
            Finding(
                "snapshot.consolidation-pending",
                f"the snapshot is removed, but its disk files are not merged yet: {said}",
                "it is tried again before the next backup; look for what locks the disk files",
            ),
        ),
    )
