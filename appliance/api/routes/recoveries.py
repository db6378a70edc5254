"""Recovery sessions: VMs that run from their backup."""

from __future__ import annotations

from typing import Self

from pydantic import AwareDatetime, Field, model_validator

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.api.routes.operations import (
    NetworkChange,
    OperationShown,
    VmPlacement,
    pairs_of,
    shown_operation,
)
from appliance.exports.datastore.session import Presentation, SessionNotFoundError
from appliance.jobs.instant_recovery import HEARTBEAT_WITHIN_S, StartOptions
from appliance.service.recovery_server import ServedSession
from appliance.service.recovery_service import InstantWishes
from appliance.targets.contract import Keep
from appliance.targets.recovery import Breadth

table = RouteTable("recoveries")


class StepShown(Shown):
    name: str
    seconds: float
    ended_at: AwareDatetime


class RecoveryShown(Shown):
    session_id: str
    vm: str
    point_id: str
    host: str | None
    phase: str
    datastore: str
    created_at: AwareDatetime
    presentation: str
    power_on: bool
    steps: tuple[StepShown, ...]
    stuck: str | None
    served: bool
    failure: str | None


class NewRecovery(VmPlacement):
    """How a VM is to run from a recovery point."""

    point: str = Field(min_length=1, max_length=64)
    name: str = Field(default="", max_length=80, description="Empty: as the original")
    networks: tuple[NetworkChange, ...] = Field(default=(), max_length=64)
    isolate_all: bool = Field(default=False, description="All adapters: a network to nowhere")
    isolated: tuple[str, ...] = Field(default=(), max_length=64, description="Old networks")
    unconnected: tuple[str, ...] = Field(default=(), max_length=64, description="Old networks")
    mac: Keep = Keep.AUTO
    identity: Keep = Keep.AUTO
    power_on: bool = True
    heartbeat_within_s: float = Field(default=HEARTBEAT_WITHIN_S, gt=0, le=24 * 3600)
    breadth: Breadth = Breadth.HOST
    address: str = Field(
        default="", max_length=253, description="Where hosts reach this appliance; empty: found out"
    )
    presentation: Presentation | None = Field(
        default=None, description="How a Hyper-V host sees the disks; none: the host's usual way"
    )
    note: str = Field(default="", max_length=500, description="Why, for the record")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.isolate_all and (pairs_of(self.networks) or self.isolated):
            raise ValueError("isolate_all is for all adapters; leave networks and isolated out")
        return self


class Resume(Body):
    power_on: bool = True
    heartbeat_within_s: float = Field(default=HEARTBEAT_WITHIN_S, gt=0, le=24 * 3600)


class Finalise(Body):
    datastore: str = Field(
        default="", max_length=255, description="Empty: where it was, if it fits"
    )
    allow_downtime: bool = Field(default=False, description="Shut it down if it cannot move else")


@table.add("GET", "/recoveries", Permission.VIEW, response=list[RecoveryShown])
def list_recoveries(call: Call) -> list[RecoveryShown]:
    """All recovery sessions, oldest first."""
    return [_shown(each) for each in call.services.recovery.sessions()]


@table.add("POST", "/recoveries", Permission.RESTORE, body=NewRecovery, response=OperationShown)
def start_recovery(call: Call) -> OperationShown:
    """Begin an instant recovery: a VM that runs from its recovery point."""
    body = call.body_as(NewRecovery)
    call.about = body.point
    wishes = InstantWishes(
        name=body.name,
        place=body.place(),
        networks=pairs_of(body.networks),
        isolated=frozenset(body.isolated),
        isolate_all=body.isolate_all,
        unconnected=frozenset(body.unconnected),
        mac=body.mac,
        identity=body.identity,
        address=body.address,
        breadth=body.breadth,
        presentation=body.presentation,
        start=StartOptions(power_on=body.power_on, heartbeat_within_s=body.heartbeat_within_s),
    )
    return shown_operation(
        call, call.services.recover.start(body.point, body.host, wishes, body.note)
    )


@table.add("GET", "/recoveries/{session}", Permission.VIEW, response=RecoveryShown)
def show_recovery(call: Call) -> RecoveryShown:
    """One recovery session."""
    wanted = call.path["session"]
    for each in call.services.recovery.sessions():
        if each.record.session_id == wanted:
            return _shown(each)
    raise SessionNotFoundError(f"no session {wanted!r}")


@table.add(
    "POST",
    "/recoveries/{session}/resume",
    Permission.RESTORE,
    body=Resume,
    response=OperationShown,
)
def resume_recovery(call: Call) -> OperationShown:
    """Go on with a start that did not end."""
    body = call.body_as(Resume)
    options = StartOptions(power_on=body.power_on, heartbeat_within_s=body.heartbeat_within_s)
    return shown_operation(call, call.services.recover.resume(call.path["session"], options))


@table.add(
    "POST",
    "/recoveries/{session}/finalise",
    Permission.RESTORE,
    body=Finalise,
    response=OperationShown,
)
def finalise_recovery(call: Call) -> OperationShown:
    """Begin to move the VM to production storage, which ends the session."""
    body = call.body_as(Finalise)
    run_id = call.services.recover.finalise(
        call.path["session"], body.datastore, allow_downtime=body.allow_downtime
    )
    return shown_operation(call, run_id)


@table.add("POST", "/recoveries/{session}/discard", Permission.RESTORE, response=OperationShown)
def discard_recovery(call: Call) -> OperationShown:
    """Begin to take the VM away; what its guest wrote is lost."""
    return shown_operation(call, call.services.recover.discard(call.path["session"]))


def _shown(session: ServedSession) -> RecoveryShown:
    record = session.record
    return RecoveryShown(
        session_id=record.session_id,
        vm=record.vm,
        point_id=record.point_id,
        host=record.host,
        phase=record.phase,
        datastore=record.datastore,
        created_at=record.created_at,
        presentation=record.presentation,
        power_on=record.power_on,
        steps=tuple(map(StepShown.model_validate, record.steps)),
        stuck=record.stuck,
        served=session.served,
        failure=session.failure,
    )
