"""The certificate of the web interface: self-signed at first, replaceable by putting files there.

`HOME/tls/cert.pem` and `key.pem`. A new appliance makes its own, for its host name and addresses;
the console shows the fingerprint, which is what to compare in the browser.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
import ssl
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.base.atomic import replace_file
from appliance.base.clock import Clock
from appliance.base.errors import StorageError, UsageError

_LIFETIME = datetime.timedelta(days=825)  # the longest that browsers take


def certificate_paths(home: Path) -> tuple[Path, Path]:
    folder = home / "tls"
    return folder / "cert.pem", folder / "key.pem"


def ensure_certificate(home: Path, clock: Clock, names: list[str]) -> None:
    """Make certificate and key unless both are there. Raises StorageError."""
    cert_path, key_path = certificate_paths(home)
    if cert_path.exists() and key_path.exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Holdfast")])
    now = clock.now()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general(each) for each in dict.fromkeys(names)]),
            critical=False,
        )
    )
    certificate = builder.sign(key, SHA256())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        key_path.parent.mkdir(mode=0o700, exist_ok=True)
        replace_file(key_path, pem)
        replace_file(cert_path, certificate.public_bytes(Encoding.PEM), mode=0o644)
    except OSError as error:
        raise StorageError(f"{key_path.parent}: {os.strerror(error.errno or 0)}") from error


def own_names() -> list[str]:
    return [socket.gethostname() or "holdfast", "localhost", "127.0.0.1", "::1"]


def server_context(home: Path) -> ssl.SSLContext:
    """TLS 1.2 and up. Raises UsageError: certificate and key cannot be used."""
    cert_path, key_path = certificate_paths(home)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert_path, key_path)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"{cert_path} and {key_path} cannot be used: {error}") from error
    return context


def fingerprint(home: Path) -> str:
    """SHA-256 of the certificate, "AA:BB:…"."""
    cert_path, _ = certificate_paths(home)
    certificate = x509.load_pem_x509_certificate(cert_path.read_bytes())
    digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
