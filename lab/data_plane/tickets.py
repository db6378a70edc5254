"""Generic service tickets: leave for exactly one HTTP request, handed from vCenter to a host.

A ticket is bound to method and URL (authority, decoded path and query); it is used up by the first
request that presents it, whatever comes of that, and by time. Source: design notes on vSphere,
section 4b; the life time is an assumption, the product documents none. Thread-safe.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

LIFE_S = 120.0
_MAX_TICKETS = 4096
_METHODS = {
    "httpGet": "GET",
    "httpHead": "HEAD",
    "httpPut": "PUT",
    "httpPost": "POST",
    "httpDelete": "DELETE",
}

_Target = tuple[str, str, tuple[tuple[str, str], ...]]


class BadTicketRequestError(ValueError):
    """The service request has no usable method or URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ticket:
    user: str
    method: str
    target: _Target
    expires_at_s: float


class TicketBook:
    """The tickets of one vCenter, known to all of its hosts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tickets: dict[str, _Ticket] = {}

    def issue(self, user: str, method: str | None, url: str) -> str:
        """Return the id of a ticket for one request; `method` as in HttpServiceRequestSpec.

        Raises:
            BadTicketRequestError: an unknown method, or a URL that is not absolute https.
        """
        verb = _METHODS.get(method or "httpGet")
        if verb is None:
            raise BadTicketRequestError(f"method {method!r}")
        target = _target(url)
        if target is None:
            raise BadTicketRequestError("the URL must be absolute and https")
        now = self._clock()
        ticket = _Ticket(user=user, method=verb, target=target, expires_at_s=now + LIFE_S)
        ticket_id = f"cst-VCT-{secrets.token_hex(16)}--tp-lab"
        with self._lock:
            self._drop_old(now)
            self._tickets[ticket_id] = ticket
        return ticket_id

    def redeem(self, ticket_id: str, method: str, url: str) -> str | None:
        """Use the ticket up; the user it was issued to, or None when it does not fit."""
        with self._lock:
            ticket = self._tickets.pop(ticket_id, None)
        if ticket is None or ticket.expires_at_s < self._clock():
            return None
        fits = ticket.method == method and ticket.target == _target(url)
        return ticket.user if fits else None

    def _drop_old(self, now: float) -> None:
        old = [key for key, ticket in self._tickets.items() if ticket.expires_at_s < now]
        oldest = list(self._tickets)[: max(0, len(self._tickets) - _MAX_TICKETS)]
        for key in {*old, *oldest}:
            del self._tickets[key]


def _target(url: str) -> _Target | None:
    """What of a URL must agree; escapes may be written differently in ticket and request."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=32)
        port = parts.port or 443
    except ValueError:
        return None
    if parts.scheme != "https" or not parts.hostname:
        return None
    return f"{parts.hostname}:{port}", unquote(parts.path), tuple(sorted(query))
