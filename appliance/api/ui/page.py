"""A page: address, permission, template, and a function that asks the API for what it shows.

Pages only read, and only through the handlers of API routes; what changes something is a form
(`forms.py`). Whoever is not logged in gets the login page in place of any other. What fails is a
page too.
Thread model: pages are made on worker threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from appliance.api.errors import NotLoggedInError, status_of
from appliance.api.gate import Gate
from appliance.api.permissions import OF_ROLE, Permission, may
from appliance.api.route import Call, Handler, Principal
from appliance.api.services import Services
from appliance.base.errors import ApplianceError
from appliance.base.units import format_duration, format_rate, format_size

FOLDER = Path(__file__).parent
MENU = (
    ("Protection", "/", "Overview", Permission.VIEW),
    ("Protection", "/vms", "Virtual machines", Permission.VIEW),
    ("Protection", "/jobs", "Jobs", Permission.VIEW),
    ("Protection", "/policies", "Policies", Permission.VIEW),
    ("Protection", "/runs", "Runs", Permission.VIEW),
    ("Recovery", "/recoveries", "Recovery sessions", Permission.VIEW),
    ("Recovery", "/operations", "Restores", Permission.VIEW),
    ("Recovery", "/reports", "Proofs and reports", Permission.VIEW),
    ("Appliance", "/repository", "Repository", Permission.VIEW),
    ("Appliance", "/hosts", "Hypervisors", Permission.VIEW),
    ("Appliance", "/notifications", "Notifications", Permission.CONFIGURE),
    ("Appliance", "/security", "Security check", Permission.VIEW),
    ("Appliance", "/settings", "Settings", Permission.VIEW),
    ("Appliance", "/accounts", "Accounts", Permission.ADMINISTER),
    ("Appliance", "/approvals", "Approvals", Permission.ADMINISTER),
    ("Appliance", "/audit", "Audit log", Permission.ADMINISTER),
    ("Appliance", "/me", "My account", Permission.VIEW),
)


@dataclass(slots=True, kw_only=True)
class PageCall:
    """Who asks for a page, with what in its address."""

    call: Call
    address: str  # without its query
    pairs: tuple[tuple[str, str], ...]  # of the query

    @property
    def services(self) -> Services:
        return self.call.services

    def ask(
        self,
        handler: Handler,
        *,
        query: BaseModel | None = None,
        body: BaseModel | None = None,
        **path: str,
    ) -> Any:
        """What the API answers to this caller."""
        call = replace(self.call, query=query, body=body, path=path or self.call.path)
        return handler(call)

    def text(self, name: str) -> str:
        return next((value for key, value in self.pairs if key == name), "")

    def number(self, name: str) -> int | None:
        text = self.text(name)
        return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None

    def may(self, permission: Permission) -> bool:
        return may(self.call.caller.role, permission)


Show = Callable[[PageCall], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """`live`: the kinds of events after which its live parts are asked for again."""

    address: str
    template: str
    permission: Permission
    show: Show
    live: tuple[str, ...] = ()


def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["size"] = format_size
    made.filters["rate"] = format_rate
    made.filters["duration"] = format_duration
    made.filters["when"] = when
    made.filters["urlencode"] = _part_of_address
    return made


def _part_of_address(text: str) -> str:
    """Between two slashes, or in a query; Jinja's own leaves the slashes of a name as they are."""
    return quote(text, safe="")


def when(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


class Pages:
    """Renders templates within the frame of who is logged in."""

    def __init__(self, services: Services, gate: Gate) -> None:
        self._services = services
        self._gate = gate
        self._environment = environment()

    def endpoint(self, page: Page) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def endpoint(request: web.Request) -> web.Response:
            self._gate.count(request.remote or "-", login=False)
            status, text = await asyncio.to_thread(self._render, page, request)
            return web.Response(status=status, text=text, content_type="text/html")

        return endpoint

    async def show(
        self, request: web.Request, template: str, fields: dict[str, Any], status: int
    ) -> web.Response:
        """A template that belongs to no page, for whoever is logged in or not."""
        text = await asyncio.to_thread(self._plain, request, template, fields)
        return web.Response(status=status, text=text, content_type="text/html")

    def _render(self, page: Page, request: web.Request) -> tuple[int, str]:
        try:
            principal = self._gate.require(request, page.permission, changes=False)
            call = Call(
                services=self._services,
                principal=principal,
                address=request.remote or "-",
                path=dict(request.match_info),
                body=None,
                query=None,
            )
            pairs = tuple(request.query.items())
            shown = page.show(PageCall(call=call, address=request.path, pairs=pairs))
        except NotLoggedInError:
            needs_setup = not self._services.catalog.accounts.any()
            frame = self._frame(None) | {"needs_setup": needs_setup}
            return 200, self._template("login.html", frame)
        except ApplianceError as error:
            step = " ".join((type(error).__doc__ or "").split())
            return status_of(error), self._plain(
                request, "error.html", {"error": error, "next_step": step}
            )
        return 200, self._template(page.template, self._frame(principal, page) | shown)

    def _plain(self, request: web.Request, template: str, fields: dict[str, Any]) -> str:
        principal = self._gate.principal(request, changes=False)
        return self._template(template, self._frame(principal) | fields)

    def _template(self, name: str, shown: dict[str, Any]) -> str:
        return self._environment.get_template(name).render(shown)

    def _frame(self, principal: Principal | None, page: Page | None = None) -> dict[str, Any]:
        here = page.address if page else ""
        live = " ".join(page.live) if page else ""
        frame: dict[str, Any] = {"me": None, "csrf": None, "here": here, "live": live}
        if principal is None:
            return frame
        secret = principal.session_secret
        session = self._services.catalog.web_sessions.find(secret) if secret else None
        groups: dict[str, list[tuple[str, str]]] = {}
        for group, at, text, needed in MENU:
            if may(principal.role, needed):
                groups.setdefault(group, []).append((at, text))
        return frame | {
            "me": {
                "name": principal.name,
                "role": str(principal.role),
                "permissions": [str(each) for each in OF_ROLE[principal.role]],
            },
            "csrf": session.csrf if session else None,
            "menu": groups,
        }
