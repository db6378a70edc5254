"""`POST /form`: a form of a page becomes a call of the API, with or without JavaScript.

A form says in `_api` which call it is (`POST /jobs/nightly/run`) and brings the login's CSRF token
in `_csrf`; its other fields are the body (`form_fields.py`). Afterwards the browser goes to
`_next`, or sees why not. `app.js` sends the same form and asks for JSON.

Forms of other sites are refused by what browsers say of a request's origin, and by the token.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from aiohttp import web
from pydantic import BaseModel

from appliance.api.dispatch import Dispatcher, parsed, with_session
from appliance.api.errors import BodyError, CsrfError
from appliance.api.route import Route
from appliance.api.slow_clients import BODY_S
from appliance.api.ui.form_fields import document_of
from appliance.base.errors import ApplianceError

ShowPage = Callable[[web.Request, str, dict[str, Any], int], Awaitable[web.Response]]
"""A template shown with the frame of who is logged in, and a status."""

_FORM_BYTES_MAX = 1 << 20


def add_forms(
    application: web.Application,
    dispatcher: Dispatcher,
    show: ShowPage,
    failure: Callable[[ApplianceError], web.Response],
) -> None:
    async def submit(request: web.Request) -> web.StreamResponse:
        wants_json = "application/json" in request.headers.get("Accept", "")
        fields: Mapping[str, Any] = {}
        try:
            _refuse_other_sites(request)
            fields = await _read(request)
            if not wants_json and _text(fields, "_preview"):
                return _again(_text(fields, "_preview"), fields)
            if not wants_json and _text(fields, "_confirm") and not _text(fields, "_confirmed"):
                pairs = [(name, str(value)) for name, value in fields.items()]
                asked = {"question": _text(fields, "_confirm"), "pairs": pairs}
                return await show(request, "confirm.html", asked, 200)
            method, _, address = _text(fields, "_api").partition(" ")
            route, path = dispatcher.find(method, address)
            call, result = await dispatcher.perform(
                route, request, path, _reader(route, fields), csrf=_text(fields, "_csrf")
            )
        except ApplianceError as error:
            if wants_json:
                return failure(error)
            shown = {"error": error, "next_step": " ".join((type(error).__doc__ or "").split())}
            return await show(request, "error.html", shown, failure(error).status)
        document = _as_document(result)
        following = _following(_text(fields, "_next"), document)
        if wants_json:
            return with_session(call, web.json_response({"result": document, "next": following}))
        if _text(fields, "_show"):
            shown = {"name": _text(fields, "_show"), "value": document.get(_text(fields, "_show"))}
            return with_session(call, await show(request, "result.html", shown, 200))
        response = web.Response(status=303, headers={"Location": following})
        return with_session(call, response)

    application.router.add_post("/form", submit)


def _refuse_other_sites(request: web.Request) -> None:
    """Raises CsrfError."""
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = request.headers.get("Origin")
    if site not in ("same-origin", "none") or (
        origin is not None and urlsplit(origin).netloc != request.host
    ):
        raise CsrfError("the form does not come from a page of this appliance")


async def _read(request: web.Request) -> Mapping[str, Any]:
    """Raises BodyError."""
    if request.content_type != "application/x-www-form-urlencoded":
        raise BodyError("a form must be application/x-www-form-urlencoded")
    try:
        async with asyncio.timeout(BODY_S):
            return await request.post()
    except TimeoutError as error:
        raise BodyError(f"the form did not come within {BODY_S:.0f} s") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise BodyError(f"the form is larger than {_FORM_BYTES_MAX} bytes") from error
    except ValueError as error:
        raise BodyError("the form cannot be read") from error


def _reader(route: Route, fields: Mapping[str, Any]) -> Callable[[], Any]:
    async def read() -> BaseModel | None:
        kind = route.body
        if kind is None:
            return None
        pairs = [(name, str(value)) for name, value in fields.items()]
        return parsed(kind, lambda: kind.model_validate(document_of(pairs)))

    return read


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name, "")
    return value if isinstance(value, str) else ""


def _as_document(result: Any) -> dict[str, Any]:
    if isinstance(result, BaseModel):
        document: dict[str, Any] = json.loads(result.model_dump_json())
        return document
    return {}


def _again(address: str, fields: Mapping[str, Any]) -> web.Response:
    """The form's page with what was written so far in its address; nothing is done."""
    pairs = [
        (name, str(value))
        for name, value in fields.items()
        if not name.startswith("_") and str(value).strip()
    ]
    location = f"{_following(address, {})}?{urlencode(pairs)}"
    return web.Response(status=303, headers={"Location": location})


def _following(wanted: str, document: Mapping[str, Any]) -> str:
    """Where to go next: a place of this appliance; `{name}` is taken from the answer."""
    if not wanted.startswith("/") or wanted.startswith("//") or "\\" in wanted:
        return "/"
    found = re.sub(r"{(\w+)}", lambda m: quote(str(document.get(m[1], "")), safe=""), wanted)
    return found if found.isprintable() else "/"
