"""The daemon's local interface: HTTP on a Unix socket in the state folder, for its own user only.

    GET  /v1/daemon                      what runs
    GET  /v1/sessions                    recovery sessions
    POST /v1/sessions/<id>/serve         show it to its hosts
    POST /v1/sessions/<id>/withdraw      show it no more
    …    /v1/jobs…, /v1/runs…            `local_jobs.py`

Who may connect is a matter of the folder's and the socket's mode (0700, 0600). Answers are JSON;
an error has `code` and `error`, as on the command line.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from appliance.api.local_jobs import job_routes
from appliance.api.slow_clients import PatientServer
from appliance.base.errors import ApplianceError, StorageError
from appliance.base.version import __version__
from appliance.service.job_service import JobService
from appliance.service.recovery_server import RecoveryServer, ServedSession

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_LINGERING_S = 2.0  # for the rest of a body that nobody wants
_BODY_BYTES_MAX = 1 << 16


def session_document(session: ServedSession) -> dict[str, Any]:
    document: dict[str, Any] = session.record.model_dump(mode="json")
    return document | {"served": session.served, "failure": session.failure}


def local_application(server: RecoveryServer, jobs: JobService) -> web.Application:
    @web.middleware
    async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApplianceError as error:
            return web.json_response({"code": error.code, "error": str(error)}, status=409)

    async def daemon(_: web.Request) -> web.Response:
        return web.json_response(
            {
                "version": __version__,
                "pid": os.getpid(),
                "address": server.address,
                "nfs_port": server.port,
                "iscsi_port": server.iscsi_port,
                "smb_port": server.smb_port,
            }
        )

    async def sessions(_: web.Request) -> web.Response:
        found = await asyncio.to_thread(server.sessions)
        return web.json_response([session_document(each) for each in found])

    async def serve(request: web.Request) -> web.Response:
        await asyncio.to_thread(server.serve, request.match_info["id"])
        return web.json_response({})

    async def withdraw(request: web.Request) -> web.Response:
        await asyncio.to_thread(server.withdraw, request.match_info["id"])
        return web.json_response({})

    application = web.Application(middlewares=[errors], client_max_size=_BODY_BYTES_MAX)
    application.add_routes(
        [
            web.get("/v1/daemon", daemon),
            web.get("/v1/sessions", sessions),
            web.post("/v1/sessions/{id:[0-9a-f]{8}}/serve", serve),
            web.post("/v1/sessions/{id:[0-9a-f]{8}}/withdraw", withdraw),
            *job_routes(jobs),
        ]
    )
    return application


class Site:
    """Serves an application from `start` to `stop`, on one event loop."""

    def __init__(self, application: web.Application) -> None:
        self._runner = web.AppRunner(application, access_log=None, lingering_time=_LINGERING_S)
        self._application = application
        self._listening: asyncio.Server | None = None
        self._path: Path | None = None

    async def start_local(self, path: Path) -> None:
        """On a Unix socket; replaces one whose server died. The caller holds the daemon's lock."""
        path.unlink(missing_ok=True)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(path)).start()
        path.chmod(0o600)
        self._path = path

    async def start_tls(self, host: str, port: int, context: ssl.SSLContext) -> int:
        """On TCP; return the port. Raises StorageError: nothing can listen there."""
        patient = PatientServer(self._application)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None, "set up above"
        try:
            self._listening = await patient.listen(server, host, port, context)
        except OSError as error:
            raise StorageError(f"{host} port {port}: {error.strerror or error}") from error
        return int(self._listening.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
