"""Real receivers of notifications on loopback: SMTP with TLS, https, syslog."""

from __future__ import annotations

import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.support.certificates import make_authority, make_certificate

USER, PASSWORD = "holdfast", "correct horse battery"


@dataclass(frozen=True)
class Authority:
    folder: Path

    @property
    def pem(self) -> str:
        return (self.folder / "ca-cert.pem").read_text()

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server-cert.pem", self.folder / "server-key.pem")
        return context


def authority_in(folder: Path) -> Authority:
    make_authority(folder, "notification test")
    make_certificate(folder, folder, "server")
    return Authority(folder)


class _AnyPort(Controller):
    """Port 0: the one that the system chose is asked whether the server is there."""

    def _trigger_server(self) -> None:
        assert self.server is not None
        socket.create_connection(self.server.sockets[0].getsockname()[:2]).close()


@dataclass
class MailServer:
    """`answer`: to each message, such as `250 OK`."""

    port: int = 0
    answer: str = "250 OK"
    mails: list[Envelope] = field(default_factory=list)
    arrived: queue.Queue[Envelope] = field(default_factory=queue.Queue)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.answer.startswith("250"):
            self.mails.append(envelope)
            self.arrived.put(envelope)
        return self.answer


def _authenticated(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> Any:
    right = isinstance(data, LoginPassword) and data == LoginPassword(
        USER.encode(), PASSWORD.encode()
    )
    return AuthResult(success=right, handled=False)


@contextmanager
def mail_server(
    authority: Authority, *, implicit_tls: bool = False, login: bool = False
) -> Iterator[MailServer]:
    server = MailServer()
    context = authority.server_context()
    tls: dict[str, Any] = {"ssl_context": context}
    if not implicit_tls:
        tls = {"tls_context": context, "require_starttls": True}
    controller = _AnyPort(
        server,
        hostname="127.0.0.1",
        port=0,
        authenticator=_authenticated if login else None,
        auth_required=login,
        auth_require_tls=not implicit_tls,
        **tls,
    )
    controller.start()
    try:
        assert controller.server is not None
        server.port = controller.server.sockets[0].getsockname()[1]
        yield server
    finally:
        controller.stop()


@dataclass
class HookServer:
    port: int = 0
    statuses: list[int] = field(default_factory=list)  # answered in turn, then 204
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)


@contextmanager
def hook_server(authority: Authority) -> Iterator[HookServer]:
    hooks = HookServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hooks.requests.append((self.path, dict(self.headers), body))
            status = hooks.statuses.pop(0) if hooks.statuses else 204
            self.send_response(status)
            if status in (301, 302, 307):
                self.send_header("Location", "https://127.0.0.1:1/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
            hooks.arrived.set()

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = authority.server_context().wrap_socket(server.socket, server_side=True)
    hooks.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hooks
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def syslog_udp() -> Iterator[tuple[int, socket.socket]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        yield receiver.getsockname()[1], receiver


@contextmanager
def syslog_stream(authority: Authority | None) -> Iterator[tuple[int, queue.Queue[bytes]]]:
    """TCP, over TLS with an authority; yields the port, and each connection's bytes."""
    arrived: queue.Queue[bytes] = queue.Queue()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with plain:
                try:
                    connection: socket.socket = plain
                    if authority is not None:
                        context = authority.server_context()
                        connection = context.wrap_socket(plain, server_side=True)
                    parts = []
                    while part := connection.recv(65536):
                        parts.append(part)
                    if authority is not None:
                        connection.unwrap()  # type: ignore[attr-defined]
                except OSError:
                    continue  # a client that does not trust us
                arrived.put(b"".join(parts))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], arrived
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
