"""An HTTP request and its reply, as the handlers of the practice servers see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Protocol


class ConnectionCut(Exception):
    """Raised by a handler, or while its body is iterated: close the connection here and now."""


class ConnectionReset(ConnectionCut):
    """Close it with a TCP reset, as a host does that dies."""


class BodyReader(Protocol):
    """The body of a request, read once. `length` is None for a chunked one."""

    length: int | None

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" at the end. Raises ConnectionCut if the peer is gone."""
        ...

    def read_all(self, limit: int) -> bytes | None:
        """Return the whole body, or None if it is longer than `limit`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    method: str
    path: str  # percent-decoded, without the query
    raw_target: str  # as it was sent
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]  # names in lower case; repeated ones joined with ", "
    body: BodyReader
    peer: str  # address of the client
    host: str  # address and port the client used for us
    connection: object  # one for all requests of a connection, to hang state on (weakly)

    def header(self, name: str) -> str | None:
        return self.headers.get(name.lower())

    def parameter(self, name: str) -> str | None:
        """The first value of a query parameter."""
        values = self.query.get(name)
        return values[0] if values else None

    def cookie(self, name: str) -> str | None:
        jar: SimpleCookie = SimpleCookie()
        try:
            jar.load(self.headers.get("cookie", ""))
        except CookieError:
            return None
        found = jar.get(name)
        return found.value if found is not None else None


@dataclass(slots=True, kw_only=True)
class HttpReply:
    """`body` as bytes, or as an iterable of bytes that is sent while it is made.

    An iterable with `length` must yield exactly that many bytes; without one it is sent chunked.
    """

    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | Iterable[bytes] = b""
    length: int | None = None
    close: bool = False  # close the connection afterwards
    done: Callable[[], None] = lambda: None  # called when it was sent, or could not be
