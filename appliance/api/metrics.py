"""`GET /metrics`: the figures as text for Prometheus (text format 0.0.4), for who may view.

A scraper sends a read-only API token: `Authorization: Bearer …`. The text is made at most every few
seconds, however many ask. Requests are counted by method, route (never by path) and status.

Thread model: counting on the event loop, the text on worker threads, one at a time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from time import monotonic

from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from appliance.api.gate import Gate
from appliance.api.permissions import Permission
from appliance.service.metrics import ApplianceMetrics

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_KEPT_S = 5.0
_BUCKETS_S = (0.005, 0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


class MetricsPage:
    def __init__(self, appliance: ApplianceMetrics) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "holdfast_api_requests",
            "Requests",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "holdfast_api_request_seconds",
            "From the request's head to the end of its answer",
            ("method", "route"),
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._registry.register(appliance)
        self._lock = threading.Lock()
        self._text = b""
        self._made_s = float("-inf")

    def text(self) -> bytes:
        with self._lock:
            if monotonic() - self._made_s > _KEPT_S:
                self._text = generate_latest(self._registry)
                self._made_s = monotonic()
            return self._text

    def endpoint(self, gate: Gate) -> _Handler:
        async def metrics(request: web.Request) -> web.Response:
            gate.count(request.remote or "-", login=False)
            await asyncio.to_thread(gate.require, request, Permission.VIEW, changes=False)
            body = await asyncio.to_thread(self.text)
            return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

        return metrics

    @property
    def counting(self) -> Middleware:
        """The outermost middleware."""

        @web.middleware
        async def count(request: web.Request, handler: _Handler) -> web.StreamResponse:
            begun_s = monotonic()
            status = 500
            try:
                response = await handler(request)
                status = response.status
                return response
            finally:
                resource = request.match_info.route.resource
                route = resource.canonical if resource is not None else "other"
                method = request.method if request.method in _METHODS else "other"
                self._requests.labels(method, route, str(status)).inc()
                self._seconds.labels(method, route).observe(monotonic() - begun_s)

        return count
