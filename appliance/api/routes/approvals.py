"""What waits for a second administrator, and whether deletion needs one."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from appliance.api.errors import ForbiddenError
from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.base.errors import UsageError
from appliance.catalog.approvals import ApprovalKind, ApprovalState, Guard
from appliance.service.deletion import Asked

table = RouteTable("approvals")


class ApprovalShown(Shown):
    id: int
    kind: ApprovalKind
    objects: tuple[str, ...]
    reason: str
    requested_by: str
    requested_at: AwareDatetime
    expires_at: AwareDatetime
    state: ApprovalState
    decided_by: str | None
    decided_at: AwareDatetime | None


class AskedShown(Shown):
    """What became of a change: done, or a request that another administrator decides."""

    state: Literal["done", "waits-for-approval"]
    approval: ApprovalShown | None


class GuardShown(Shown):
    require: Guard


class GuardChange(Body):
    require: Guard


class ApprovalQuery(Body):
    limit: int = Field(default=100, ge=1, le=1000)


@table.add(
    "GET",
    "/approvals",
    Permission.ADMINISTER,
    query=ApprovalQuery,
    response=list[ApprovalShown],
)
def list_approvals(call: Call) -> list[ApprovalShown]:
    """Requests for a second administrator's approval, newest first."""
    limit = call.query_as(ApprovalQuery).limit
    found = call.services.catalog.approvals.list(limit=limit)
    return [ApprovalShown.model_validate(each) for each in found]


@table.add("POST", "/approvals/{id}/approve", Permission.ADMINISTER, response=ApprovalShown)
def approve(call: Call) -> ApprovalShown:
    """Approve what another administrator asked for; it is carried out at once."""
    done = call.services.deletion.approve(_number(call), by=_account(call))
    return ApprovalShown.model_validate(done)


@table.add("POST", "/approvals/{id}/refuse", Permission.ADMINISTER, response=ApprovalShown)
def refuse(call: Call) -> ApprovalShown:
    """Refuse it, or take one's own request back."""
    refused = call.services.deletion.refuse(_number(call), by=_account(call))
    return ApprovalShown.model_validate(refused)


@table.add("GET", "/approvals/guard", Permission.ADMINISTER, response=GuardShown)
def show_guard(call: Call) -> GuardShown:
    """Whether forgetting points by hand needs a second administrator."""
    return GuardShown(require=call.services.catalog.approvals.guard())


@table.add("PUT", "/approvals/guard", Permission.ADMINISTER, body=GuardChange, response=AskedShown)
def change_guard(call: Call) -> AskedShown:
    """Demand a second administrator, or ask to demand none."""
    wanted = call.body_as(GuardChange).require
    return asked_shown(call.services.deletion.require(wanted, by=call.caller.behind))


def asked_shown(asked: Asked) -> AskedShown:
    if asked.approval is None:
        return AskedShown(state="done", approval=None)
    approval = ApprovalShown.model_validate(asked.approval)
    return AskedShown(state="waits-for-approval", approval=approval)


def _account(call: Call) -> str:
    """People decide; a token could be the one who asked. Raises ForbiddenError."""
    if call.caller.account is None:
        raise ForbiddenError("a token cannot approve or refuse; log in")
    return call.caller.account


def _number(call: Call) -> int:
    text = call.path["id"]
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise UsageError(f"not the number of a request: {text[:40]!r}")
    return int(text)
