"""Probes of services, each against a small server that speaks as the real one does, or does not."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.base.errors import UsageError
from appliance.sandbox import guest_connection
from appliance.sandbox.console import Console
from appliance.sandbox.dns_probe import DnsProbe
from appliance.sandbox.http_probe import HttpProbe
from appliance.sandbox.probes import (
    PING_IMPOSSIBLE,
    Attempt,
    PingProbe,
    expecting_text,
    parse_probe,
)
from appliance.sandbox.serial_script import parse_script
from appliance.sandbox.smb_probe import SmbProbe
from appliance.sandbox.sql_probes import Database, SqlProbe
from appliance.sandbox.tls_probe import TlsProbe
from tests.support.certificates import make_self_signed
from tests.support.needs import needs

Serve = Callable[[socket.socket], None]


class OnePort:
    """A machine whose every port is one server of ours."""

    console: Console

    def __init__(self, port: int, *, accepts: bool = True) -> None:
        self._port, self._accepts = port, accepts

    def forwarded_port(self, guest_port: int) -> int:
        return self._port

    def guest_accepted(self, guest_port: int) -> bool:
        return self._accepts


@contextmanager
def server(serve: Serve) -> Iterator[OnePort]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                with suppress(OSError):
                    serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield OnePort(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def attempt(text: str, serve: Serve) -> Attempt:
    with server(serve) as machine:
        return parse_probe(text).attempt(machine)


def says(*pieces: bytes) -> Serve:
    """A server that says its pieces, one per message it is sent; the first at once if empty."""

    def serve(connection: socket.socket) -> None:
        for piece in pieces:
            connection.recv(4096)
            connection.sendall(piece)

    return serve


def greets(greeting: bytes) -> Serve:
    return lambda connection: connection.sendall(greeting)


def page(status: int, body: str) -> Serve:
    return says(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


@pytest.mark.parametrize(
    ("probe", "status", "passes"),
    [
        ("http:80/", 200, True),
        ("http:80/", 302, True),
        ("http:80/", 404, False),
        ("http:80/ status=404", 404, True),
        ("http:80/ status=200", 302, False),
        ("http:80/ text=Welcome to web", 200, True),
        ("http:80/ text=something else", 200, False),
        ("http:80/ status=503 text=Welcome to web", 503, True),
    ],
)
def test_an_http_probe_wants_the_status_and_the_text(probe: str, status: int, passes: bool) -> None:
    """A server that answers with an error page is not up."""
    found = attempt(probe, page(status, "<p>Welcome to web</p>"))
    assert found.ok is passes and f"status {status}" in found.detail


def tls_server(certificate: Path, key: Path) -> Serve:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            if tls.recv(4096):
                tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    return serve


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Valid for two days."""
    needs("openssl")
    return make_self_signed(tmp_path_factory.mktemp("tls"))


class At:
    def __init__(self, year: int) -> None:
        self._year = year

    def now(self) -> datetime:
        return datetime(self._year, 1, 1, tzinfo=UTC)

    def monotonic_s(self) -> float:
        return 0.0


def test_a_tls_probe_looks_at_the_dates(certificate: tuple[Path, Path]) -> None:
    """Valid now and for as long as asked; expired and not yet valid fail."""
    serve = tls_server(*certificate)
    assert attempt("tls:443", serve).ok
    assert attempt("tls:443 days=1 name=web.example", serve).ok
    assert not attempt("tls:443 days=30", serve).ok
    for year in (2020, 2090):
        with server(serve) as machine:
            assert not TlsProbe(443, clock=At(year)).attempt(machine).ok
    assert not attempt("tls:443", greets(b"220 no TLS here\r\n")).ok


def test_an_https_probe_takes_any_certificate(certificate: tuple[Path, Path]) -> None:
    """Whether it is good is asked by the other probe."""
    assert attempt("https:443/ text=ok", tls_server(*certificate)).ok


