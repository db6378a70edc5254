"""TLS with x509 certificates, under the file names that qemu, libnbd and nbdkit use.

A directory holds `server-cert.pem`, `server-key.pem` and, to verify clients, `ca-cert.pem`.
Python's ssl offers no pre-shared keys before 3.13, so there are none here. TLS 1.2 is the least.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from nbd_server.errors import TlsConfigError
from nbd_server.handshake import TlsMode


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPolicy:
    """REQUIRED refuses everything in clear text; OPTIONAL leaves the choice to the client."""

    context: ssl.SSLContext
    mode: TlsMode = TlsMode.REQUIRED

    def __post_init__(self) -> None:
        if self.mode is TlsMode.OFF:
            raise ValueError("a policy for no TLS is no policy at all: leave it out")


def server_context(directory: Path, *, verify_clients: bool) -> ssl.SSLContext:
    """`verify_clients`: only clients with a certificate signed by `ca-cert.pem` get in.

    Raises:
        TlsConfigError: a file is missing or unusable.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate, key = directory / "server-cert.pem", directory / "server-key.pem"
    authority = directory / "ca-cert.pem"
    for path in (certificate, key, authority)[: 3 if verify_clients else 2]:
        if not path.is_file():
            raise TlsConfigError(f"{path} is missing")
    try:
        context.load_cert_chain(certificate, key)
        if verify_clients:
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise TlsConfigError(f"certificates in {directory}: {error}") from error
    return context
