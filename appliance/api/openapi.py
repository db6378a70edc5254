"""The OpenAPI 3.1 document of the API, made of the route table and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from appliance.api.permissions import Permission
from appliance.api.route import Route
from appliance.base.version import __version__

_REFERENCE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["code", "error", "retryable"],
    "properties": {
        "code": {"type": "string"},
        "error": {"type": "string"},
        "retryable": {"type": "boolean"},
        "next_step": {"type": "string"},
    },
}
_FAILURES = {
    "401": "Nobody is logged in, or the login is wrong",
    "403": "The role does not allow it, or the CSRF token is missing",
    "404": "There is no such thing",
    "409": "It is in the way of something else",
    "422": "The request is not as described here",
    "423": "The account is locked for a while",
    "429": "Too many requests",
    "502": "Something behind the appliance failed",
}


def openapi_document(routes: Sequence[Route], prefix: str) -> dict[str, Any]:
    """Return the document; `prefix` is put before every path."""
    adapters = {id(route): TypeAdapter(route.response) for route in routes if route.response}
    inputs = [route.body for route in routes if route.body]
    _, schemas = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(inputs)], ref_template=_REFERENCE
    )
    definitions = dict(schemas.get("$defs", {}))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route)
        if route.response:
            schema = adapters[id(route)].json_schema(mode="serialization", ref_template=_REFERENCE)
            definitions |= schema.pop("$defs", {})
            content = {"application/json": {"schema": schema}}
            operation["responses"]["200"] = {"description": "Done", "content": content}
        elif route.streams or route.media:
            media = route.media or "text/event-stream"
            content = {media: {"schema": {"type": "string"}}}
            operation["responses"]["200"] = {"description": "Done", "content": content}
        else:
            operation["responses"]["204"] = {"description": "Done"}
        paths.setdefault(prefix + route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Holdfast", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": definitions | {"Error": _ERROR},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "__Host-holdfast"},
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    failure = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__name__,
        "tags": [route.tag],
        "parameters": [*_path_parameters(route), *_query_parameters(route)],
        "responses": {
            status: {"description": text, "content": failure} for status, text in _FAILURES.items()
        },
        "security": [] if route.permission is None else [{"token": []}, {"session": []}],
    }
    if isinstance(route.permission, Permission):
        operation["x-permission"] = str(route.permission)
    if route.body:
        schema = {"$ref": _REFERENCE.format(model=route.body.__name__)}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    schema = route.query.model_json_schema(ref_template=_REFERENCE)
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": part}
        for name, part in schema["properties"].items()
    ]
