"""Who calls, and whether they may: what API and pages ask first.

A browser's login is a cookie that scripts cannot read, bound to this host, and its changing
requests must bring the login's CSRF token; programs send a bearer token.
"""

from __future__ import annotations

from aiohttp import web

from appliance.api.errors import (
    CsrfError,
    ForbiddenError,
    NotLoggedInError,
    TooManyRequestsError,
)
from appliance.api.permissions import Permission, may
from appliance.api.rate_limit import RateLimit
from appliance.api.route import Principal
from appliance.api.services import Services

SESSION_COOKIE = "__Host-holdfast"
CSRF_HEADER = "X-CSRF-Token"
BACKGROUND_HEADER = "X-Background"  # a page asks by itself: that keeps no login alive
EVENTS_PATH = "/api/v1/events"


class Gate:
    """Finds out who calls and whether they may; shared by API and pages."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._calls = RateLimit(per_s=50, burst=200)
        self._logins = RateLimit(per_s=0.2, burst=10)

    def count(self, address: str, *, login: bool) -> None:
        """Raises TooManyRequestsError."""
        if not self._calls.take(address) or (login and not self._logins.take(address)):
            raise TooManyRequestsError(f"too many requests from {address}")

    def require(
        self,
        request: web.Request,
        permission: Permission,
        *,
        changes: bool,
        csrf: str | None = None,
    ) -> Principal:
        """`csrf`: the token that a form brings; else it comes in the header.

        Raises NotLoggedInError, ForbiddenError, CsrfError. Blocks on the catalog.
        """
        principal = self.principal(request, changes=changes, csrf=csrf)
        if principal is None:
            raise NotLoggedInError("nobody is logged in")
        if not may(principal.role, permission):
            raise ForbiddenError(f"{principal.role} may not {permission}")
        return principal

    def principal(
        self, request: web.Request, *, changes: bool, csrf: str | None = None
    ) -> Principal | None:
        """Who calls, None for nobody. Raises CsrfError."""
        catalog = self._services.catalog
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            found = catalog.api_tokens.find(token)
            if found is None:
                return None
            return Principal(
                name=f"token {found.name}", behind=found.created_by, role=found.acts_as
            )
        secret = request.cookies.get(SESSION_COOKIE)
        used = BACKGROUND_HEADER not in request.headers and request.path != EVENTS_PATH
        session = catalog.web_sessions.find(secret, used=used) if secret else None
        if session is None:
            return None
        given = request.headers.get(CSRF_HEADER) if csrf is None else csrf
        if changes and given != session.csrf:
            raise CsrfError("the CSRF token is missing or another")
        return Principal(
            name=session.account,
            behind=session.account,
            role=session.role,
            account=session.account,
            session_secret=secret,
        )
