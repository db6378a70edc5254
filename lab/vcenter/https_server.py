"""The HTTPS server: one thread per connection, HTTP/1.1 keep-alive, handlers by path prefix.

Without a TLS context it is a plain HTTP server, for the protocols that seal their own messages.

`route("/folder", handler)` serves `/folder` and everything below it; the longest prefix wins. A
handler takes an HttpRequest and returns an HttpReply; it runs on the connection's thread and may
block. The TLS handshake happens on that thread too, so a client that stalls holds up nobody.

Thread model: `close` stops listening, cuts every connection and joins their threads.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from lab.vcenter.http_message import ConnectionCut, ConnectionReset, HttpReply, HttpRequest

log = logging.getLogger(__name__)

Handler = Callable[[HttpRequest], HttpReply]
_IDLE_TIMEOUT_S = 900.0
_DRAIN_LIMIT_BYTES = 1 << 20
_CHUNK_LINE_LIMIT = 1024


class HttpsServer:
    def __init__(
        self, context: ssl.SSLContext | None, *, address: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._routes: dict[str, Handler] = {}
        self._server = _Listener((address, port), context, self._find)
        self.port = int(self._server.server_address[1])
        self._thread: threading.Thread | None = None

    def route(self, prefix: str, handler: Handler) -> None:
        """Serve `prefix` and what is below it. Raises ValueError if the prefix is taken."""
        if prefix in self._routes or not prefix.startswith("/"):
            raise ValueError(prefix)
        self._routes[prefix] = handler

    def start(self) -> None:
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="lab-https"
        )
        self._thread.start()

    def close(self) -> None:
        """Idempotent."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.cut_all()
        self._server.server_close()

    def _find(self, path: str) -> Handler | None:
        best = max(
            (p for p in self._routes if path == p or path.startswith(p.rstrip("/") + "/")),
            key=len,
            default=None,
        )
        return self._routes[best] if best is not None else None


class _Listener(ThreadingMixIn, TCPServer):
    allow_reuse_address = True
    request_queue_size = 128
    block_on_close = True
    daemon_threads = False

    def __init__(
        self,
        address: tuple[str, int],
        context: ssl.SSLContext | None,
        find: Callable[[str], Handler | None],
    ) -> None:
        self.context = context
        self.find = find
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(address, _Connection)

    def get_request(self) -> tuple[socket.socket, Any]:
        raw, peer = self.socket.accept()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.settimeout(_IDLE_TIMEOUT_S)
        wrapped = raw
        if self.context is not None:
            wrapped = self.context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        with self._connections_lock:
            self._connections.add(wrapped)
        return wrapped, peer

    def shutdown_request(self, request: Any) -> None:
        with self._connections_lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        with self._connections_lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                # Not SSLSocket.shutdown: that would clear the object under the reading thread.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("connection from %s ended", client_address, exc_info=True)


