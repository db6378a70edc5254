"""One notification as a syslog message (RFC 5424), by UDP (RFC 5426), TCP (RFC 6587, counted
octets) or TLS (RFC 5425).

UDP has no answer: a message is lost when nobody listens, and nothing can tell.
Thread model: blocks; any thread.
"""

from __future__ import annotations

import os
import socket

from appliance.catalog.channel import Message, Severity, SyslogChannel, SyslogTransport
from appliance.service.notify.tls import TIMEOUT_S, client_context, reached

_SEVERITIES = {Severity.ERROR: 3, Severity.WARNING: 4, Severity.INFO: 6}  # RFC 5424, table 2
_UDP_BYTES_MAX = 1180  # fits into what every IPv6 path carries, 1280 bytes (RFC 5426, section 3.2)
_MESSAGE_BYTES_MAX = 8192  # what receivers should take (RFC 5425, section 4.3.1)
_ENTERPRISE = "holdfast@32473"  # the number that RFC 5612 keeps for those without one


def send_syslog(channel: SyslogChannel, message: Message) -> None:
    """Raises NotifyError."""
    where = f"{channel.server} port {channel.port}"
    if channel.transport is SyslogTransport.UDP:
        with reached(where):
            _send_udp(channel, record(channel, message)[:_UDP_BYTES_MAX])
        return
    raw = record(channel, message)[:_MESSAGE_BYTES_MAX]
    framed = b"%d %s" % (len(raw), raw)
    with (
        reached(where),
        socket.create_connection((channel.server, channel.port), TIMEOUT_S) as plain,
    ):
        if channel.transport is SyslogTransport.TCP:
            plain.sendall(framed)
            return
        context = client_context(channel)
        with context.wrap_socket(plain, server_hostname=channel.server) as secured:
            secured.sendall(framed)
            secured.unwrap()  # closed in order, so that the receiver has it all


def _send_udp(channel: SyslogChannel, raw: bytes) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(
        channel.server, channel.port, type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind, protocol) as udp:
        udp.settimeout(TIMEOUT_S)
        udp.sendto(raw, address)


def record(channel: SyslogChannel, message: Message) -> bytes:
    """One line: priority, version, time, host, program, process, kind, facts, subject."""
    priority = channel.facility * 8 + _SEVERITIES[message.severity]
    host = "".join(c for c in socket.gethostname() if 33 <= ord(c) <= 126)[:255] or "-"
    facts = "".join(
        f' {name}="{_escaped(str(value))}"'
        for name, value in message.facts.items()
        if value is not None
    )
    head = (
        f"<{priority}>1 {message.at:%Y-%m-%dT%H:%M:%SZ} {host} holdfast {os.getpid()}"
        f" {message.event} [{_ENTERPRISE}{facts}]"
    )
    return f"{head} {message.subject}".encode()


def _escaped(value: str) -> str:
    """What must not stand bare in a parameter (section 6.3.3), nor break the line."""
    plain = "".join(c if c.isprintable() else " " for c in value)
    return plain.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")
