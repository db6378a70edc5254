"""The HTTP application: every request authenticated, authorised, bounded and, if it changes
something, written to the audit log; every error a JSON document with its code.

Order of what happens to a request: rate limit, route, login, permission, CSRF, body, handler on a
worker thread, audit. A browser's login is a cookie that scripts cannot read, bound to this host,
and its changing requests must bring the login's CSRF token; programs send a bearer token.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError

from appliance.api.errors import (
    BodyError,
    CsrfError,
    ForbiddenError,
    NotFoundError,
    NotLoggedInError,
    TooManyRequestsError,
    status_of,
)
from appliance.api.openapi import openapi_document
from appliance.api.permissions import may
from appliance.api.rate_limit import RateLimit
from appliance.api.route import Body, Call, Principal, Route
from appliance.api.routes import ROUTES
from appliance.api.services import Services
from appliance.base.errors import ApplianceError

log = logging.getLogger(__name__)

PREFIX = "/api/v1"
SESSION_COOKIE = "__Host-holdfast"
CSRF_HEADER = "X-CSRF-Token"
BODY_BYTES_MAX = 1 << 20
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'self'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


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

    def admit(self, request: web.Request, route: Route) -> Principal | None:
        """Raises NotLoggedInError, ForbiddenError, CsrfError. Blocks on the catalog."""
        if route.permission is None:
            return None
        principal = self.principal(request, changes=route.changes)
        if principal is None:
            raise NotLoggedInError("nobody is logged in")
        if not may(principal.role, route.permission):
            raise ForbiddenError(f"{principal.role} may not {route.permission}")
        return principal

    def principal(self, request: web.Request, *, changes: bool) -> Principal | None:
        """Who calls, None for nobody. Raises CsrfError."""
        catalog = self._services.catalog
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            found = catalog.api_tokens.find(token)
            return Principal(name=f"token {found.name}", role=found.role) if found else None
        secret = request.cookies.get(SESSION_COOKIE)
        session = catalog.web_sessions.find(secret) if secret else None
        if session is None:
            return None
        if changes and request.headers.get(CSRF_HEADER) != session.csrf:
            raise CsrfError("the CSRF token is missing or another")
        return Principal(
            name=session.account,
            role=session.role,
            account=session.account,
            session_secret=secret,
        )


def build_application(services: Services) -> web.Application:
    gate = Gate(services)
    application = web.Application(middlewares=[_headers, _errors], client_max_size=BODY_BYTES_MAX)
    for route in ROUTES:
        application.router.add_route(
            route.method, PREFIX + route.path, _endpoint(route, services, gate)
        )
    document = openapi_document(ROUTES, PREFIX)

    async def openapi(_: web.Request) -> web.Response:
        return web.json_response(document)

    application.router.add_get(f"{PREFIX}/openapi.json", openapi)
    return application


def _endpoint(route: Route, services: Services, gate: Gate) -> _Handler:
    async def endpoint(request: web.Request) -> web.Response:
        address = request.remote or "-"
        gate.count(address, login=route.logs_in)
        actor, outcome = "-", "ok"
        try:
            principal = await asyncio.to_thread(gate.admit, request, route)
            actor = principal.name if principal else "-"
            call = Call(
                services=services,
                principal=principal,
                address=address,
                path=dict(request.match_info),
                body=await _body(request, route.body),
                query=_query(request, route.query),
            )
            result = await asyncio.to_thread(route.handler, call)
            return _response(call, result)
        except ApplianceError as error:
            outcome = error.code
            raise
        finally:
            if route.changes:
                await asyncio.to_thread(
                    services.catalog.audit.append,
                    actor=actor,
                    address=address,
                    action=f"{route.method} {route.path}",
                    object=" ".join(request.match_info.values()),
                    outcome=outcome,
                )

    return endpoint


async def _body(request: web.Request, kind: type[Body] | None) -> Body | None:
    """Raises BodyError."""
    if kind is None:
        return None
    if request.content_type != "application/json":
        raise BodyError("the body must be application/json")
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise BodyError(f"the body is larger than {BODY_BYTES_MAX} bytes") from error
    return _parsed(kind, lambda: kind.model_validate_json(raw))


def _query(request: web.Request, kind: type[Body] | None) -> Body | None:
    if kind is None:
        return None
    return _parsed(kind, lambda: kind.model_validate(dict(request.query)))


def _parsed(kind: type[Body], parse: Callable[[], Body]) -> Body:
    try:
        return parse()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or kind.__name__
        raise BodyError(f"{where}: {first['msg']}") from error


def _response(call: Call, result: Any) -> web.Response:
    if result is None:
        response = web.Response(status=204)
    else:
        response = web.Response(body=_encoded(result), content_type="application/json")
    if call.set_session is not None:
        response.set_cookie(
            SESSION_COOKIE, call.set_session, secure=True, httponly=True, samesite="Strict"
        )
    if call.end_session:
        response.del_cookie(SESSION_COOKIE, secure=True, httponly=True, samesite="Strict")
    return response


_json = TypeAdapter(Any)


def _encoded(result: Any) -> bytes:
    if isinstance(result, BaseModel):
        return result.model_dump_json().encode()
    return _json.dump_json(result)


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApplianceError as error:
        return _failure(status_of(error), error.code, str(error), error)
    except web.HTTPNotFound:
        missing = NotFoundError(f"nothing at {request.path}")
        return _failure(404, missing.code, str(missing), missing)
    except web.HTTPException as refused:
        return _failure(refused.status, "api.http", refused.reason, None)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _failure(500, "api.defect", "a defect of Holdfast; the log holds the details", None)


def _failure(status: int, code: str, text: str, error: ApplianceError | None) -> web.Response:
    document = {"code": code, "error": text, "retryable": bool(error and error.retryable)}
    if error is not None:
        document["next_step"] = " ".join((type(error).__doc__ or "").split())
    return web.Response(status=status, text=json.dumps(document), content_type="application/json")


@web.middleware
async def _headers(request: web.Request, handler: _Handler) -> web.StreamResponse:
    response = await handler(request)
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response
