"""One HTTPS request with the standard client, whoever's certificate it is."""

from __future__ import annotations

import http.client
import ssl
from urllib.parse import urlsplit


def connect(url: str) -> tuple[http.client.HTTPSConnection, str]:
    """A connection to the URL's server, whose certificate nobody checks, and the target."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    return http.client.HTTPSConnection(parts.netloc, context=context, timeout=30), target


def fetch(
    url: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> tuple[int, bytes]:
    """Status and body of one request."""
    connection, target = connect(url)
    try:
        connection.request(method, target, body=body, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
