"""Who asks, and what he may: the identities of the data plane.

| place | session cookie | Basic | ticket |
|---|---|---|---|
| vCenter | `vmware_soap_session` of a login there | vCenter user | for its own URLs |
| host | no | the host's own root | for its own URLs |

Reading files does not renew a session, and a ticket's user needs his privileges on the whole
vCenter. Source: design notes on vSphere, sections 0 and 4b. Thread-safe where the parts are.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from lab.data_plane.place import Place, Refusal
from lab.faults import FaultName, FaultSwitches
from lab.vcenter.http_message import HttpRequest
from lab.vcenter.tickets import TICKET_COOKIE, ServiceTickets

SESSION_COOKIE = "vmware_soap_session"


class Accounts(Protocol):
    """Logins of one place; every method is thread-safe."""

    def user_of_cookie(self, cookie: str) -> str | None:
        """The user of a living session, which this does not keep alive. None: log in again."""
        ...

    def user_of_password(self, user: str, password: str) -> str | None:
        """The user's name if user and password are right."""
        ...


class Privileges(Protocol):
    def allows(self, user: str, privilege: str, entity: str) -> bool:
        """Whether `user` holds `privilege` on the entity (a moref, or "" for the root)."""
        ...


@dataclass(frozen=True, slots=True)
class HostAccounts:
    """A host has one account of its own."""

    user: str
    password: Callable[[], str]

    def user_of_cookie(self, cookie: str) -> str | None:
        return None

    def user_of_password(self, user: str, password: str) -> str | None:
        return user if (user, password) == (self.user, self.password()) else None


@dataclass(frozen=True, slots=True)
class Caller:
    """`by_ticket`: the connection ends with the reply."""

    user: str
    by_ticket: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """Turns a request into a user."""

    place: Place
    accounts: Accounts
    tickets: ServiceTickets
    switches: FaultSwitches

    def caller(self, request: HttpRequest) -> Caller:
        """Raises Refusal with 401."""
        ticket = request.cookie(TICKET_COOKIE)
        user = self._by_login(request) if ticket is None else self._by_ticket(request, ticket)
        if user is None:
            challenge = ("WWW-Authenticate", 'Basic realm="VMware HTTP server"')
            raise Refusal(HTTPStatus.UNAUTHORIZED, "log in", challenge)
        return Caller(user, ticket is not None)

    def _by_ticket(self, request: HttpRequest, ticket_id: str) -> str | None:
        ticket = self.tickets.redeem(ticket_id, self.place.url(request), request.method)
        refused = self.switches.take(
            FaultName.TICKET_REFUSED, host=self.place.name, method=request.method
        )
        return ticket.user if ticket is not None and refused is None else None

    def _by_login(self, request: HttpRequest) -> str | None:
        cookie = request.cookie(SESSION_COOKIE)
        user = self.accounts.user_of_cookie(cookie) if cookie is not None else None
        if user is not None:
            return user
        credentials = basic_credentials(request)
        return self.accounts.user_of_password(*credentials) if credentials else None


def basic_credentials(request: HttpRequest) -> tuple[str, str] | None:
    """User and password of the Authorization header, if it is a well-formed Basic one."""
    scheme, _, value = (request.header("Authorization") or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, separator, password = b64decode(value, validate=True).decode().partition(":")
    except (Base64Error, UnicodeDecodeError):
        return None
    return (user, password) if separator else None
