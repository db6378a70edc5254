"""The HTTP application: every request authenticated, authorised, bounded and, if it changes
something, written to the audit log; every error a JSON document with its code.

What happens to a request stands in `dispatch.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from pydantic import BaseModel, TypeAdapter

from appliance.api.dispatch import Dispatcher, parsed, with_session
from appliance.api.errors import BodyError, NotFoundError, status_of
from appliance.api.event_stream import EventStreams
from appliance.api.gate import Gate
from appliance.api.metrics import MetricsPage
from appliance.api.openapi import openapi_document
from appliance.api.route import Body, Raw, Route
from appliance.api.routes import ROUTES
from appliance.api.safe_headers import SAFE_HEADERS
from appliance.api.services import Services
from appliance.api.slow_clients import BODY_S
from appliance.api.ui.pages import add_pages
from appliance.base.errors import ApplianceError
from appliance.service.metrics import ApplianceMetrics

log = logging.getLogger(__name__)

PREFIX = "/api/v1"
BODY_BYTES_MAX = 1 << 20
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_application(services: Services) -> web.Application:
    gate = Gate(services)
    dispatcher = Dispatcher(ROUTES, services, gate)
    metrics = MetricsPage(appliance_metrics(services))
    application = web.Application(
        middlewares=[metrics.counting, _headers, _errors], client_max_size=BODY_BYTES_MAX
    )
    streams = EventStreams(services.feed, gate)
    application.on_shutdown.append(streams.close)
    for route in ROUTES:
        endpoint = _endpoint(route, dispatcher, streams)
        application.router.add_route(route.method, PREFIX + route.path, endpoint)
    document = openapi_document(ROUTES, PREFIX)

    async def openapi(_: web.Request) -> web.Response:
        return web.json_response(document)

    application.router.add_get(f"{PREFIX}/openapi.json", openapi)
    application.router.add_get("/metrics", metrics.endpoint(gate))
    add_pages(application, services, gate, dispatcher, _failure_of)
    return application


def appliance_metrics(services: Services) -> ApplianceMetrics:
    return ApplianceMetrics(
        catalog=services.catalog,
        repository_path=services.repository_path,
        jobs=services.jobs,
        recovery=services.recovery,
        inventory=services.inventory,
        figures=services.figures,
    )


def _endpoint(route: Route, dispatcher: Dispatcher, streams: EventStreams) -> _Handler:
    async def endpoint(request: web.Request) -> web.StreamResponse:
        async def read_body() -> BaseModel | None:
            return await _body(request, route.body)

        path = dict(request.match_info)
        call, result = await dispatcher.perform(route, request, path, read_body)
        if route.streams:
            return await streams.serve(request, call, result)
        if isinstance(result, Raw):
            return _raw(result)
        if result is None:
            return with_session(call, web.Response(status=204))
        response = web.Response(body=_encoded(result), content_type="application/json")
        return with_session(call, response)

    return endpoint


def _raw(result: Raw) -> web.Response:
    response = web.Response(body=result.body, content_type=result.media)
    if result.media.startswith("text/"):
        response.charset = "utf-8"
    if result.name:
        response.headers["Content-Disposition"] = f'attachment; filename="{result.name}"'
    if result.policy:
        response.headers["Content-Security-Policy"] = result.policy
    return response


async def _body(request: web.Request, kind: type[Body] | None) -> Body | None:
    """Raises BodyError."""
    if kind is None:
        return None
    if request.content_type != "application/json":
        raise BodyError("the body must be application/json")
    try:
        async with asyncio.timeout(BODY_S):
            raw = await request.read()
    except TimeoutError as error:
        raise BodyError(f"the body did not come within {BODY_S:.0f} s") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise BodyError(f"the body is larger than {BODY_BYTES_MAX} bytes") from error
    return parsed(kind, lambda: kind.model_validate_json(raw))


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
        return _failure_of(error)
    except web.HTTPNotFound:
        missing = NotFoundError(f"nothing at {request.path}")
        return _failure(404, missing.code, str(missing), missing)
    except web.HTTPException as refused:
        return _failure(refused.status, "api.http", refused.reason, None)
    except Exception:  # a client gets an answer, and never the details
        log.exception("%s %s failed", request.method, request.path)
        return _failure(500, "api.defect", "a defect of Holdfast; the log holds the details", None)


def _failure_of(error: ApplianceError) -> web.Response:
    return _failure(status_of(error), error.code, str(error), error)


def _failure(status: int, code: str, text: str, error: ApplianceError | None) -> web.Response:
    document = {"code": code, "error": text, "retryable": bool(error and error.retryable)}
    if error is not None:
        document["next_step"] = " ".join((type(error).__doc__ or "").split())
    return web.Response(status=status, text=json.dumps(document), content_type="application/json")


@web.middleware
async def _headers(request: web.Request, handler: _Handler) -> web.StreamResponse:
    response = await handler(request)
    if not response.prepared:
        for name, value in SAFE_HEADERS.items():
            response.headers.setdefault(name, value)
    return response
