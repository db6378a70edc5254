"""HTTP to one host: its certificate is the pinned one before a credential is sent, answers bounded.

Data path: under pywinrm's `requests` session. The fingerprint is compared after the TLS handshake
and before the first request of every connection; who has no pin is asked for the system's CAs.

Invariants: no proxy, no .netrc, no redirect: nothing of the environment decides where a password
goes. Thread model: one adapter per `winrm_session`.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
import string
from collections.abc import Callable, Iterator
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter

from hyperv.errors import CertificateError, ProtocolError, UnreachableError

CONNECT_TIMEOUT_S = 15.0
ANSWER_LIMIT_BYTES = 16 << 20  # of one HTTP answer; WS-Man envelopes are at most 500 KiB
_SHA256_DIGITS = 64
_PATHS = ssl.get_default_verify_paths()
AUTHORITIES: Final = _PATHS.cafile or _PATHS.capath or "/etc/ssl/certs"
"""The system's certificate authorities, a file or a folder."""


class PinnedAdapter(HTTPAdapter):
    """`pin`: SHA-256 in 64 hex digits; None: nothing is pinned (plain HTTP, or the CAs decide)."""

    def __init__(self, pin: str | None) -> None:
        self._pin = pin
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # of urllib3
        if self._pin is not None:
            kwargs["assert_fingerprint"] = self._pin
        super().init_poolmanager(*args, **kwargs)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        response = super().send(request, stream, timeout, verify, cert, proxies={})
        response.raw.stream = _bounded(response.raw.stream)  # what `Response.content` reads with
        return response


def _bounded(stream: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
    def read(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        read_bytes = 0
        for piece in stream(*args, **kwargs):
            read_bytes += len(piece)
            if read_bytes > ANSWER_LIMIT_BYTES:
                raise ProtocolError(f"an answer of more than {ANSWER_LIMIT_BYTES} bytes")
            yield piece

    return read


def prepare(session: requests.Session, pin: str | None) -> None:
    """Make a session of pywinrm's go through a `PinnedAdapter`."""
    session.trust_env = False
    session.proxies = {}
    session.max_redirects = 0
    session.mount("https://", PinnedAdapter(pin))
    session.mount("http://", PinnedAdapter(None))
    # self-signed is the rule: then the pin is compared instead
    session.verify = AUTHORITIES if pin is None else False


def shown_fingerprint(address: str, port: int, timeout_s: float = CONNECT_TIMEOUT_S) -> str:
    """SHA-256 of the certificate that the host shows now, as `AA:BB:…`; sends no request.

    Raises: UnreachableError, ProtocolError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, port), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=address) as tls,
        ):
            certificate = tls.getpeercert(binary_form=True)
    except ssl.SSLError as error:
        raise ProtocolError(f"{address}:{port} speaks no TLS ({error.reason})") from error
    except OSError as error:
        raise UnreachableError(f"{address}:{port}: {error}") from error
    if not certificate:
        raise ProtocolError(f"{address}:{port} showed no certificate")
    return spelled(hashlib.sha256(certificate).hexdigest())


def check_fingerprint(address: str, port: int, accepted: str) -> str:
    """Return the host's fingerprint if it is the accepted one.

    Raises: CertificateError: it is another one, or `accepted` is none; as `shown_fingerprint`.
    """
    found = shown_fingerprint(address, port)
    if not hmac.compare_digest(digits(found), digits(accepted)):
        raise CertificateError(
            f"the certificate of {address}:{port} is {found}, accepted is {accepted}",
            expected=accepted,
            found=found,
        )
    return found


def spelled(hex_digits: str) -> str:
    return ":".join(hex_digits[at : at + 2] for at in range(0, len(hex_digits), 2)).upper()


def digits(fingerprint: str) -> str:
    """Return 64 lower-case hex digits. Raises CertificateError: not a SHA-256."""
    plain = fingerprint.rpartition("=")[2].replace(":", "").replace(" ", "").strip().lower()
    if len(plain) != _SHA256_DIGITS or not set(plain) <= set(string.hexdigits):
        raise CertificateError(f"{fingerprint!r} is not a SHA-256 fingerprint")
    return plain
