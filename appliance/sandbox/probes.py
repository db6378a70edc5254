"""What proves that a booted guest works: `tcp:PORT`, `http:PORT/PATH`, `serial:REGEX`.

A probe is a value, parsed once at the border; `attempt` tries it once against a running machine
and is repeated by `boot` until it passes or the deadline comes. What a guest answers is read up to
a bound and used for nothing but the verdict.
Thread model: probes are immutable; one thread attempts them in turn.
"""

from __future__ import annotations

import http.client
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from appliance.base.errors import UsageError
from appliance.sandbox.console import Console, LineCursor

_ACCEPT_TIMEOUT_S = 1.0
_ACCEPT_POLL_S = 0.02
_ANSWER_TIMEOUT_S = 15.0  # nginx under TCG answers its first request within 0.5 s
_BODY_BYTES_MAX = 64 * 1024
_REGEX_CHARACTERS_MAX = 256
_PATH = re.compile(r"/[!-~]{0,1023}")  # visible ASCII: no space or line end reaches the request


class ProbedMachine(Protocol):
    """What a probe needs of a machine."""

    @property
    def console(self) -> Console: ...

    def forwarded_port(self, guest_port: int) -> int: ...

    def guest_accepted(self, guest_port: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    ok: bool
    detail: str


class Probe(Protocol):
    @property
    def text(self) -> str:
        """The probe as it is written on the command line."""
        ...

    @property
    def guest_port(self) -> int | None:
        """The port of the guest that must be let in."""
        ...

    def attempt(self, machine: ProbedMachine) -> Attempt:
        """Try once; takes at most a few seconds, except for a guest that answers by drips."""
        ...


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """Passes when the guest itself accepts a connection."""

    guest_port: int

    @property
    def text(self) -> str:
        return f"tcp:{self.guest_port}"

    def attempt(self, machine: ProbedMachine) -> Attempt:
        with _guest_connection(machine, self.guest_port) as connection:
            if connection is None:
                return Attempt(False, "not accepted by the guest")
            return Attempt(True, "accepted")


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """Passes when a GET is answered with a status from 200 to 399."""

    guest_port: int
    path: str

    @property
    def text(self) -> str:
        return f"http:{self.guest_port}{self.path}"

    def attempt(self, machine: ProbedMachine) -> Attempt:
        with _guest_connection(machine, self.guest_port) as connection:
            if connection is None:
                return Attempt(False, "not accepted by the guest")
            try:
                return self._get(connection)
            except (OSError, http.client.HTTPException) as error:
                return Attempt(False, f"no answer: {type(error).__name__}")

    def _get(self, connection: socket.socket) -> Attempt:
        client = http.client.HTTPConnection("localhost", self.guest_port)
        client.sock = connection
        client.request("GET", self.path, headers={"Connection": "close"})
        response = client.getresponse()  # http.client bounds line lengths and header counts
        body = response.read(_BODY_BYTES_MAX)
        ok = 200 <= response.status < 400
        return Attempt(ok, f"status {response.status}, {len(body)} bytes")


@dataclass(frozen=True, slots=True)
class SerialProbe:
    """Passes when a line of the serial console matches; an unfinished line counts too."""

    pattern: re.Pattern[str]

    @property
    def text(self) -> str:
        return f"serial:{self.pattern.pattern}"

    @property
    def guest_port(self) -> int | None:
        return None

    def attempt(self, machine: ProbedMachine) -> Attempt:
        match = machine.console.search(self.pattern, LineCursor(), unfinished=True)
        return Attempt(True, match[0]) if match else Attempt(False, "no line matched")


def parse_probe(text: str) -> Probe:
    """Raises UsageError, saying what the three forms are."""
    kind, _, rest = text.partition(":")
    if kind == "tcp":
        return TcpProbe(_port(rest, text))
    if kind == "http":
        port, slash, path = rest.partition("/")
        if not _PATH.fullmatch("/" + path):
            raise UsageError(f"not a URL path in probe {text!r}")
        return HttpProbe(_port(port, text), slash + path or "/")
    if kind == "serial":
        return SerialProbe(_regex(rest, text))
    raise UsageError(f"not a probe: {text!r} (write tcp:PORT, http:PORT/PATH or serial:REGEX)")


def _port(text: str, probe: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise UsageError(f"not a port in probe {probe!r}")
    return int(text)


def _regex(text: str, probe: str) -> re.Pattern[str]:
    if not 1 <= len(text) <= _REGEX_CHARACTERS_MAX:
        raise UsageError(f"a serial probe has 1 to {_REGEX_CHARACTERS_MAX} characters")
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"not a regular expression in probe {probe!r}: {error}") from error


@contextmanager
def _guest_connection(machine: ProbedMachine, guest_port: int) -> Iterator[socket.socket | None]:
    """Yield a connection that the guest has accepted, or None."""
    with socket.socket() as connection:
        connection.settimeout(_ANSWER_TIMEOUT_S)
        try:
            connection.connect(("127.0.0.1", machine.forwarded_port(guest_port)))
        except OSError:
            yield None
            return
        end_s = time.monotonic() + _ACCEPT_TIMEOUT_S
        while not (accepted := machine.guest_accepted(guest_port)) and time.monotonic() < end_s:
            time.sleep(_ACCEPT_POLL_S)
        yield connection if accepted else None
