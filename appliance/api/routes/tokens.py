"""API tokens for programs."""

from __future__ import annotations

from datetime import timedelta

from pydantic import AwareDatetime, Field

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.catalog.accounts import Role

table = RouteTable("tokens")


class TokenShown(Shown):
    name: str
    role: Role
    created_by: str
    created_at: AwareDatetime
    expires_at: AwareDatetime | None
    used_at: AwareDatetime | None
    acts_as: Role
    refused: bool


class NewToken(Body):
    name: str = Field(min_length=1, max_length=64)
    role: Role
    days: int | None = Field(default=None, ge=1, le=3650)


class MadeToken(Shown):
    name: str
    token: str


@table.add("GET", "/tokens", Permission.ADMINISTER, response=list[TokenShown])
def list_tokens(call: Call) -> list[TokenShown]:
    """All tokens, without their secrets."""
    return [TokenShown.model_validate(each) for each in call.services.catalog.api_tokens.list()]


@table.add("POST", "/tokens", Permission.ADMINISTER, body=NewToken, response=MadeToken)
def create_token(call: Call) -> MadeToken:
    """Make a token; it is shown this once, ends with its maker's account and can do no more."""
    body, catalog = call.body_as(NewToken), call.services.catalog
    expires_at = None if body.days is None else catalog.clock.now() + timedelta(days=body.days)
    token = catalog.api_tokens.create(
        body.name, body.role, created_by=call.caller.behind, expires_at=expires_at
    )
    return MadeToken(name=body.name, token=token)


@table.add("DELETE", "/tokens/{name}", Permission.ADMINISTER)
def remove_token(call: Call) -> None:
    """Revoke a token."""
    call.services.catalog.api_tokens.remove(call.path["name"])
