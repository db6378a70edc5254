"""One HTTP request and its answer, as the handlers of the data plane see them.

Wraps the standard library's request handler, whichever server it runs in. Paths and queries are
decoded once, here. Thread model: an exchange belongs to the thread of its connection.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

PIECE_BYTES = 1 << 20  # of an upload, at most this much is in memory
_LINE_BYTES = 1024  # a chunk-size line
_DRAIN_BYTES = 1 << 20  # an unread body up to this is read so that the connection can live on


class BodyError(Exception):
    """The request's body is not what its headers said, or more than the handler takes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Who answers: "vcenter" or a host's name, and the `address:port` clients connect to."""

    name: str
    authority: str

    @property
    def is_vcenter(self) -> bool:
        return self.name == VCENTER


VCENTER = "vcenter"


class Handler(Protocol):
    """Something that answers requests; it must answer each one exactly once."""

    def __call__(self, exchange: Exchange) -> None: ...


class Exchange:
    """The request of one handler call; see the module docstring."""

    def __init__(self, handler: BaseHTTPRequestHandler, place: Place) -> None:
        self._handler = handler
        self.place = place
        self.method = handler.command
        parts = urlsplit(handler.path)
        self.raw_path = parts.path
        self.path = unquote(parts.path, errors="strict")
        self.query: Mapping[str, str] = dict(
            parse_qsl(parts.query, keep_blank_values=True, max_num_fields=32, errors="strict")
        )
        self.answered = False
        self._body_begun = self._body_done = False

    # what was asked

    @property
    def url(self) -> str:
        """The request as an absolute URL on this place, the target byte for byte."""
        return f"https://{self.place.authority}{self._handler.path}"

    def header(self, name: str) -> str | None:
        return self._handler.headers.get(name)

    def cookie(self, name: str) -> str | None:
        """The cookie's value without the quotes clients put around it."""
        for line in self._handler.headers.get_all("Cookie", []):
            with contextlib.suppress(CookieError):
                morsel = SimpleCookie(line).get(name)
                if morsel is not None:
                    return morsel.value.strip('"')
        return None

    def basic_credentials(self) -> tuple[str, str] | None:
        """User and password of the Authorization header, if it is a well-formed Basic one."""
        scheme, _, value = (self.header("Authorization") or "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            user, separator, password = b64decode(value, validate=True).decode().partition(":")
        except (Base64Error, UnicodeDecodeError):
            return None
        return (user, password) if separator else None

    def body_pieces(self) -> Iterator[bytes]:
        """The body in pieces of at most PIECE_BYTES, by Content-Length or chunked.

        Raises:
            BodyError: no length, a malformed chunk, or the client went away in the middle.
        """
        self._body_begun = True
        if (self.header("Transfer-Encoding") or "").lower() == "chunked":
            return self._chunked()
        length = self.header("Content-Length")
        if length is None or not length.isascii() or not length.isdigit():
            raise BodyError("a body needs Content-Length or chunked encoding")
        return self._whole(int(length))

    def body(self, limit_bytes: int) -> bytes:
        """The whole body; BodyError when it is longer than `limit_bytes`."""
        whole = bytearray()
        for piece in self.body_pieces():
            whole += piece
            if len(whole) > limit_bytes:
                raise BodyError(f"the body is longer than {limit_bytes} bytes")
        return bytes(whole)

    def _whole(self, length: int) -> Iterator[bytes]:
        yield from self._counted(length)
        self._body_done = True

    def _counted(self, length: int) -> Iterator[bytes]:
        while length:
            piece = self._handler.rfile.read(min(length, PIECE_BYTES))
            if not piece:
                raise BodyError(f"{length} bytes of the body are missing")
            length -= len(piece)
            yield piece

    def _chunked(self) -> Iterator[bytes]:
        while True:
            line = self._handler.rfile.readline(_LINE_BYTES)
            text = line.split(b";", 1)[0].strip()
            try:
                size = int(text, 16)
            except ValueError as error:
                raise BodyError("malformed chunk size") from error
            if not line.endswith(b"\n") or size < 0:
                raise BodyError("malformed chunk size")
            if size == 0:
                break
            yield from self._counted(size)
            if self._handler.rfile.readline(3) not in (b"\r\n", b"\n"):
                raise BodyError("a chunk does not end where it should")
        while self._handler.rfile.readline(_LINE_BYTES) not in (b"\r\n", b"\n", b""):
            pass  # trailers
        self._body_done = True

    # the answer

    def begin(
        self,
        status: HTTPStatus,
        headers: Sequence[tuple[str, str]] = (),
        *,
        length: int | None,
    ) -> None:
        """Send the head. With `length` None the body ends with the connection."""
        self.answered = True
        self._settle_request_body()
        self._handler.send_response(status)
        for name, value in headers:
            self._handler.send_header(name, value)
        if length is None:
            self.close_after()
        else:
            self._handler.send_header("Content-Length", str(length))
        if self._handler.close_connection:
            self._handler.send_header("Connection", "close")
        self._handler.end_headers()

    def send(self, data: bytes | memoryview) -> None:
        """Send a piece of the body; ConnectionError when the client is gone."""
        self._handler.wfile.write(data)

    def answer(
        self,
        status: HTTPStatus,
        body: bytes = b"",
        content_type: str = "text/html",
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """A whole small answer; its body is left out for HEAD."""
        typed = (*headers, ("Content-Type", content_type)) if body else headers
        self.begin(status, typed, length=len(body))
        if self.method != "HEAD" and body:
            self.send(body)

    def answer_error(self, status: HTTPStatus, what: str, *headers: tuple[str, str]) -> None:
        """An HTML error page as ESXi sends; `what` must not hold markup from the client."""
        page = f"<html><head><title>{status.value} {status.phrase}</title></head><body>"
        self.answer(
            status, f"{page}<h1>{status.phrase}</h1>{what}</body></html>".encode(), headers=headers
        )

    def close_after(self) -> None:
        """The connection ends with this answer."""
        self._handler.close_connection = True

    def _settle_request_body(self) -> None:
        """Read what the handler left of a short body; close the connection after a long one."""
        if self._body_begun:
            if not self._body_done:
                self.close_after()
            return
        try:
            length = int(self.header("Content-Length") or 0)
        except ValueError:
            length = -1
        if 0 <= length <= _DRAIN_BYTES and self.header("Transfer-Encoding") is None:
            for _ in self._counted(length):
                pass
        else:
            self.close_after()

    def reset(self) -> None:
        """Cut the connection with a TCP reset, as a host does that dies. Nothing can follow."""
        self.answered = True
        self.close_after()
        raw = self._handler.connection
        fd = raw.detach()
        if fd < 0:
            return
        with socket.socket(fileno=fd) as bare:
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
