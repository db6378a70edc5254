"""Recovery sessions: VMs that run from their backup."""

from __future__ import annotations

from pydantic import AwareDatetime

from appliance.api.permissions import Permission
from appliance.api.route import Call, RouteTable, Shown
from appliance.service.recovery_server import ServedSession

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


@table.add("GET", "/recoveries", Permission.VIEW, response=list[RecoveryShown])
def list_recoveries(call: Call) -> list[RecoveryShown]:
    """All recovery sessions, oldest first."""
    return [_shown(each) for each in call.services.recovery.sessions()]


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
