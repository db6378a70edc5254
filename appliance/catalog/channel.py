"""Where notifications go: e-mail, webhook or syslog, what each is told, and when.

The model at the border, as `policy.py`: what command line and API hand in becomes one of these or
a clear error. A channel's secret (SMTP password, signing key of the webhook) is not part of it; it
is sealed for exactly the place that it is for, so that pointing a channel elsewhere opens nothing.

Every connection but plain syslog is over TLS, and the certificate is verified: against the
system's authorities, or against `ca_pem` alone.

Thread model: values.
"""

from __future__ import annotations

import re
import ssl
from datetime import datetime, time
from enum import StrEnum
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, TypeAdapter

from appliance.catalog.policy import Name
from appliance.catalog.schedule import Strict, ZoneName

_ADDRESS = re.compile(r"[^\s@<>,;:\\\"()\[\]]{1,64}@[A-Za-z0-9.-]{1,253}")
_SERVER = re.compile(r"[A-Za-z0-9_:-]{1,63}(\.[A-Za-z0-9_:-]{1,63})*\.?")
_CA_CHARS_MAX = 64 << 10


class Occasion(StrEnum):
    """What a channel is told at once, when a job's run ends."""

    FAILED = "failed"
    WARNING = "warning"
    RECOVERED = "recovered"  # a run went well after one that had failed
    SUCCESS = "success"


def _checked_address(text: str) -> str:
    if not _ADDRESS.fullmatch(text) or not text.isascii():
        raise ValueError(f"{text!r} is not an e-mail address")
    return text


def _checked_server(text: str) -> str:
    if len(text) > 253 or not _SERVER.fullmatch(text):
        raise ValueError(f"{text!r} is not a host name or address")
    return text


def _checked_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from None
    if parts.scheme != "https" or not _SERVER.fullmatch(parts.hostname or "") or port == 0:
        raise ValueError(f"{text!r}: a webhook is an https:// address")
    if parts.username or parts.password:
        raise ValueError("a webhook's URL holds no password; requests are signed with its secret")
    if parts.fragment or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"{text!r} is not a URL that can be sent to")
    return text


def _checked_ca(text: str) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError, TypeError) as error:  # TypeError: not ASCII
        raise ValueError(f"ca_pem holds no certificate in PEM: {error}") from None
    return text


def _checked_time(text: str) -> str:
    try:
        return f"{time.fromisoformat(text):%H:%M}"
    except ValueError:
        raise ValueError(f"{text!r} is not a time of day such as 07:00") from None


Server = Annotated[str, AfterValidator(_checked_server)]
MailAddress = Annotated[str, AfterValidator(_checked_address)]
CaPem = Annotated[str, Field(max_length=_CA_CHARS_MAX), AfterValidator(_checked_ca)]
_Port = Annotated[int, Field(ge=1, le=65535)]


class _Base(Strict):
    name: Name
    occasions: tuple[Occasion, ...] = Field(
        default=(Occasion.FAILED, Occasion.WARNING, Occasion.RECOVERED), max_length=len(Occasion)
    )
    digest_at: Annotated[str, AfterValidator(_checked_time)] | None = None  # none: no digest
    time_zone: ZoneName = "UTC"  # of digest_at
    ca_pem: CaPem | None = None  # none: the system's authorities


class MailSecurity(StrEnum):
    STARTTLS = "starttls"
    TLS = "tls"  # from the first byte, as on port 465


class EmailChannel(_Base):
    kind: Literal["email"] = "email"
    server: Server
    port: _Port = 587
    security: MailSecurity = MailSecurity.STARTTLS
    sender: MailAddress
    recipients: Annotated[tuple[MailAddress, ...], Field(min_length=1, max_length=50)]
    user: Annotated[str, Field(min_length=1, max_length=256)] | None = None  # none: no login

    @property
    def place(self) -> str:
        """Where the secret goes; what it is sealed for."""
        return f"smtp {self.server} {self.port} {self.user or ''}"


class WebhookChannel(_Base):
    kind: Literal["webhook"] = "webhook"
    url: Annotated[str, Field(max_length=2048), AfterValidator(_checked_url)]

    @property
    def place(self) -> str:
        return f"webhook {self.url}"


class SyslogTransport(StrEnum):
    UDP = "udp"
    TCP = "tcp"
    TLS = "tls"


class SyslogChannel(_Base):
    kind: Literal["syslog"] = "syslog"
    server: Server
    port: _Port = 6514
    transport: SyslogTransport = SyslogTransport.TLS
    facility: int = Field(default=16, ge=0, le=23)  # local0 (RFC 5424, table 1)

    @property
    def place(self) -> str:
        return f"syslog {self.server} {self.port}"


Channel = Annotated[EmailChannel | WebhookChannel | SyslogChannel, Field(discriminator="kind")]
CHANNEL: TypeAdapter[Channel] = TypeAdapter(Channel)


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Message(Strict):
    """What is sent: a subject that says what happened, lines for people, facts for programs."""

    event: str = Field(max_length=64)  # "run", "digest", "test"
    severity: Severity
    subject: str = Field(max_length=300)
    lines: tuple[str, ...] = ()
    facts: dict[str, str | int | float | None] = Field(default_factory=dict)
    at: datetime
