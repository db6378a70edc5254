"""EventManager: what has happened, newest last, and queries over it; TaskManager's list beside it.

Thread model: any thread; one lock. The newest `KEPT_EVENTS` are kept.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from lab.vcenter.call import Call
from lab.vcenter.event_history import EventHistoryCollector
from lab.vcenter.managed_object import LabObject, ManagedEntity, computed, method
from lab.vcenter.property_selection import invalid_argument

if TYPE_CHECKING:
    from lab.vcenter.lab_vcenter import LabVcenter

KEPT_EVENTS = 10_000
QUERY_LIMIT = 1000
_ARGUMENTS: dict[Any, tuple[str, Any, str]] = {
    vim.VirtualMachine: ("vm", vim.event.VmEventArgument, "vm"),
    vim.HostSystem: ("host", vim.event.HostEventArgument, "host"),
    vim.ComputeResource: (
        "computeResource",
        vim.event.ComputeResourceEventArgument,
        "computeResource",
    ),
    vim.Datacenter: ("datacenter", vim.event.DatacenterEventArgument, "datacenter"),
    vim.Datastore: ("ds", vim.event.DatastoreEventArgument, "datastore"),
    vim.Network: ("net", vim.event.NetworkEventArgument, "network"),
}


class EventManager(LabObject):
    vim_type = vim.event.EventManager

    def __init__(self, vcenter: LabVcenter, moid: str) -> None:
        super().__init__(vcenter, moid)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._kept: deque[tuple[Any, tuple[str, ...]]] = deque(maxlen=KEPT_EVENTS)

    def post(
        self,
        kind: Any,
        message: str,
        *,
        user: str = "",
        entity: ManagedEntity | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Record an event of a vim class; the entity and what it stands in are filled in.

        `extra` are further fields of the class."""
        about = [entity, *entity.ancestors()] if entity is not None else [self.vcenter.root_folder]
        arguments: dict[str, Any] = {}
        for thing in about:
            for vim_type, (name, argument, field) in _ARGUMENTS.items():
                if issubclass(thing.vim_type, vim_type) and name not in arguments:
                    arguments[name] = argument(**{"name": thing.name, field: thing.ref})
        with self._lock:
            number = next(self._numbers)
            event = kind(
                key=number,
                chainId=number,
                createdTime=datetime.now(UTC),
                userName=user,
                fullFormattedMessage=message,
                **{**arguments, **(extra or {})},
            )
            self._kept.append((event, tuple(thing.moid for thing in about)))
        self.touch()

    @computed("latestEvent")
    def _latest(self, _call: Call | None) -> Any:
        with self._lock:
            return self._kept[-1][0] if self._kept else None

    @computed("maxCollector")
    def _max_collector(self, _call: Call | None) -> Any:
        return 32

    @method("LogUserEvent")
    def log_user_event(self, call: Call, ref: Any, message: str) -> None:
        entity = call.resolve(ref, ManagedEntity)
        self.post(
            vim.event.GeneralUserEvent,
            f"User logged event: {message}",
            user=call.authenticated().user,
            entity=entity,
            extra={
                "message": message,
                "entity": vim.event.ManagedEntityEventArgument(name=entity.name, entity=entity.ref),
            },
        )

    @method("QueryEvents")
    def query(self, call: Call, spec: Any, _view: Any) -> Any:
        """The newest that fit, oldest first, at most QUERY_LIMIT."""
        if spec.maxCount is not None and spec.maxCount <= 0:
            raise invalid_argument("filter.maxCount", "maxCount must be positive.")
        limit = min(spec.maxCount or QUERY_LIMIT, QUERY_LIMIT)
        if spec.entity is not None:
            call.require("System.View", call.resolve(spec.entity.entity, ManagedEntity))
        return self._fitting(spec)[-limit:]

    @method("CreateCollectorForEvents")
    def create_collector(self, call: Call, spec: Any) -> Any:
        if spec.entity is not None:
            call.require("System.View", call.resolve(spec.entity.entity, ManagedEntity))
        made = EventHistoryCollector(self.vcenter, spec, lambda: self._fitting(spec))
        made.owner = call.authenticated()
        return made.ref

    @computed("description")
    def _description(self, _call: Call | None) -> Any:
        with self._lock:
            kinds = {type(event) for event, _about in self._kept}
        return vim.event.EventDescription(
            category=[vim.ElementDescription(key="info", label="Information", summary="")],
            eventInfo=[
                vim.event.EventDescription.EventDetail(
                    key=kind,
                    category="info",
                    formatOnDatacenter="",
                    formatOnComputeResource="",
                    formatOnHost="",
                    formatOnVm="",
                    fullFormat="",
                )
                for kind in kinds
            ],
        )

    def _fitting(self, spec: Any) -> list[Any]:
        with self._lock:
            kept = list(self._kept)
        return [event for event, about in kept if _fits(event, about, spec)]


def _fits(event: Any, about: tuple[str, ...], spec: Any) -> bool:
    if spec.entity is not None and not _is_about(about, spec.entity):
        return False
    if spec.time is not None:
        begin, end = spec.time.beginTime, spec.time.endTime
        if (begin and event.createdTime < begin) or (end and event.createdTime > end):
            return False
    if spec.type and not isinstance(event, tuple(spec.type)):
        return False
    if spec.eventTypeId and _type_id(event) not in spec.eventTypeId:
        return False
    if spec.eventChainId is not None and event.chainId != spec.eventChainId:
        return False
    return spec.userName is None or event.userName in spec.userName.userList


def _type_id(event: Any) -> str:
    return f"vim.event.{type(event).__name__.rpartition('.')[2]}"


def _is_about(about: tuple[str, ...], wanted: Any) -> bool:
    moid = wanted.entity._moId
    if wanted.recursion == "self":
        return about[:1] == (moid,)
    if wanted.recursion == "children":
        return moid in about[1:]
    return moid in about


class TaskManager(LabObject):
    vim_type = vim.TaskManager

    @computed("recentTask")
    def _recent(self, _call: Call | None) -> Any:
        return self.vcenter.tasks.recent()

    @computed("maxCollector")
    def _max_collector(self, _call: Call | None) -> Any:
        return 32
