"""Jobs and runs on the daemon's local socket.

GET  /v1/jobs                        all, with their next and latest run
POST /v1/jobs/look                   something was saved: look now
POST /v1/jobs/<name>/run             a run now; answers with it
GET  /v1/runs?job=&before=&limit=    the newest, oldest first; `before`: a `seq`
GET  /v1/runs/live                   those that go on: disks, rates, what is left
GET  /v1/runs/<id>                   one, with result and live progress
POST /v1/runs/<id>/cancel            ask it to end
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from appliance.base.errors import UsageError
from appliance.service.job_documents import job_document, run_detail, run_document
from appliance.service.job_service import JobService

_MOST_RUNS = 1000
_DEFAULT_RUNS = 100
_NAME = "{name:[A-Za-z0-9][A-Za-z0-9_-]{0,62}}"
_RUN = "{id:[0-9A-Za-z-]{1,64}}"


def job_routes(jobs: JobService) -> list[web.RouteDef]:
    async def list_jobs(_: web.Request) -> web.Response:
        found = await asyncio.to_thread(jobs.jobs)
        return web.json_response([job_document(status) for status in found])

    async def look(_: web.Request) -> web.Response:
        jobs.look()
        return web.json_response({})

    async def run_now(request: web.Request) -> web.Response:
        run = await asyncio.to_thread(jobs.run_now, request.match_info["name"])
        return web.json_response(run_document(run))

    async def list_runs(request: web.Request) -> web.Response:
        before = _number(request, "before", None)
        limit = min(_number(request, "limit", _DEFAULT_RUNS) or _DEFAULT_RUNS, _MOST_RUNS)
        found = await asyncio.to_thread(
            lambda: jobs.runs(job=request.query.get("job"), before=before, limit=limit)
        )
        return web.json_response([run_document(run) for run in found])

    async def live(_: web.Request) -> web.Response:
        return web.json_response([snapshot.as_json() for snapshot in jobs.live()])

    async def show_run(request: web.Request) -> web.Response:
        view = await asyncio.to_thread(jobs.run, request.match_info["id"])
        return web.json_response(run_detail(view))

    async def cancel(request: web.Request) -> web.Response:
        await asyncio.to_thread(jobs.cancel, request.match_info["id"])
        return web.json_response({})

    return [
        web.get("/v1/jobs", list_jobs),
        web.post("/v1/jobs/look", look),
        web.post(f"/v1/jobs/{_NAME}/run", run_now),
        web.get("/v1/runs", list_runs),
        web.get("/v1/runs/live", live),
        web.get(f"/v1/runs/{_RUN}", show_run),
        web.post(f"/v1/runs/{_RUN}/cancel", cancel),
    ]


def _number(request: web.Request, name: str, default: int | None) -> int | None:
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise UsageError(f"{name} is not a number")
    return int(text)
