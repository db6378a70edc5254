"""First set-up, login, logout, and who one is."""

from __future__ import annotations

import hmac

from pydantic import Field

from appliance.api.errors import ForbiddenError
from appliance.api.permissions import OF_ROLE, Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.base.secret import Secret
from appliance.base.version import __version__
from appliance.catalog.accounts import Role

table = RouteTable("login")


class About(Shown):
    product: str
    version: str
    needs_setup: bool


class Setup(Body):
    token: str = Field(max_length=64)
    name: str = Field(max_length=64)
    password: str = Field(max_length=1024)


class Login(Body):
    name: str = Field(max_length=64)
    password: str = Field(max_length=1024)
    code: str = Field(default="", max_length=8)


class Me(Shown):
    name: str
    role: Role
    permissions: list[Permission]
    csrf: str | None


@table.add("GET", "/about", None, response=About)
def about(call: Call) -> About:
    """What answers here, and whether it waits for its first account."""
    needs_setup = not call.services.catalog.accounts.any()
    return About(product="Holdfast", version=__version__, needs_setup=needs_setup)


@table.add("POST", "/setup", None, body=Setup, logs_in=True)
def setup(call: Call) -> None:
    """Make the first administrator, with the token that the console shows."""
    body, catalog = call.body_as(Setup), call.services.catalog
    expected = call.services.setup_token
    if not hmac.compare_digest(body.token.encode(), expected.encode()):
        raise ForbiddenError("the set-up token is another; the console of the appliance shows it")
    secret = Secret.of_text(body.password)
    catalog.accounts.create(body.name, secret, Role.ADMINISTRATOR, first=True)
    call.services.on_set_up()
    call.set_session = catalog.web_sessions.begin(body.name)


@table.add("POST", "/login", None, body=Login, logs_in=True)
def log_in(call: Call) -> None:
    """Log in; the answer sets the cookie of a new session."""
    body, catalog = call.body_as(Login), call.services.catalog
    account = catalog.accounts.verify(body.name, Secret.of_text(body.password), body.code)
    call.set_session = catalog.web_sessions.begin(account.name)


@table.add("POST", "/logout", Permission.VIEW)
def log_out(call: Call) -> None:
    """End this session."""
    if call.caller.session_secret:
        call.services.catalog.web_sessions.end(call.caller.session_secret)
    call.end_session = True


@table.add("GET", "/me", Permission.VIEW, response=Me)
def me(call: Call) -> Me:
    """Who is logged in, and what that allows."""
    caller = call.caller
    secret = caller.session_secret
    session = call.services.catalog.web_sessions.find(secret) if secret else None
    return Me(
        name=caller.name,
        role=caller.role,
        permissions=sorted(OF_ROLE[caller.role]),
        csrf=session.csrf if session else None,
    )
