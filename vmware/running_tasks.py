"""After a lost reply: wait until the server has done, or not done, what it was asked for.

A request whose answer is lost may be carried out at once, later, or never. Nothing may be concluded
from what the inventory shows while such a task runs, nor in the moment before it is even listed.

Source: vSphere API reference, ManagedEntity.recentTask, TaskInfo.descriptionId.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from pyVmomi import vim

from vmware.errors import DeadlineError, ObjectGoneError
from vmware.patience import Patience
from vmware.properties import fetch_one
from vmware.session import Session

GRACE_S = 2.0  # in which a task of a request that did arrive is listed
_POLL_S = 2.0


class TaskKind(Enum):
    """A part of the description id, such as `VirtualMachine.createSnapshotEx`, in lower case."""

    SNAPSHOT = "snapshot"
    RECONFIGURE = "reconfigure"
    CREATE_VM = "createvm"
    REGISTER_VM = "registervm"
    RELOCATE = "relocate"


def settle(
    session: Session, vm_moref: str, kind: TaskKind, patience: Patience, *, deadline_s: float
) -> None:
    """Return once no task of this kind runs on the VM. Raises DeadlineError, VsphereError."""
    vm = session.object(vim.VirtualMachine, vm_moref)
    settle_on(session, vm, kind, patience, deadline_s=deadline_s)


def settle_on(
    session: Session, entity: Any, kind: TaskKind, patience: Patience, *, deadline_s: float
) -> None:
    """`settle` for any managed object, such as the folder that a VM is made in."""
    waited_s = 0.0
    while _runs(session, entity, kind):
        if waited_s >= deadline_s:
            raise DeadlineError(f"a {kind.value} task of {entity._GetMoId()} does not end")
        patience.pause(_POLL_S)
        waited_s += _POLL_S


def settle_lost_reply(
    session: Session, vm_moref: str, kind: TaskKind, patience: Patience, *, deadline_s: float
) -> None:
    """`settle`, after the time in which a task may not be listed yet."""
    patience.pause(GRACE_S)
    settle(session, vm_moref, kind, patience, deadline_s=deadline_s)


def _runs(session: Session, entity: Any, kind: TaskKind) -> bool:
    recent = fetch_one(session, "look for running tasks", entity, ("recentTask",)).values
    for task in recent.get("recentTask") or []:
        paths = ("info.state", "info.descriptionId")
        try:
            info = fetch_one(session, "look at a task", task, paths).values
        except ObjectGoneError:
            continue
        listed = str(info.get("info.descriptionId", "")).lower()
        if info.get("info.state") in ("running", "queued") and kind.value in listed:
            return True
    return False
