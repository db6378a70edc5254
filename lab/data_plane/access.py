"""Who asks, and what they may: the identities of the data plane.

| place | session cookie | Basic | ticket |
|---|---|---|---|
| vCenter | `vmware_soap_session` of a login there | vCenter user | for its own URLs |
| host | no | the host's own root | for its own URLs |

Source: design notes on vSphere, section 4b. Thread-safe where the parts are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from lab.data_plane.exchange import Exchange
from lab.data_plane.tickets import TicketBook
from lab.faults import FaultName, FaultSwitches

SESSION_COOKIE = "vmware_soap_session"
TICKET_COOKIE = "vmware_cgi_ticket"


class Accounts(Protocol):
    """Logins of one place; every method is thread-safe."""

    def user_of_cookie(self, cookie: str) -> str | None:
        """The user of a living session; asking counts as activity. None: log in again."""
        ...

    def user_of_password(self, user: str, password: str) -> str | None:
        """The user's full name if user and password are right."""
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
class Gate:
    """Turns a request into a user, or answers 401."""

    accounts: Accounts
    tickets: TicketBook
    switches: FaultSwitches

    def user_of(self, exchange: Exchange) -> str | None:
        """The user who asks; None when the request was answered with 401."""
        user = self._identify(exchange)
        if user is None:
            challenge = ("WWW-Authenticate", 'Basic realm="VMware HTTP server"')
            exchange.answer_error(HTTPStatus.UNAUTHORIZED, "log in", challenge)
        return user

    def _identify(self, exchange: Exchange) -> str | None:
        ticket = exchange.cookie(TICKET_COOKIE)
        if ticket is not None:
            exchange.close_after()  # one ticket, one request, one connection
            user = self.tickets.redeem(ticket, exchange.method, exchange.url)
            place = exchange.place.name
            refused = self.switches.take(
                FaultName.TICKET_REFUSED, host=place, method=exchange.method
            )
            return None if refused else user
        cookie = exchange.cookie(SESSION_COOKIE)
        if cookie is not None:
            user = self.accounts.user_of_cookie(cookie)
            if user is not None:
                return user
        credentials = exchange.basic_credentials()
        if credentials is None:
            return None
        return self.accounts.user_of_password(*credentials)
