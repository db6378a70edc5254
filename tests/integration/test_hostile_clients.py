"""Clients that are slow, silent, many, or send heads and bodies that are too large."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from appliance.api import slow_clients
from appliance.api.local_socket import PatientServer
from appliance.api.services import Services
from appliance.catalog.accounts import Role
from tests.support.api_server import Client, api_serving, make_token

WITHIN_S = 20.0


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seconds in place of minutes, so that a test need not wait for long."""
    made = PatientServer.__init__
    monkeypatch.setattr(
        PatientServer, "__init__", lambda self, app: made(self, app, head_s=1, connections_max=8)
    )
    monkeypatch.setattr("appliance.api.app.BODY_S", 1.0)
    monkeypatch.setattr(slow_clients, "HANDSHAKE_S", 1.0)


@pytest.fixture
def served(tmp_path: Path, limits: None) -> Iterator[tuple[Services, int]]:
    with api_serving(tmp_path) as (services, port):
        yield services, port


def connected(port: int) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", port), WITHIN_S)
    return context.wrap_socket(plain)


def rest(connection: socket.socket) -> bytes:
    """What still comes until the appliance closes it; fails if it never does."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except (ConnectionError, ssl.SSLError):
        pass
    return b"".join(parts)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "],
    ids=["nothing", "a line", "half a head"],
)
def test_a_connection_without_a_whole_head_is_closed(
    served: tuple[Services, int], sent: bytes
) -> None:
    """And others are served meanwhile."""
    with connected(served[1]) as slow:
        slow.sendall(sent)
        assert Client(served[1]).api("GET", "/about").status == 200
        assert rest(slow) == b""


def test_a_handshake_that_never_ends_is_closed(served: tuple[Services, int]) -> None:
    """A plain connection that says nothing at all."""
    with socket.create_connection(("127.0.0.1", served[1]), WITHIN_S) as silent:
        assert rest(silent) == b""


def test_a_body_that_never_comes_is_refused(served: tuple[Services, int]) -> None:
    """Announced and not sent: the answer says so, and the request is over."""
    services, port = served
    token = make_token(services.catalog, "t", Role.ADMINISTRATOR)
    head = (
        "POST /api/v1/accounts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    )
    with connected(port) as slow:
        slow.sendall(head.encode())
        answer = rest(slow)
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"did not come within" in answer


def test_nobody_without_login_can_send_a_body_at_all(served: tuple[Services, int]) -> None:
    """A large body of a stranger is refused before it is read."""
    head = (
        "POST /api/v1/accounts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    )
    with connected(served[1]) as stranger:
        stranger.sendall(head.encode())
        assert rest(stranger).startswith(b"HTTP/1.1 401 ")


def test_too_many_connections_are_closed_and_room_comes_back(
    served: tuple[Services, int],
) -> None:
    """Those beyond the limit get nothing; when others go, new ones are served."""
    with ExitStack() as stack:
        held = [stack.enter_context(connected(served[1])) for _ in range(16)]
        for each in held:
            assert rest(each) == b""
    assert Client(served[1]).api("GET", "/about").status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Many: 1\r\n" * 100_000 + b"\r\n",
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0",
    ],
    ids=["address", "header", "headers", "bytes", "version", "two lengths"],
)
def test_a_head_that_is_too_large_or_wrong_is_refused(
    served: tuple[Services, int], head: bytes
) -> None:
    """With a 4xx and a closed connection, in bounded memory; never with a 500."""
    with connected(served[1]) as hostile:
        with suppress(OSError):
            hostile.sendall(head)
        answer = rest(hostile)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer[:200]
    assert Client(served[1]).api("GET", "/about").status == 200


@pytest.mark.parametrize(
    "path",
    ["/static/../../../etc/passwd", "/static/%2e%2e/%2e%2e/etc/passwd", "/static//etc/passwd",
     "/vms/..%2f..%2fcatalog.sqlite", "/api/v1/runs/..%2f..%2fsecrets.key", "/static/..%5c..%5cx"],
)  # fmt: skip
def test_no_path_leads_out_of_the_interface(served: tuple[Services, int], path: str) -> None:
    """Whoever is logged in too."""
    services, port = served
    token = make_token(services.catalog, "t", Role.ADMINISTRATOR)
    with connected(port) as raw:
        request = (
            f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        )
        raw.sendall(request.encode())
        answer = rest(raw)
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 403", b"HTTP/1.1 400")), answer[:100]
    assert b"root:" not in answer
