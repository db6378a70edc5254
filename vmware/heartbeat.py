"""Whether a guest is up, as far as vSphere can tell: power, questions, tools, heartbeat.

Thread model: a function; it blocks.
Source: design notes section 6; vSphere API reference, VirtualMachine.guestHeartbeatStatus.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pyVmomi import vim

from vmware.errors import DeadlineError, InvalidPowerStateError, QuestionPendingError
from vmware.patience import Patience
from vmware.properties import fetch_one
from vmware.session import Session

_POLL_S = 0.25
_PATHS = (
    "runtime.powerState",
    "runtime.question",
    "guest.toolsRunningStatus",
    "guest.hostName",
    "guest.ipAddress",
    "guest.guestKernelCrashed",
    "guestHeartbeatStatus",
)


class Life(StrEnum):
    BEATING = "beating"
    NO_TOOLS = "no-tools"  # powered on, but nothing in the guest reports


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestState:
    """Text that the guest gave is untrusted; empty when it gave none."""

    life: Life
    host_name: str = ""
    address: str = ""


def wait_for_heartbeat(
    session: Session,
    vm_moref: str,
    *,
    deadline_s: float,
    without_tools_s: float,
    samples: int = 1,
    every_s: float = 10.0,
    patience: Patience | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> GuestState:
    """Return once the heartbeat was green `samples` times, `every_s` apart.

    Args:
        without_tools_s: a guest whose tools have not reported by then is NO_TOOLS.

    Raises:
        InvalidPowerStateError: the VM is off.
        QuestionPendingError: it waits for an answer.
        DeadlineError: the tools run, but the heartbeat does not become green.
    """
    patience = patience or Patience()
    vm = session.object(vim.VirtualMachine, vm_moref)
    what = f"wait for the guest of {vm_moref}"
    began_s = clock()
    green = 0
    while True:
        read = fetch_one(session, what, vm, _PATHS).values
        _check(read, what)
        beats = str(read.get("guestHeartbeatStatus", "gray"))
        green = green + 1 if beats == "green" else 0
        if green >= samples:
            return GuestState(
                life=Life.BEATING,
                host_name=str(read.get("guest.hostName") or ""),
                address=str(read.get("guest.ipAddress") or ""),
            )
        waited_s = clock() - began_s
        silent = str(read.get("guest.toolsRunningStatus", "")) in ("", "guestToolsNotRunning")
        if silent and beats == "gray" and waited_s > without_tools_s:
            return GuestState(life=Life.NO_TOOLS)
        if waited_s > deadline_s:
            raise DeadlineError(f"{what}: its heartbeat is {beats} after {deadline_s:.0f} s")
        patience.pause(every_s if green else _POLL_S)


def _check(read: Any, what: str) -> None:
    if read.get("runtime.question") is not None:
        raise QuestionPendingError(f"{what}: the VM asks: {read['runtime.question'].text}")
    if str(read.get("runtime.powerState", "poweredOn")) != "poweredOn":
        raise InvalidPowerStateError(f"{what}: the VM is {read['runtime.powerState']}")
