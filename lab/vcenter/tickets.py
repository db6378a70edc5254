"""Generic service tickets: one ticket is good for one request, to the URL and method it names.

Source: SessionManager.AcquireGenericServiceTicket; HttpServiceRequestSpec. A ticket travels in
the `vmware_cgi_ticket` cookie. Thread model: any thread.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

TICKET_COOKIE = "vmware_cgi_ticket"
_LIFETIME_S = 120.0
_LIMIT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    ticket_id: str
    url: str
    method: str
    user: str
    expires_s: float


class ServiceTickets:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, Ticket] = {}

    def issue(self, url: str, method: str, user: str) -> Ticket:
        ticket = Ticket(
            ticket_id=secrets.token_hex(20),
            url=url,
            method=method,
            user=user,
            expires_s=self._clock() + _LIFETIME_S,
        )
        with self._lock:
            while len(self._open) >= _LIMIT:
                self._open.pop(next(iter(self._open)))
            self._open[ticket.ticket_id] = ticket
        return ticket

    def redeem(self, ticket_id: str, url: str, method: str) -> Ticket | None:
        """Return the ticket if it is good for this request; it is used up either way."""
        with self._lock:
            ticket = self._open.pop(ticket_id, None)
        if ticket is None or ticket.expires_s < self._clock():
            return None
        fits = ticket.method == method and same_target(ticket.url, url)
        return ticket if fits else None


def same_target(one: str, other: str) -> bool:
    """The same server, path and query, however they are escaped; False for what is no https URL."""
    target = _target(one)
    return target is not None and target == _target(other)


def _target(url: str) -> tuple[str, str, list[tuple[str, str]]] | None:
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=32)
        server = f"{parts.hostname}:{parts.port or 443}"
    except ValueError:
        return None
    return (server, unquote(parts.path), sorted(query)) if parts.scheme == "https" else None
