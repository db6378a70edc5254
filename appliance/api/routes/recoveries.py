"""Recovery sessions: VMs that run from their backup."""

from __future__ import annotations

from pydantic import AwareDatetime

from appliance.api.permissions import Permission
from appliance.api.route import Call, RouteTable, Shown

table = RouteTable("recoveries")


class RecoveryShown(Shown):
    session_id: str
    vm: str
    point_id: str
    host: str | None
    phase: str
    datastore: str
    created_at: AwareDatetime
    served: bool
    failure: str | None


@table.add("GET", "/recoveries", Permission.VIEW, response=list[RecoveryShown])
def list_recoveries(call: Call) -> list[RecoveryShown]:
    """All recovery sessions, oldest first."""
    return [
        RecoveryShown(
            session_id=each.record.session_id,
            vm=each.record.vm,
            point_id=each.record.point_id,
            host=each.record.host,
            phase=each.record.phase,
            datastore=each.record.datastore,
            created_at=each.record.created_at,
            served=each.served,
            failure=each.failure,
        )
        for each in call.services.recovery.sessions()
    ]