def dns_answer(result: int, answers: int, *, wrong_id: bool = False) -> Serve:
    def serve(connection: socket.socket) -> None:
        query = connection.recv(4096)
        assert query[14:].startswith(b"\x03www\x07example\x00\x00\x01\x00\x01")
        number = struct.unpack_from(">H", query, 2)[0] ^ wrong_id
        header = struct.pack(">HHHHHH", number, 0x8180 | result, 1, answers, 0, 0)
        connection.sendall(struct.pack(">H", len(header)) + header)

    return serve


def test_a_dns_probe_wants_an_answer_with_records() -> None:
    """Not the error of a server that lost its zone, nor an answer to another question."""
    assert attempt("dns:www.example", dns_answer(0, 1)).ok
    assert not attempt("dns:www.example", dns_answer(0, 0)).ok
    assert attempt("dns:www.example", dns_answer(3, 0)).detail == "no such name"
    assert not attempt("dns:www.example", dns_answer(0, 1, wrong_id=True)).ok


def smb_answer(status: int, dialect: int) -> bytes:
    header = struct.pack(
        "<4sHHIHHIIQIIQ16s", b"\xfeSMB", 64, 0, status, 0, 1, 1, 0, 0, 0, 0, 0, b""
    )
    body = struct.pack("<HHHH", 65, 1, dialect, 0) + bytes(56)
    return struct.pack(">I", len(header + body)) + header + body


def test_an_smb_probe_wants_a_negotiated_dialect() -> None:
    """A refusal, a dialect from nowhere and SMB 1 are no proof."""
    assert attempt("smb", says(smb_answer(0, 0x0302))).detail == "SMB 3.0.2"
    assert not attempt("smb", says(smb_answer(0xC0000022, 0x0302))).ok
    assert not attempt("smb", says(smb_answer(0, 0x9999))).ok
    assert not attempt("smb", says(smb_answer(0, 0x0302).replace(b"\xfe", b"\xff", 1))).ok


