"""What proves that a booted guest works: all kinds of probes, and how they are written.

tcp:PORT                                     the guest accepts a connection
http:PORT/PATH  https:PORT/PATH              a GET is answered; `status=N`, `text=WORDS`
tls:PORT                                     the certificate is valid; `days=N`, `name=HOST`
dns:NAME  dns:PORT/NAME                      its name server answers
smb  mysql  postgres  mssql  (or with :PORT) the service answers as what it should be
serial:REGEX                                 a line of the serial console matches
ping                                         impossible here: PING_IMPOSSIBLE
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.sandbox.console import LineCursor
from appliance.sandbox.dns_probe import DNS_PORT, NAME, DnsProbe
from appliance.sandbox.guest_connection import talk_to_guest
from appliance.sandbox.http_probe import PATH, TEXT_CHARACTERS_MAX, HttpProbe
from appliance.sandbox.probe_contract import Attempt, Probe, ProbedMachine
from appliance.sandbox.smb_probe import SMB_PORT, SmbProbe
from appliance.sandbox.sql_probes import PORTS, Database, SqlProbe
from appliance.sandbox.tls_probe import TlsProbe

_REGEX_CHARACTERS_MAX = 256
_DAYS_MAX = 3650
_FORMS = "tcp, http, https, tls, dns, smb, mysql, postgres, mssql, serial; see `verify` in the docs"

PING_IMPOSSIBLE = Reason(
    "verify.ping-impossible",
    "the sandbox's network carries TCP from the host only, so a guest cannot be pinged",
    "probe a TCP port of the guest instead",
)

__all__ = ["Attempt", "PingProbe", "Probe", "ProbedMachine", "TcpProbe", "parse_probe"]


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """Passes when the guest itself accepts a connection."""

    guest_port: int

    @property
    def text(self) -> str:
        return f"tcp:{self.guest_port}"

    def attempt(self, machine: ProbedMachine) -> Attempt:
        return talk_to_guest(machine, self.guest_port, lambda _: Attempt(True, "accepted"))


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


@dataclass(frozen=True, slots=True)
class PingProbe:
    """QEMU's user network has no way for an ICMP echo to a guest; never passes, never attempted."""

    @property
    def text(self) -> str:
        return "ping"

    @property
    def guest_port(self) -> int | None:
        return None

    def attempt(self, machine: ProbedMachine) -> Attempt:
        return Attempt(False, PING_IMPOSSIBLE.text)


def parse_probe(text: str) -> Probe:
    """Raises UsageError, saying what the forms are."""
    kind, colon, rest = text.partition(":")
    match kind:
        case "ping" if not colon:
            return PingProbe()
        case "tcp":
            return TcpProbe(_port(rest, text))
        case "http" | "https":
            return _http(kind, rest, text)
        case "tls":
            return _tls(rest, text)
        case "dns":
            return _dns(rest, text)
        case "smb":
            return SmbProbe(_port(rest, text) if colon else SMB_PORT)
        case "mysql" | "postgres" | "mssql":
            database = Database(kind)
            return SqlProbe(database, _port(rest, text) if colon else PORTS[database])
        case "serial":
            return SerialProbe(parse_regex(rest, f"probe {text!r}"))
    raise UsageError(f"not a probe: {text!r} (kinds are {_FORMS})")


def expecting_text(probe: Probe, expected: str) -> Probe:
    """The same probe, wanting `expected` in the page where it names nothing itself."""
    if isinstance(probe, HttpProbe) and probe.expected_text is None:
        return replace(probe, expected_text=_expected(expected))
    return probe


def parse_regex(text: str, what: str) -> re.Pattern[str]:
    """Raises UsageError."""
    if not 1 <= len(text) <= _REGEX_CHARACTERS_MAX:
        raise UsageError(f"a regular expression has 1 to {_REGEX_CHARACTERS_MAX} characters")
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"not a regular expression in {what}: {error}") from error


def _http(kind: str, rest: str, probe: str) -> HttpProbe:
    address, _, words = rest.partition(" ")
    port, slash, path = address.partition("/")
    if not PATH.fullmatch("/" + path):
        raise UsageError(f"not a URL path in probe {probe!r}")
    status = expected = None
    while words:
        if words.startswith("text="):
            expected, words = _expected(words.removeprefix("text=")), ""
            continue
        word, _, words = words.partition(" ")
        if not re.fullmatch(r"status=[1-5][0-9][0-9]", word, re.ASCII):
            raise UsageError(f"neither status=N nor text=WORDS: {word!r} in probe {probe!r}")
        status = int(word.removeprefix("status="))
    return HttpProbe(_port(port, probe), slash + path or "/", status, expected, kind == "https")


def _tls(rest: str, probe: str) -> TlsProbe:
    port, *words = rest.split(" ")
    days, name = 0, None
    for word in words:
        if re.fullmatch(r"days=[0-9]{1,4}", word) and int(word[5:]) <= _DAYS_MAX:
            days = int(word[5:])
        elif word.startswith("name=") and NAME.fullmatch(word[5:]):
            name = word[5:]
        else:
            raise UsageError(f"neither days=N nor name=HOST: {word!r} in probe {probe!r}")
    return TlsProbe(_port(port, probe), days, name)


def _dns(rest: str, probe: str) -> DnsProbe:
    port, slash, name = rest.rpartition("/")
    if not NAME.fullmatch(name):
        raise UsageError(f"not a host name in probe {probe!r}")
    return DnsProbe(name, _port(port, probe) if slash else DNS_PORT)


def _expected(text: str) -> str:
    if not 1 <= len(text) <= TEXT_CHARACTERS_MAX:
        raise UsageError(f"an expected text has 1 to {TEXT_CHARACTERS_MAX} characters")
    return text


def _port(text: str, probe: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise UsageError(f"not a port in probe {probe!r}")
    return int(text)
