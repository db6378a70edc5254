"""Turning VMs on and off. A guest that is asked to shut down gets its time before the plug.

Questions at power-on: our own VM that was written to another place than it came from may be asked
whether it was moved or copied; the caller says which. Every other question is an error.
Thread model: functions; they block.
Source: design notes sections 5 (UUID question) and 8; vSphere API reference, PowerOnVM_Task,
ShutdownGuest, PowerOffVM_Task.
"""

from __future__ import annotations

from enum import StrEnum

from pyVmomi import vim

from vmware.errors import InvalidPowerStateError, UnsupportedError, VsphereError
from vmware.patience import Patience
from vmware.properties import fetch_one
from vmware.session import Session
from vmware.tasks import Question, wait_for_task

POWER_DEADLINE_S = 300.0
SHUTDOWN_WITHIN_S = 300.0
_POLL_S = 1.0
_UUID_QUESTION = "msg.uuid.altered"


class Origin(StrEnum):
    """What the VM is, should the host ask."""

    MOVED = "moved"  # the same VM: it keeps its uuids
    COPIED = "copied"  # another one


class ShutDown(StrEnum):
    WAS_OFF = "was-off"
    BY_GUEST = "by-guest"
    BY_FORCE = "by-force"  # the guest did not end in time, or has no tools


def power_on(
    session: Session, vm_moref: str, origin: Origin, *, patience: Patience | None = None
) -> None:
    """Return when it is on; the guest boots then. One that is on already is left alone.

    Raises: VsphereError, QuestionPendingError.
    """
    what = f"power {vm_moref} on"
    vm = session.object(vim.VirtualMachine, vm_moref)
    if power_state(session, vm_moref) == "poweredOn":
        return
    task = session.call(what, vm.PowerOnVM_Task, None)
    wait_for_task(
        session,
        task,
        what=what,
        deadline_s=POWER_DEADLINE_S,
        cancelled=(patience or Patience()).cancelled,
        on_question=lambda question: _answer(question, origin),
    )


def shut_down(
    session: Session, vm_moref: str, *, within_s: float = SHUTDOWN_WITHIN_S, patience: Patience
) -> ShutDown:
    """Return when it is off: by its guest if that can and does in time, else by force.

    Raises: VsphereError; CancelledError: it may go off all the same.
    """
    if power_state(session, vm_moref) == "poweredOff":
        return ShutDown.WAS_OFF
    vm = session.object(vim.VirtualMachine, vm_moref)
    try:
        session.call(f"shut down the guest of {vm_moref}", vm.ShutdownGuest)
        waited_s = 0.0
        while waited_s < within_s:
            if power_state(session, vm_moref) == "poweredOff":
                return ShutDown.BY_GUEST
            patience.pause(_POLL_S)
            waited_s += _POLL_S
    except (UnsupportedError, InvalidPowerStateError):
        pass
    except VsphereError as error:
        if "Tools" not in error.fault:
            raise
    return power_off(session, vm_moref)


def power_state(session: Session, vm_moref: str) -> str:
    """`poweredOn`, `poweredOff`, `suspended`. Raises VsphereError."""
    vm = session.object(vim.VirtualMachine, vm_moref)
    path = "runtime.powerState"
    return str(fetch_one(session, f"look at {vm_moref}", vm, (path,)).values.get(path, ""))


def power_off(session: Session, vm_moref: str) -> ShutDown:
    """Pull the plug; one that is off is left alone. Raises VsphereError."""
    if power_state(session, vm_moref) == "poweredOff":
        return ShutDown.WAS_OFF
    what = f"power {vm_moref} off"
    vm = session.object(vim.VirtualMachine, vm_moref)
    try:
        task = session.call(what, vm.PowerOffVM_Task)
        wait_for_task(session, task, what=what, deadline_s=POWER_DEADLINE_S)
    except VsphereError:
        if power_state(session, vm_moref) != "poweredOff":
            raise
        return ShutDown.BY_GUEST  # it ended at the last moment
    return ShutDown.BY_FORCE


def _answer(question: Question, origin: Origin) -> str | None:
    if _UUID_QUESTION not in question.message_ids:
        return None
    for choice in question.choices:
        if origin.value in f"{choice.key} {choice.label}".lower():
            return choice.key
    return None
