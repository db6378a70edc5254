"""Making a VM, and taking away one of ours that is not finished. Reused by instant recovery.

A reply can be lost after the server has understood the request. So nothing is made twice: the VM is
looked for by the instance uuid that the spec gave it, once no task runs in its folder any more.
What is destroyed must carry exactly our mark: never a VM that anybody else could have made.

Crash guarantee: a kill leaves at most a VM with our mark, which `orphans.py` removes.
Thread model: functions; they block.
Source: vSphere API reference, Folder.CreateVM_Task, VirtualMachine.Destroy_Task.
"""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from vmware.errors import (
    CancelledError,
    DeadlineError,
    InvalidPowerStateError,
    ObjectGoneError,
    RefusedError,
    SessionLostError,
    UnreachableError,
    VsphereError,
)
from vmware.marker import parse_marker
from vmware.patience import Patience
from vmware.properties import fetch_one
from vmware.running_tasks import GRACE_S, TaskKind, settle_on
from vmware.session import Session
from vmware.tasks import wait_for_task

CREATE_DEADLINE_S = 1800.0
DESTROY_DEADLINE_S = 1800.0
RECONFIGURE_DEADLINE_S = 600.0
PLAIN_ANNOTATION = "restored by Holdfast"

_REPLY_LOST = (UnreachableError, SessionLostError, ObjectGoneError)
_MAY_BE_THERE = (*_REPLY_LOST, DeadlineError, CancelledError)


def create_vm(
    session: Session,
    spec: Any,
    *,
    folder_moref: str,
    pool_moref: str,
    host_moref: str,
    patience: Patience,
    deadline_s: float = CREATE_DEADLINE_S,
) -> str:
    """Make the VM; return its moref. `spec` has our mark and an instance uuid.

    Raises: VsphereError, CancelledError: there is no VM, or the error's notes say that it stayed.
    """
    what = f"create the VM {spec.name}"
    folder = session.object(vim.Folder, folder_moref)
    pool = session.object(vim.ResourcePool, pool_moref)
    host = session.object(vim.HostSystem, host_moref)
    try:
        task = session.call(what, folder.CreateVM_Task, spec, pool, host)
        made = wait_for_task(
            session, task, what=what, deadline_s=deadline_s, cancelled=patience.cancelled
        )
    except _MAY_BE_THERE as error:
        found = _made_all_the_same(session, folder, spec.instanceUuid, patience, deadline_s)
        if found is None:
            raise
        if isinstance(error, _REPLY_LOST):
            return found
        _take_away(session, found, spec.annotation, error)
        raise
    return str(made._GetMoId())


def reconfigure_vm(session: Session, vm_moref: str, spec: Any, *, what: str) -> None:
    """Raises VsphereError."""
    vm = session.object(vim.VirtualMachine, vm_moref)
    task = session.call(what, vm.ReconfigVM_Task, spec)
    wait_for_task(session, task, what=what, deadline_s=RECONFIGURE_DEADLINE_S)


def finish_vm(session: Session, vm_moref: str, spec: Any, mark: str) -> None:
    """Make it a VM like any other: with this spec, and without our mark.

    A VM that keeps its mark would be taken for debris, so that is made sure of: some servers ignore
    an annotation that is empty.

    Raises: VsphereError: it may be finished or not; the mark says which.
    """
    reconfigure_vm(session, vm_moref, spec, what=f"finish the VM {vm_moref}")
    if not _carries(session, vm_moref, mark):
        return
    plain = vim.vm.ConfigSpec(annotation=PLAIN_ANNOTATION)
    reconfigure_vm(session, vm_moref, plain, what=f"take our mark off {vm_moref}")
    if _carries(session, vm_moref, mark):
        raise RefusedError(f"the mark cannot be taken off {vm_moref}")


def destroy_unfinished_vm(session: Session, vm_moref: str, mark: str) -> None:
    """Delete a VM of ours with its files; one that is gone counts as deleted.

    Args:
        mark: the annotation that it must still carry.

    Raises:
        RefusedError: it is not ours (any more), or it runs; nothing was done.
        VsphereError: it is still there.
    """
    vm = session.object(vim.VirtualMachine, vm_moref)
    what = f"remove the unfinished VM {vm_moref}"
    try:
        read = fetch_one(session, what, vm, ("config.annotation", "runtime.powerState")).values
        if parse_marker(mark) is None or read.get("config.annotation") != mark:
            raise RefusedError(f"{what}: it does not carry its mark")
        if str(read.get("runtime.powerState")) != "poweredOff":
            raise InvalidPowerStateError(f"{what}: it is not off")
        task = session.call(what, vm.Destroy_Task)
        wait_for_task(session, task, what=what, deadline_s=DESTROY_DEADLINE_S)
    except ObjectGoneError:
        return


def unregister_vm(session: Session, vm_moref: str) -> None:
    """Take a VM out of the inventory; its files stay. One that is gone counts as taken out.

    Raises: VsphereError.
    """
    vm = session.object(vim.VirtualMachine, vm_moref)
    try:
        session.call(f"unregister {vm_moref}", vm.UnregisterVM)
    except ObjectGoneError:
        return


def _carries(session: Session, vm_moref: str, mark: str) -> bool:
    vm = session.object(vim.VirtualMachine, vm_moref)
    path = "config.annotation"
    return fetch_one(session, f"look at {vm_moref}", vm, (path,)).values.get(path) == mark


def find_by_instance_uuid(session: Session, instance_uuid: str) -> str | None:
    """The moref of the VM with this instance uuid. Raises VsphereError."""
    index = session.content.searchIndex
    found = session.read(
        "look for a VM by its uuid", index.FindByUuid, None, instance_uuid, True, True
    )
    return str(found._GetMoId()) if found is not None else None


def _made_all_the_same(
    session: Session, folder: Any, instance_uuid: str, patience: Patience, deadline_s: float
) -> str | None:
    calm = patience.unstoppable()
    calm.pause(GRACE_S)
    settle_on(session, folder, TaskKind.CREATE_VM, calm, deadline_s=deadline_s)
    return find_by_instance_uuid(session, instance_uuid)


def _take_away(session: Session, vm_moref: str, mark: str, error: VsphereError) -> None:
    try:
        destroy_unfinished_vm(session, vm_moref, mark)
    except VsphereError as second:
        error.add_note(f"the unfinished VM {vm_moref} could not be removed: {second}")
