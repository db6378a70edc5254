"""An HTTPS listener: one thread per connection, handlers by path prefix.

Every ESXi host of the lab has one (address and port of its own); vCenter's data plane is served
from the listener that also speaks SOAP. TLS handshakes happen on the connection's thread, so a
client that stalls in one holds up nobody. `close` ends running transfers.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import ssl
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from lab.data_plane.exchange import BodyError, Exchange, Handler, Place

log = logging.getLogger(__name__)

_TIMEOUT_S = 120.0  # a client that is silent for so long in a request or a handshake is cut off


class Routes:
    """Which handler answers a path: the longest prefix that ends at a slash boundary wins."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, prefix: str, handler: Handler) -> None:
        self._handlers[prefix.rstrip("/")] = handler

    def find(self, path: str) -> Handler | None:
        prefix = path.rstrip("/")
        while prefix:
            if prefix in self._handlers:
                return self._handlers[prefix]
            prefix = prefix.rpartition("/")[0]
        return None

    def __call__(self, exchange: Exchange) -> None:
        handler = self.find(exchange.path)
        if handler is None:
            exchange.answer_error(HTTPStatus.NOT_FOUND, "no such path")
            return
        handler(exchange)


def serve_exchange(request: BaseHTTPRequestHandler, place: Place, handler: Handler) -> None:
    """Answer one request of any standard-library server with `handler`.

    What goes wrong becomes 400 or 500 while nothing was sent, and ends the connection otherwise.
    """
    try:
        exchange = Exchange(request, place)
    except ValueError:  # escapes that are not UTF-8, or too many query fields
        request.send_error(HTTPStatus.BAD_REQUEST)
        request.close_connection = True
        return
    try:
        handler(exchange)
    except BodyError as error:
        exchange.close_after()
        if not exchange.answered:
            exchange.answer_error(HTTPStatus.BAD_REQUEST, str(error))
    except OSError as error:  # the client went away; or the datastore failed
        log.debug("%s %s: %s", exchange.method, exchange.raw_path, error)
        exchange.close_after()
        if not exchange.answered and not isinstance(error, ConnectionError | ssl.SSLError):
            exchange.answer_error(HTTPStatus.INTERNAL_SERVER_ERROR, "input or output error")


class HttpsListener:
    """Listens on one address from construction until `close`."""

    def __init__(
        self,
        name: str,
        tls: ssl.SSLContext,
        handler: Handler,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._server = _Server((address, port), tls)
        port = int(self._server.server_address[1])
        self.place = Place(name, f"{address}:{port}")
        self._server.place, self._server.handler = self.place, handler
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name=f"https-{name}"
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening, end open connections, join every thread. Idempotent."""
        self._server.shutdown()
        self._server.end_connections()
        self._server.server_close()
        self._thread.join()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "VMware-lab"
    sys_version = ""
    timeout = _TIMEOUT_S
    wbufsize = 0
    server: _Server

    def setup(self) -> None:
        self.request.settimeout(_TIMEOUT_S)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request.do_handshake()
        super().setup()

    def _serve(self) -> None:
        serve_exchange(self, self.server.place, self.server.handler)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _serve

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s " + format, self.server.place.name, *args)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = 128
    daemon_threads = False
    block_on_close = True

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.place: Place
        self.handler: Handler
        super().__init__(address, _Request)

    def get_request(self) -> tuple[Any, Any]:
        sock, address = super().get_request()
        wrapped = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._open.add(wrapped)
        return wrapped, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        with self._lock:
            open_now = list(self._open)
        for sock in open_now:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("connection of %s failed", client_address, exc_info=True)
