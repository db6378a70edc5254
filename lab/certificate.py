"""Self-signed server certificates, as a fresh vCenter and every ESXi host make for themselves.

Written once into a folder; RSA as the products do. Clients pin the fingerprint.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

_YEARS = datetime.timedelta(days=3650)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCertificate:
    """Key and certificate in one PEM file of mode 0600."""

    pem_path: Path
    der: bytes

    @property
    def sha1(self) -> str:
        """`AA:BB:…`, the form of `sslThumbprint`."""
        return _colons(hashlib.sha1(self.der, usedforsecurity=False).hexdigest())

    @property
    def sha256(self) -> str:
        return _colons(hashlib.sha256(self.der).hexdigest())

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.pem_path)
        return context


def make_certificate(folder: Path, name: str, address: str = "127.0.0.1") -> ServerCertificate:
    """Write `folder/name.pem` for a server at `address`."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(address))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _YEARS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return ServerCertificate(
        pem_path=path, der=certificate.public_bytes(serialization.Encoding.DER)
    )


def _colons(digest_hex: str) -> str:
    return ":".join(digest_hex[i : i + 2] for i in range(0, len(digest_hex), 2)).upper()
