"""The audit log, for administrators."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown

table = RouteTable("audit")


class AuditShown(Shown):
    id: int
    at: AwareDatetime
    actor: str
    address: str
    action: str
    object: str
    outcome: str


class AuditPage(Body):
    before: int | None = Field(default=None, ge=1)
    limit: int = Field(default=100, ge=1, le=1000)


class AuditCheck(Shown):
    intact: bool
    first_broken: int | None


@table.add("GET", "/audit", Permission.ADMINISTER, query=AuditPage, response=list[AuditShown])
def list_audit(call: Call) -> list[AuditShown]:
    """Who changed what, newest first."""
    page = call.query_as(AuditPage)
    found = call.services.catalog.audit.page(before=page.before, limit=page.limit)
    return [AuditShown.model_validate(each) for each in found]


@table.add("GET", "/audit/check", Permission.ADMINISTER, response=AuditCheck)
def check_audit(call: Call) -> AuditCheck:
    """Whether every entry follows from the one before."""
    broken = call.services.catalog.audit.first_broken()
    return AuditCheck(intact=broken is None, first_broken=broken)
