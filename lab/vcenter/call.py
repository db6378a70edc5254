"""One SOAP call as a handler sees it: who calls, with which API version, and what he may do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pyVmomi import vim, vmodl

from lab.faults import FaultName
from lab.vcenter.managed_object import LabObject, ManagedEntity
from lab.vcenter.registry import not_found
from lab.vcenter.sessions import Session, not_authenticated

if TYPE_CHECKING:
    from lab.vcenter.lab_vcenter import LabVcenter
    from lab.vcenter.tasks import TaskControl

Kind = TypeVar("Kind", bound=LabObject)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    vcenter: LabVcenter
    session: Session | None  # None: not logged in
    version: str  # such as vim.version.v8_0_3_0
    peer: str
    user_agent: str = ""
    method: Any = None  # pyVmomi's method info
    new_session: list[Session] = field(default_factory=list)  # what Login sets for the reply

    def resolve(self, ref: Any, kind: type[Kind]) -> Kind:
        """Raises ManagedObjectNotFound, also for what belongs to another session."""
        thing = self.vcenter.registry.resolve(ref, kind)
        if thing.owner is not None and thing.owner is not self.session:
            raise not_found(ref)
        return thing

    def authenticated(self) -> Session:
        """Raises NotAuthenticated."""
        if self.session is None:
            raise not_authenticated(self.vcenter.root_folder.ref)
        return self.session

    def may(self, privilege: str, thing: LabObject) -> bool:
        if privilege == "System.Anonymous":
            return True
        if self.session is None:
            return False
        return self.vcenter.accounts.allows(self.session.user, privilege, thing.guarded_by())

    def require(self, privilege: str, *things: LabObject) -> None:
        """Raises NotAuthenticated or NoPermission, which names the entity and the privilege."""
        if privilege != "System.Anonymous":
            self.authenticated()
        for thing in things:
            if not self.may(privilege, thing):
                raise no_permission(privilege, thing)

    def start_task(
        self,
        entity: ManagedEntity,
        work: Callable[[TaskControl], Any],
        *,
        cancelable: bool = False,
        description_id: str | None = None,
    ) -> Any:
        """Start `work` on a thread of its own and return the task's reference."""
        if description_id is None:
            info = self.method
            description_id = f"{info.type._wsdlName}.{info.name[0].lower()}{info.name[1:]}"
        name = self.method.wsdlName if self.method is not None else description_id
        if self.vcenter.switches.take(FaultName.TASK_FAILURE, method=name, vm=entity.moid):
            work = _fail
        return self.vcenter.tasks.start(
            entity,
            work,
            description_id=description_id,
            user=self.authenticated().user,
            cancelable=cancelable,
        ).ref


def _fail(_task: TaskControl) -> None:
    reason = "A general system error occurred: the host did not answer"
    raise vmodl.fault.SystemError(msg=reason, reason=reason)


def no_permission(privilege: str, thing: LabObject) -> BaseException:
    entity = thing.guarded_by()
    fault: BaseException = vim.fault.NoPermission(
        msg="Permission to perform this operation was denied.",
        object=entity.ref,
        privilegeId=privilege,
        missingPrivileges=[
            vim.fault.NoPermission.EntityPrivileges(entity=entity.ref, privilegeIds=[privilege])
        ],
    )
    return fault
