"""HTTPS to a vCenter or ESXi host whose certificate is known beforehand: the pin.

Invariants: with a pin, the peer's certificate is compared before a byte of a request leaves, on
every connection including those that http.client re-opens by itself; without one, only a
certificate that the system's CAs vouch for (and for this name) will do. There is no third way. No
proxy is used, whatever the environment says. A connection belongs to one thread at a time.
Source: design notes section 0; RFC 8446.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ssl
import string
from typing import Any

from vmware.errors import CertificateError, ProtocolError
from vmware.faults import FOREIGN_ERRORS, translate

_HASH_BY_DIGITS = {40: hashlib.sha1, 64: hashlib.sha256}


class PinnedConnection(http.client.HTTPSConnection):
    """`connect` verifies; `fingerprint` None asks the system's CAs instead.

    Raises:
        CertificateError: from every method that connects; the socket is closed by then.
    """

    def __init__(
        self,
        host: str,
        port: int | None = None,
        *,
        fingerprint: str | None,
        timeout: float = 60.0,
    ) -> None:
        self._pin = None if fingerprint is None else _digits(fingerprint)
        context = ssl.create_default_context() if self._pin is None else _unverified_context()
        super().__init__(host, port, timeout=timeout, context=context)

    def connect(self) -> None:
        super().connect()
        if self._pin is None:
            return
        certificate = _peer_certificate(self.sock)
        found = _HASH_BY_DIGITS[len(self._pin)](certificate).hexdigest()
        if not hmac.compare_digest(found, self._pin):
            self.close()
            expected, found = spelled(self._pin), spelled(found)
            raise CertificateError(
                f"the certificate of {self.host}:{self.port} is {found}, pinned is {expected}",
                expected=expected,
                found=found,
            )


def connect(
    address: str, port: int, fingerprint_sha256: str | None, timeout_s: float
) -> http.client.HTTPSConnection:
    """An open, verified connection; the caller closes it.

    Args:
        fingerprint_sha256: SHA-256 or SHA-1 (tickets and leases bring those) of the certificate,
            hex digits with or without colons; None: the system's CAs decide.
        timeout_s: of every single wait for the network, not of the whole.

    Raises:
        CertificateError: Another certificate; nothing was sent.
        UnreachableError, ProtocolError: No connection, no TLS.
    """
    connection = PinnedConnection(address, port, fingerprint=fingerprint_sha256, timeout=timeout_s)
    try:
        connection.connect()
    except FOREIGN_ERRORS as error:
        connection.close()
        raise translate(error, f"connect to {address}:{port}") from error
    return connection


def fetch_fingerprint(address: str, port: int = 443, timeout_s: float = 15.0) -> str:
    """SHA-256 of the certificate the server shows now, as `AA:BB:…`; sends no request.

    Raises:
        UnreachableError, ProtocolError: No connection, no TLS.
    """
    context = _unverified_context()
    connection = http.client.HTTPSConnection(address, port, timeout=timeout_s, context=context)
    try:
        connection.connect()
        return spelled(hashlib.sha256(_peer_certificate(connection.sock)).hexdigest())
    except FOREIGN_ERRORS as error:
        raise translate(error, f"connect to {address}:{port}") from error
    finally:
        connection.close()


def spelled(digits: str) -> str:
    """`aabb…` as `AA:BB:…`, the way the product shows and stores fingerprints."""
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2)).upper()


def _unverified_context() -> ssl.SSLContext:
    """For pinned connections: self-signed is the rule, so the pin is compared instead.

    Not made from the default one, which loads the system's CAs: 20 ms for each connection.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _digits(fingerprint: str) -> str:
    digits = fingerprint.strip().replace(":", "").replace(" ", "").lower()
    if len(digits) not in _HASH_BY_DIGITS or not set(digits) <= set(string.hexdigits):
        raise CertificateError(f"{fingerprint!r} is not a SHA-256 or SHA-1 fingerprint")
    return digits


def _peer_certificate(sock: Any) -> bytes:
    certificate = sock.getpeercert(binary_form=True)
    if not isinstance(certificate, bytes):
        raise ProtocolError("the server showed no certificate")
    return certificate
