"""Pinned HTTPS: nothing is said to a server that does not show the pinned certificate."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import make_self_signed
from vmware import https
from vmware.errors import CertificateError, ProtocolError, UnreachableError

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class OneByOne:
    """A TLS server that handles connections in turn and keeps what each client said."""

    def __init__(self, *identities: tuple[Path, Path]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.heard: list[bytes] = []
        self.done = threading.Event()
        self._identities = identities
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for certificate, key in self._identities:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            plain, _ = self._socket.accept()
            plain.settimeout(20)
            try:
                with context.wrap_socket(plain, server_side=True) as sock:
                    said = sock.recv(65536)
                    self.heard.append(said)
                    if said:
                        sock.sendall(_ANSWER)
            except (ssl.SSLError, ConnectionError):
                self.heard.append(b"")
        self.done.set()

    def close(self) -> None:
        self._thread.join()
        self._socket.close()


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("certificates")
    return [make_self_signed(folder / name) for name in ("a", "b")]


@pytest.fixture
def servers() -> Iterator[list[OneByOne]]:
    running: list[OneByOne] = []
    yield running
    for server in running:
        server.close()


def der(identity: tuple[Path, Path]) -> bytes:
    return ssl.PEM_cert_to_DER_cert(identity[0].read_text())


def test_not_a_byte_is_sent_to_another_certificate(
    identities: list[tuple[Path, Path]], servers: list[OneByOne]
) -> None:
    """The server completes the handshake and hears nothing at all."""
    servers.append(OneByOne(identities[0]))
    wrong = hashlib.sha256(der(identities[1])).hexdigest()
    with pytest.raises(CertificateError) as caught:
        https.connect("127.0.0.1", servers[0].port, wrong, 10)
    assert servers[0].done.wait(20)
    assert servers[0].heard == [b""]
    assert caught.value.expected == https.spelled(wrong)
    assert caught.value.found == https.spelled(hashlib.sha256(der(identities[0])).hexdigest())


@pytest.mark.parametrize("name", ["sha256", "sha1"])
@pytest.mark.parametrize("colons", [True, False])
def test_a_pin_may_have_either_hash_and_either_spelling(
    identities: list[tuple[Path, Path]], servers: list[OneByOne], name: str, colons: bool
) -> None:
    """Tickets and leases bring SHA-1, with colons or without, in either case."""
    servers.append(OneByOne(identities[0]))
    digits = hashlib.new(name, der(identities[0])).hexdigest()
    pin = https.spelled(digits) if colons else digits
    connection = https.connect("127.0.0.1", servers[0].port, pin, 10)
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"ok"
    connection.close()


def test_a_connection_that_is_opened_again_is_verified_again(
    identities: list[tuple[Path, Path]], servers: list[OneByOne]
) -> None:
    """http.client reconnects by itself; the certificate may have changed in between."""
    servers.append(OneByOne(*identities))
    pin = hashlib.sha256(der(identities[0])).hexdigest()
    connection = https.connect("127.0.0.1", servers[0].port, pin, 10)
    connection.request("GET", "/first")
    assert connection.getresponse().read() == b"ok"
    with pytest.raises(CertificateError):
        connection.request("GET", "/second", headers={"Cookie": "secret"})
    assert servers[0].done.wait(20)
    assert servers[0].heard[1] == b""


def test_the_fingerprint_that_is_fetched_is_the_one_that_fits(
    identities: list[tuple[Path, Path]], servers: list[OneByOne]
) -> None:
    """What is shown for confirmation is what is compared later; fetching it says nothing."""
    servers.append(OneByOne(identities[0]))
    found = https.fetch_fingerprint("127.0.0.1", servers[0].port)
    assert found.replace(":", "").lower() == hashlib.sha256(der(identities[0])).hexdigest()
    assert servers[0].done.wait(20)
    assert servers[0].heard == [b""]


@pytest.mark.parametrize("pin", ["", "AA:BB", "g" * 64, "00" * 64])
def test_what_is_no_fingerprint_is_refused(pin: str) -> None:
    """A mistyped pin is an error of its own, never taken for “no pin”."""
    with pytest.raises(CertificateError, match="not a SHA-256"):
        https.connect("127.0.0.1", 9, pin, 1)


def test_nobody_there_and_no_tls_there_are_two_errors() -> None:
    """The first may pass; the second is a wrong address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer_plainly() -> None:
            sock, _ = listener.accept()
            sock.recv(1024)
            sock.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            sock.close()

        thread = threading.Thread(target=answer_plainly)
        thread.start()
        with pytest.raises(ProtocolError, match="TLS"):
            https.fetch_fingerprint("127.0.0.1", port)
        thread.join()
    with pytest.raises(UnreachableError):
        https.fetch_fingerprint("127.0.0.1", port)
