"""Connections that say nothing, or say it a byte at a time, are closed: they would fill the table.

aiohttp has no limit for the time that the head of a first request may take. Here a connection that
has not brought a whole head in time is closed; later requests of a connection have aiohttp's
keep-alive limit, bodies `BODY_S`. And no more than `CONNECTIONS_MAX` are open at once.

Event loop only.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware
from aiohttp.web_protocol import RequestHandler

HEAD_S = 20.0
HANDSHAKE_S = 15.0
BODY_S = 60.0
CONNECTIONS_MAX = 1000

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Refused(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class PatientServer:
    """Serves `server` on TCP with TLS, within these limits."""

    def __init__(
        self,
        application: web.Application,
        *,
        head_s: float = HEAD_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """Before the application is started."""
        self._head_s = head_s
        self._connections_max = connections_max
        self._unheard: dict[object, asyncio.TimerHandle] = {}
        application.middlewares.insert(0, self._hear)

    async def listen(
        self, server: web.Server, host: str, port: int, context: ssl.SSLContext
    ) -> asyncio.Server:
        """Raises OSError."""
        loop = asyncio.get_running_loop()

        def connected() -> asyncio.Protocol:
            if len(server.connections) >= self._connections_max:
                return _Refused()
            handler = server()
            self._unheard[handler] = loop.call_later(self._head_s, self._drop, handler)
            return handler

        return await loop.create_server(
            connected, host, port, ssl=context, ssl_handshake_timeout=HANDSHAKE_S
        )

    def _drop(self, handler: RequestHandler) -> None:
        self._unheard.pop(handler, None)
        handler.force_close()

    @property
    def _hear(self) -> Middleware:
        @web.middleware
        async def hear(request: web.Request, handler: _Handler) -> web.StreamResponse:
            timer = self._unheard.pop(request.protocol, None)
            if timer is not None:
                timer.cancel()
            return await handler(request)

        return hear
