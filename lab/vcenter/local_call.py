"""Methods called from within the process, as the administrator, by the way a client would go.

For what sets a lab up: registering and powering on machines goes through the same handlers, checks
and tasks as for any client. Blocks until a task has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lab.vcenter.api_versions import NEWEST
from lab.vcenter.call import Call
from lab.vcenter.managed_object import LabObject, method_infos
from lab.vcenter.sessions import Session
from lab.vcenter.tasks import Task

if TYPE_CHECKING:
    from lab.vcenter.lab_vcenter import LabVcenter


def call_method(vcenter: LabVcenter, thing: LabObject, wsdl_name: str, *arguments: Any) -> Any:
    """Return the method's result, or its task's. Raises the fault of either."""
    handler = thing.handler(wsdl_name)
    if handler is None:
        raise NotImplementedError(f"{thing} has no {wsdl_name}")
    call = Call(
        vcenter=vcenter,
        session=Session(user=vcenter.user, peer=vcenter.address, user_agent="lab"),
        version=NEWEST,
        peer=vcenter.address,
        method=method_infos(thing.vim_type)[wsdl_name],
    )
    result = getattr(thing, handler.name)(call, *arguments)
    if not wsdl_name.endswith("_Task"):
        return result
    task = vcenter.registry.resolve(result, Task)
    task.finished.wait()
    info = task.get("info")
    if info.error is not None:
        raise info.error
    return info.result
