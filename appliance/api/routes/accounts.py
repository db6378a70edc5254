"""Accounts, which administrators keep; everybody may change their own password."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from appliance.service.deletion import keep_two_administrators, refuse_while_guarded

table = RouteTable("accounts")


class AccountShown(Shown):
    name: str
    role: Role
    created_at: datetime
    disabled: bool
    has_totp: bool


class NewAccount(Body):
    name: str = Field(max_length=64)
    password: str = Field(max_length=1024)
    role: Role


class AccountChange(Body):
    role: Role | None = None
    disabled: bool | None = None
    password: str | None = Field(default=None, max_length=1024)


class OwnPassword(Body):
    old: str = Field(max_length=1024)
    new: str = Field(max_length=1024)
    code: str = Field(default="", max_length=8)


class TotpShown(Shown):
    uri: str


@table.add("GET", "/accounts", Permission.ADMINISTER, response=list[AccountShown])
def list_accounts(call: Call) -> list[AccountShown]:
    """All accounts."""
    return [AccountShown.model_validate(each) for each in call.services.catalog.accounts.list()]


@table.add("POST", "/accounts", Permission.ADMINISTER, body=NewAccount, response=AccountShown)
def create_account(call: Call) -> AccountShown:
    """Make an account."""
    body = call.body_as(NewAccount)
    if body.role is Role.ADMINISTRATOR:
        refuse_while_guarded(call.services.catalog, "no administrator is made")
    made = call.services.catalog.accounts.create(
        body.name, Secret.of_text(body.password), body.role
    )
    return AccountShown.model_validate(made)


@table.add(
    "PATCH",
    "/accounts/{name}",
    Permission.ADMINISTER,
    body=AccountChange,
    response=AccountShown,
)
def change_account(call: Call) -> AccountShown:
    """Change role, password, or whether it may log in, for its tokens too; ends its sessions."""
    name, body, catalog = call.path["name"], call.body_as(AccountChange), call.services.catalog
    before = catalog.accounts.get(name)
    if Role.ADMINISTRATOR in (before.role, body.role) and name != call.caller.account:
        refuse_while_guarded(catalog, "no administrator's account is changed")
    if body.disabled or body.role not in (None, Role.ADMINISTRATOR):
        keep_two_administrators(catalog, name)
    password = None if body.password is None else Secret.of_text(body.password)
    catalog.accounts.change(name, role=body.role, disabled=body.disabled, password=password)
    catalog.web_sessions.end_all(name)
    return AccountShown.model_validate(catalog.accounts.get(name))


@table.add("DELETE", "/accounts/{name}", Permission.ADMINISTER)
def remove_account(call: Call) -> None:
    """Remove an account and the tokens it made, and end its sessions."""
    keep_two_administrators(call.services.catalog, call.path["name"])
    call.services.catalog.accounts.remove(call.path["name"])


@table.add("POST", "/me/password", Permission.VIEW, body=OwnPassword, logs_in=True)
def change_own_password(call: Call) -> None:
    """Change one's own password; ends all sessions and begins a new one."""
    body, catalog, name = call.body_as(OwnPassword), call.services.catalog, _own(call)
    catalog.accounts.verify(name, Secret.of_text(body.old), body.code)
    catalog.accounts.set_password(name, Secret.of_text(body.new))
    catalog.web_sessions.end_all(name)
    call.set_session = catalog.web_sessions.begin(name)


@table.add("POST", "/me/totp", Permission.VIEW, response=TotpShown)
def enable_own_totp(call: Call) -> TotpShown:
    """Make a new second factor; its key is shown this once."""
    return TotpShown(uri=call.services.catalog.accounts.enable_totp(_own(call)))


@table.add("DELETE", "/accounts/{name}/totp", Permission.ADMINISTER)
def disable_totp(call: Call) -> None:
    """Take the second factor from an account whose device is lost."""
    catalog, name = call.services.catalog, call.path["name"]
    if catalog.accounts.get(name).role is Role.ADMINISTRATOR:
        refuse_while_guarded(catalog, "no administrator's second factor is taken away")
    catalog.accounts.disable_totp(name)


def _own(call: Call) -> str:
    if call.caller.account is None:
        raise UsageError("a token has no password of its own")
    return call.caller.account
