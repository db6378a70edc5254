"""Fault switches of the SOAP interface: what a vCenter does to a call on a bad day.

Fields that every one of them matches: `method` (WSDL name), `vm` (id of the object the method is
called on, whatever it is), `user` ("" before login). Thread model: the connection's thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from pyVmomi import vim

from lab.faults import FaultName, FaultSwitches
from lab.vcenter.call import Call, no_permission
from lab.vcenter.http_message import ConnectionCut, HttpReply
from lab.vcenter.soap_request import Element

_TEXT = ("Content-Type", "text/plain")


@dataclass(frozen=True, slots=True)
class SoapFaults:
    """Asked by the endpoint: `before` a call is looked at, and `after` it was carried out."""

    switches: FaultSwitches

    def page(self, call: Call, method: Element) -> HttpReply | None:
        """An answer that is no SOAP at all."""
        fields = _fields(call, method)
        slow = self.switches.take(FaultName.SOAP_DELAY, **fields)
        if slow is not None:
            time.sleep(slow.amount)
        if self.switches.take(FaultName.SOAP_500, **fields):
            return HttpReply(status=500, headers=[_TEXT], body=b"Internal Server Error\n")
        return None

    def before(self, call: Call, method: Element) -> Call:
        """The call, maybe without its session. Raises the fault to answer with."""
        fields = _fields(call, method)
        session = call.session
        if session is not None and self.switches.take(FaultName.SESSION_DROP, **fields):
            call.vcenter.sessions.end(session)
            return replace(call, session=None)
        if self.switches.take(FaultName.PRIVILEGE_LOST, **fields):
            thing = call.vcenter.registry.get(fields["vm"]) or call.vcenter.root_folder
            raise no_permission("System.Read", thing)
        if self.switches.take(FaultName.TASK_IN_PROGRESS, **fields):
            raise vim.fault.TaskInProgress(msg="The operation is not allowed: a task runs.")
        return call

    def after(self, call: Call, method: Element) -> None:
        """Raises ConnectionCut when the answer gets lost."""
        if self.switches.take(FaultName.LOST_TASK_REPLY, **_fields(call, method)):
            raise ConnectionCut("the answer gets lost")


def _fields(call: Call, method: Element) -> dict[str, str]:
    target = next((child.text for child in method.children if child.name == "_this"), "")
    user = call.session.user if call.session is not None else ""
    return {"method": method.name, "vm": (target or "").strip(), "user": user}
