"""A route of the API: one value that the router, the OpenAPI document, the authorisation test and
the audit log all read.

A handler is a synchronous function of a `Call`; it runs on a worker thread and returns a pydantic
model, a list of them, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict

from appliance.api.permissions import Permission
from appliance.api.services import Services
from appliance.catalog.accounts import Role

_Model = TypeVar("_Model", bound=BaseModel)


class Body(BaseModel):
    """Base of what clients send: unknown fields are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shown(BaseModel):
    """Base of what clients get."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """An answer that is no JSON."""

    body: bytes
    media: str
    name: str = ""  # to be saved under; empty: to be shown
    policy: str = ""  # content security policy; empty: that of all answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who calls."""

    name: str  # as in the audit log
    behind: str  # the account itself, or the one that made the token
    role: Role
    account: str | None = None  # None: a token
    session_secret: str | None = None


@dataclass(slots=True, kw_only=True)
class Call:
    services: Services
    principal: Principal | None  # None only on public routes
    address: str
    path: Mapping[str, str]
    body: BaseModel | None
    query: BaseModel | None
    set_session: str | None = None  # a handler that logs in puts the session's secret here
    end_session: bool = False
    about: str = ""  # what it is about, for the audit log, where the path does not say it

    @property
    def caller(self) -> Principal:
        assert self.principal is not None, "not a public route"
        return self.principal

    def body_as(self, kind: type[_Model]) -> _Model:
        assert isinstance(self.body, kind)
        return self.body

    def query_as(self, kind: type[_Model]) -> _Model:
        assert isinstance(self.query, kind)
        return self.query


Handler = Callable[[Call], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    method: str
    path: str  # below /api/v1, with {names}
    handler: Handler
    permission: Permission | None  # None: public
    summary: str
    tag: str
    body: type[Body] | None = None
    query: type[Body] | None = None
    response: Any = None  # a model, or list[model]; None: no content
    logs_in: bool = False  # counted against the limit of login attempts
    streams: bool = False  # the handler returns what to tell of (`event_stream.py`)
    media: str = ""  # the handler returns `Raw` of such a kind

    @property
    def changes(self) -> bool:
        return self.method not in ("GET", "HEAD")


class RouteTable:
    """Collects routes by decorator; one per noun, joined in `routes/__init__.py`."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.routes: list[Route] = []

    def add(
        self,
        method: str,
        path: str,
        permission: Permission | None,
        *,
        body: type[Body] | None = None,
        query: type[Body] | None = None,
        response: Any = None,
        logs_in: bool = False,
        streams: bool = False,
        media: str = "",
    ) -> Callable[[Handler], Handler]:
        """The first line of the handler's docstring is the summary."""

        def register(handler: Handler) -> Handler:
            self.routes.append(
                Route(
                    method=method,
                    path=path,
                    handler=handler,
                    permission=permission,
                    summary=cast(str, handler.__doc__).strip().splitlines()[0],
                    tag=self.tag,
                    body=body,
                    query=query,
                    response=response,
                    logs_in=logs_in,
                    streams=streams,
                    media=media,
                )
            )
            return handler

        return register
