"""A request carried out: counted, authenticated, authorised, done on a worker thread, audited.

API and forms of the pages go through here, so that what a page does is a call of the API in every
respect. Order: rate limit, login, permission, CSRF, body, handler, audit.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from pydantic import BaseModel, ValidationError

from appliance.api.errors import BodyError, NotFoundError
from appliance.api.gate import SESSION_COOKIE, Gate
from appliance.api.route import Body, Call, Principal, Route
from appliance.api.services import Services
from appliance.base.errors import ApplianceError

ReadBody = Callable[[], Awaitable[BaseModel | None]]


class Dispatcher:
    def __init__(self, routes: Sequence[Route], services: Services, gate: Gate) -> None:
        self._services = services
        self._gate = gate
        self._patterns = [
            (route, re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", route.path)))
            for route in routes
        ]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route of a path below the prefix, and its names. Raises NotFoundError."""
        for route, pattern in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None and route.method == method:
                return route, {name: unquote(value) for name, value in match.groupdict().items()}
        raise NotFoundError(f"nothing at {method} {path}")

    async def perform(
        self,
        route: Route,
        request: web.Request,
        path: dict[str, str],
        read_body: ReadBody,
        *,
        csrf: str | None = None,
    ) -> tuple[Call, Any]:
        """Raises what gate, body and handler raise; a change is audited either way."""
        address = request.remote or "-"
        self._gate.count(address, login=route.logs_in)
        actor, outcome = "-", "ok"
        call: Call | None = None
        try:
            principal: Principal | None = None
            if route.permission is not None:
                principal = await asyncio.to_thread(
                    self._gate.require,
                    request,
                    route.permission,
                    changes=route.changes,
                    csrf=csrf,
                )
                actor = principal.name
            call = Call(
                services=self._services,
                principal=principal,
                address=address,
                path=path,
                body=await read_body(),
                query=_query(request, route.query),
            )
            return call, await asyncio.to_thread(route.handler, call)
        except ApplianceError as error:
            outcome = error.code
            raise
        except Exception:  # audited like any other outcome, and raised again
            outcome = "api.defect"
            raise
        finally:
            if route.changes:
                await asyncio.to_thread(
                    self._services.catalog.audit.append,
                    actor=actor,
                    address=address,
                    action=f"{route.method} {route.path}",
                    object=" ".join([*path.values(), *([call.about] if call else [])]).strip(),
                    outcome=outcome,
                )


def with_session(call: Call, response: web.Response) -> web.Response:
    """Set or drop the cookie of the login, as the handler said."""
    if call.set_session is not None:
        response.set_cookie(
            SESSION_COOKIE, call.set_session, secure=True, httponly=True, samesite="Strict"
        )
    if call.end_session:
        response.del_cookie(SESSION_COOKIE, secure=True, httponly=True, samesite="Strict")
    return response


def parsed(kind: type[Body], parse: Callable[[], Body]) -> Body:
    """Raises BodyError, which names the field."""
    try:
        return parse()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or kind.__name__
        raise BodyError(f"{where}: {first['msg']}") from error


def _query(request: web.Request, kind: type[Body] | None) -> Body | None:
    if kind is None:
        return None
    return parsed(kind, lambda: kind.model_validate(dict(request.query)))