def mysql_packet(body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + b"\0" + body


def test_a_mysql_probe_reads_the_greeting() -> None:
    """Its version is shown; an error packet says why not."""
    assert attempt("mysql", greets(mysql_packet(b"\x0a8.0.36\0rest"))).detail == "MySQL 8.0.36"
    refused = attempt("mysql", greets(mysql_packet(b"\xff\x69\x04Host is blocked")))
    assert not refused.ok and "Host is blocked" in refused.detail
    assert not attempt("mysql", greets(b"SSH-2.0-OpenSSH_9.2\r\n")).ok


def postgres_message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def test_a_postgres_probe_tells_starting_from_ready() -> None:
    """A server that recovers answers too, and is not ready."""
    ready = postgres_message(b"R", struct.pack(">I", 10) + b"SCRAM-SHA-256\0\0")
    assert attempt("postgres", says(ready)).ok
    no_entry = postgres_message(b"E", b"SFATAL\0C28000\0Mno pg_hba.conf entry\0\0")
    assert attempt("postgres", says(no_entry)).ok
    starting = postgres_message(b"E", b"SFATAL\0C57P03\0Mthe database system is starting up\0\0")
    found = attempt("postgres", says(starting))
    assert not found.ok and "starting up" in found.detail
    assert not attempt("postgres", says(b"HTTP/1.1 400 Bad Request\r\n\r\n")).ok


def test_a_sql_server_probe_reads_the_prelogin_answer() -> None:
    """Its version is shown."""
    body = struct.pack(">BHHB", 0, 6, 6, 0xFF) + struct.pack(">BBHH", 16, 0, 1000, 0)
    answer = struct.pack(">BBHHBB", 4, 1, 8 + len(body), 0, 1, 0) + body
    assert attempt("mssql", says(answer)).detail == "SQL Server 16.0.1000"
    assert not attempt("mssql", says(answer.replace(b"\4", b"\3", 1))).ok


@pytest.mark.parametrize(
    "probe",
    ["http:80/", "tls:443", "dns:a.example", "smb", "mysql", "postgres", "mssql"],
)
@pytest.mark.parametrize(
    "answer",
    [b"", b"\0", b"\xff" * 4096, b"\x7f" * 70_000, b"\0\0\0\0" * 64],
    ids=["nothing", "a-byte", "ones", "many", "zeros"],
)
def test_no_answer_of_a_hostile_guest_is_more_than_a_failure(probe: str, answer: bytes) -> None:
    """Too short, too long, nonsense: an attempt that failed, in bounded memory."""
    found = attempt(probe, greets(answer))
    assert not found.ok and found.detail.isprintable() and len(found.detail) < 200


def test_a_port_that_only_the_host_accepts_fails_every_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What QEMU accepts for a guest that does not is no service."""
    monkeypatch.setattr(guest_connection, "_ACCEPT_TIMEOUT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        machine = OnePort(listener.getsockname()[1], accepts=False)
        for text in ("tcp:1", "http:80/", "tls:443", "dns:a.example", "smb", "mysql"):
            assert parse_probe(text).attempt(machine).detail == "not accepted by the guest"


def test_a_guest_that_answers_by_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on the whole answer, not on each piece."""
    monkeypatch.setattr(guest_connection, "_ANSWER_TIMEOUT_S", 0.3)
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        while not stop.wait(0.02):
            connection.sendall(b"\x05")

    with server(drip) as machine:
        try:
            assert "no answer" in parse_probe("mysql").attempt(machine).detail
        finally:
            stop.set()


@pytest.mark.parametrize(
    ("text", "probe"),
    [
        ("https:443/a", HttpProbe(443, "/a", tls=True)),
        ("http:80/ status=404", HttpProbe(80, "/", 404)),
        ("http:80/ status=200 text=a b=c", HttpProbe(80, "/", 200, "a b=c")),
        ("tls:443 days=14 name=web.example", TlsProbe(443, 14, "web.example")),
        ("dns:www.example", DnsProbe("www.example")),
        ("dns:5353/www.example", DnsProbe("www.example", 5353)),
        ("smb:4455", SmbProbe(4455)),
        ("mysql:3306", SqlProbe(Database.MYSQL, 3306)),
        ("postgres:5433", SqlProbe(Database.POSTGRES, 5433)),
        ("mssql:1433", SqlProbe(Database.MSSQL, 1433)),
        ("ping", PingProbe()),
    ],
)
def test_each_kind_is_understood_and_prints_as_it_is_written(text: str, probe: object) -> None:
    """A report names the probe in the form that can be pasted back."""
    parsed = parse_probe(text)
    assert parsed == probe and parsed.text == text


@pytest.mark.parametrize(
    "text",
    [
        *("http:80/ status=99", "http:80/ status=abc", "http:80/ text=", "http:80/ a=b"),
        *("tls:", "tls:443 days=99999", "tls:443 name=a b", "tls:443 name=\n", "tls:443  "),
        *("dns:", "dns:a..b", "dns:" + "a" * 64, "dns:x/a.example", "dns:ä.example"),
        *("smb:", "mysql:x", "postgres:0", "ping:1", "ftp:21", "http:80/ text=" + "x" * 257),
    ],
    ids=repr,
)
def test_what_is_no_probe_is_a_usage_error(text: str) -> None:
    """Nothing is half understood."""
    with pytest.raises(UsageError):
        parse_probe(text)


def test_a_ping_is_understood_and_said_to_be_impossible() -> None:
    """With the reason and what to do instead."""
    found = PingProbe().attempt(OnePort(1))
    assert not found.ok and found.detail == PING_IMPOSSIBLE.text
    assert "TCP" in PING_IMPOSSIBLE.next_step


def test_an_expected_text_goes_to_http_probes_that_name_none() -> None:
    """One option for all pages; a probe's own text stays."""
    assert expecting_text(parse_probe("http:80/"), "hello").text == "http:80/ text=hello"
    own = parse_probe("http:80/ text=own")
    assert expecting_text(own, "hello") == own
    assert expecting_text(parse_probe("tcp:80"), "hello") == parse_probe("tcp:80")


@pytest.mark.parametrize("text", ["", "ls", "ls =>", " => x", "a\nb => x", "ls => (", "a=>b"])
def test_what_is_no_script_is_a_usage_error(text: str) -> None:
    """A script has a command and an answer, and no line end gets to the guest."""
    with pytest.raises(UsageError):
        parse_script(text)
