"""Restores, and what goes on in the background: a new VM of a recovery point, or a VM rolled back.

What is asked for is checked and begun; the answer names the operation, which tells how far it is.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import AwareDatetime, Field, model_validator

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.api.routes.runs import LiveShown, live_shown
from appliance.catalog.runs import RunOutcome, RunRecord
from appliance.jobs.rollback_contract import RollbackOptions
from appliance.jobs.vm_restore import VmRestoreOptions
from appliance.service.operations import OperationKind
from appliance.targets.contract import Keep, WantedVmPlace

table = RouteTable("restores")

_NAME_MAX = 255
_NETWORKS_MAX = 64


class OperationShown(Shown):
    run_id: str
    kind: OperationKind
    vm: str
    host: str | None
    started_at: AwareDatetime
    ended_at: AwareDatetime | None
    outcome: RunOutcome | None
    error_code: str | None
    result: dict[str, Any] = Field(
        description="What is known of it; when it has ended, what was made"
    )
    live: LiveShown | None = Field(description="While it goes on")


class NetworkChange(Body):
    old: str = Field(min_length=1, max_length=_NAME_MAX, description="As when it was backed up")
    new: str = Field(default="", max_length=_NAME_MAX, description="Empty: the same")


class VmPlacement(Body):
    """Where the VM goes; what is empty is chosen."""

    host: str | None = Field(default=None, max_length=63, description="None: the only one")
    folder: str = Field(default="", max_length=1024)
    pool: str = Field(default="", max_length=1024)
    machine: str = Field(default="", max_length=_NAME_MAX, description="The ESXi host")

    def place(self, datastore: str = "") -> WantedVmPlace:
        return WantedVmPlace(
            folder=self.folder, pool=self.pool, machine=self.machine, datastore=datastore
        )


class NewRestore(VmPlacement):
    """A new VM of a recovery point; the VM that the point is of is not touched."""

    point: str = Field(min_length=1, max_length=64)
    name: str = Field(default="", max_length=80, description="Empty: as the original")
    datastore: str = Field(default="", max_length=_NAME_MAX)
    networks: tuple[NetworkChange, ...] = Field(default=(), max_length=_NETWORKS_MAX)
    unconnected: tuple[str, ...] = Field(default=(), max_length=_NETWORKS_MAX)
    mac: Keep = Keep.AUTO
    identity: Keep = Keep.AUTO
    power_on: bool = False
    note: str = Field(default="", max_length=500, description="Why, for the record")


class NewRollback(Body):
    """The VM that a point is of becomes as it was; only what differs is written."""

    point: str = Field(min_length=1, max_length=64)
    host: str | None = Field(default=None, max_length=63)
    power_off: bool = Field(default=False, description="Consent, should the VM run")
    power_on: bool = False
    verify: bool = Field(default=True, description="Compare the disks by hash afterwards")
    configuration: bool = False
    networks: tuple[NetworkChange, ...] = Field(default=(), max_length=_NETWORKS_MAX)
    note: str = Field(default="", max_length=500)

    @model_validator(mode="after")
    def _networks_need_configuration(self) -> Self:
        if pairs_of(self.networks) and not self.configuration:
            raise ValueError("networks are part of the configuration: set configuration too")
        return self


class OperationQuery(Body):
    limit: int = Field(default=50, ge=1, le=500)


@table.add(
    "GET", "/operations", Permission.VIEW, query=OperationQuery, response=list[OperationShown]
)
def list_operations(call: Call) -> list[OperationShown]:
    """Restores and steps of recovery sessions, newest first."""
    found = call.services.recover.operations.list(call.query_as(OperationQuery).limit)
    return [_shown(call, record) for record in reversed(found)]


@table.add("GET", "/operations/{operation}", Permission.VIEW, response=OperationShown)
def show_operation(call: Call) -> OperationShown:
    """One of them, with its progress or its result."""
    return shown_operation(call, call.path["operation"])


@table.add("POST", "/operations/{operation}/cancel", Permission.RESTORE)
def cancel_operation(call: Call) -> None:
    """Ask it to end; what it made is taken away again as far as that is safe."""
    call.services.recover.operations.cancel(call.path["operation"])


@table.add("POST", "/restores", Permission.RESTORE, body=NewRestore, response=OperationShown)
def begin_restore(call: Call) -> OperationShown:
    """Begin to restore a recovery point as a new VM."""
    body = call.body_as(NewRestore)
    call.about = body.point
    options = VmRestoreOptions(
        name=body.name,
        place=body.place(body.datastore),
        networks=pairs_of(body.networks),
        unconnected=frozenset(body.unconnected),
        mac=body.mac,
        identity=body.identity,
        power_on=body.power_on,
    )
    run_id = call.services.recover.restore(body.point, body.host, options, body.note)
    return shown_operation(call, run_id)


@table.add("POST", "/rollbacks", Permission.RESTORE, body=NewRollback, response=OperationShown)
def begin_rollback(call: Call) -> OperationShown:
    """Begin to roll a VM back to a recovery point, in place."""
    body = call.body_as(NewRollback)
    call.about = body.point
    options = RollbackOptions(
        power_off=body.power_off,
        power_on=body.power_on,
        verify=body.verify,
        configuration=body.configuration,
        networks=pairs_of(body.networks),
    )
    run_id = call.services.recover.roll_back(body.point, body.host, options, body.note)
    return shown_operation(call, run_id)


def shown_operation(call: Call, run_id: str) -> OperationShown:
    return _shown(call, call.services.recover.operations.get(run_id))


def pairs_of(changes: tuple[NetworkChange, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((each.old, each.new) for each in changes if each.new)


def _shown(call: Call, record: RunRecord) -> OperationShown:
    operations = call.services.recover.operations
    live = operations.live(record.run_id)
    return OperationShown(
        run_id=record.run_id,
        kind=OperationKind(record.kind),
        vm=record.vm,
        host=record.host,
        started_at=record.started_at,
        ended_at=record.ended_at,
        outcome=record.outcome,
        error_code=record.error_code,
        result=record.result or operations.facts(record.run_id),
        live=live_shown(live) if live else None,
    )