class _Body:
    """The body of the request that stands next in the stream."""

    def __init__(self, stream: Any, length: int | None) -> None:
        self._stream = stream
        self.length = length
        self._left = length if length is not None else 0  # of the body, or of the chunk
        self._chunked = length is None
        self._ended = length == 0

    @property
    def ended(self) -> bool:
        return self._ended

    def read(self, size: int) -> bytes:
        if self._ended:
            return b""
        if self._chunked and self._left == 0:
            self._next_chunk()
            if self._ended:
                return b""
        data = bytes(self._stream.read(min(size, self._left)))
        if not data and size:
            raise ConnectionCut("the body ended early")
        self._left -= len(data)
        if self._left == 0:
            if self._chunked:
                self._stream.readline(_CHUNK_LINE_LIMIT)
            else:
                self._ended = True
        return data

    def read_all(self, limit: int) -> bytes | None:
        if self.length is not None and self.length > limit:
            return None
        parts, total = [], 0
        while data := self.read(1 << 16):
            parts.append(data)
            total += len(data)
            if total > limit:
                return None
        return b"".join(parts)

    def _next_chunk(self) -> None:
        line = bytes(self._stream.readline(_CHUNK_LINE_LIMIT))
        try:
            self._left = int(line.split(b";")[0], 16)
        except ValueError:
            raise ConnectionCut("a chunk has no length") from None
        if self._left < 0:
            raise ConnectionCut("a chunk has a negative length")
        if self._left == 0:
            while self._stream.readline(_CHUNK_LINE_LIMIT).strip():
                pass
            self._ended = True


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "lab"
    sys_version = ""
    rbufsize = 1 << 18
    wbufsize = 0

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s " + format, self.client_address[0], *args)

    def do_any(self) -> None:
        body = self._body()
        if body is None:
            return
        parts = urlsplit(self.path)
        request = HttpRequest(
            method=self.command,
            path=unquote(parts.path),
            raw_target=self.path,
            query=parse_qs(parts.query, keep_blank_values=True),
            headers=_joined(self.headers),
            body=body,
            peer=self.client_address[0],
            host=self.headers.get("Host", ""),
            connection=self,
        )
        handler = cast(_Listener, self.server).find(request.path)
        try:
            reply = handler(request) if handler else HttpReply(status=404)
            try:
                self._send(reply)
            finally:
                reply.done()
        except ConnectionReset:
            self._reset()
        except ConnectionCut:
            self.close_connection = True
        except ValueError as error:
            log.warning("%s %s: %s", self.command, parts.path, error)
            self.close_connection = True
        self._drain(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_any

    def _body(self) -> _Body | None:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return _Body(self.rfile, None)
        length = self.headers.get("Content-Length", "0")
        if not length.isascii() or not length.isdigit():
            self.close_connection = True
            self._send(HttpReply(status=400, close=True))
            return None
        return _Body(self.rfile, int(length))

    def _send(self, reply: HttpReply) -> None:
        chunked = not isinstance(reply.body, bytes) and reply.length is None
        length = len(reply.body) if isinstance(reply.body, bytes) else reply.length
        if reply.length is not None:
            length = reply.length
        self.send_response(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        if reply.close:
            self.send_header("Connection", "close")
        if self.command == "HEAD" or isinstance(reply.body, bytes):
            self._flush_with(b"" if self.command == "HEAD" else cast(bytes, reply.body))
            return
        self._flush_with(b"")
        self._stream(reply, chunked, length)

    def _flush_with(self, body: bytes) -> None:
        """Send the headers and the body in one write: a second one would wait for an ACK."""
        buffered: list[bytes] = vars(self).pop("_headers_buffer")
        head = b"".join(buffered) + b"\r\n"
        self.wfile.write(head + body if len(body) < 1 << 20 else head)
        if len(body) >= 1 << 20:
            self.wfile.write(body)

    def _stream(self, reply: HttpReply, chunked: bool, length: int | None) -> None:
        sent = 0
        for data in reply.body:
            piece = cast(bytes, data)
            if not piece:
                continue
            sent += len(piece)
            if not chunked and length is not None and sent > length:
                raise ConnectionCut("more than was announced")
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        elif sent != length:
            raise ConnectionCut("less than was announced")

    def _reset(self) -> None:
        self.close_connection = True
        descriptor = self.connection.detach()  # wrapped in TLS, it would say goodbye first
        with socket.socket(fileno=descriptor) as bare:
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _drain(self, body: _Body) -> None:
        """What a handler left of the body must go before the next request can be read."""
        dropped = 0
        try:
            while not self.close_connection and not body.ended:
                dropped += len(body.read(1 << 16))
                if dropped > _DRAIN_LIMIT_BYTES:
                    self.close_connection = True
        except ConnectionCut:
            self.close_connection = True


def _joined(headers: Any) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        joined[key] = f"{joined[key]}, {value}" if key in joined else value
    return joined
