"""Certificates for TLS tests, made by openssl, under the names that qemu and libnbd use."""

from __future__ import annotations

from pathlib import Path

from tests.support.programs import run

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def make_authority(directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    run(
        *("openssl", "req", "-x509", *_KEY, "-days", "2", "-subj", f"/CN={name}"),
        *("-keyout", directory / "ca-key.pem", "-out", directory / "ca-cert.pem"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )


def make_certificate(authority: Path, directory: Path, kind: str) -> None:
    """Put `{kind}-cert.pem`, `{kind}-key.pem` and the authority's certificate into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    request, extensions = directory / f"{kind}.csr", directory / f"{kind}.ext"
    extensions.write_text(
        "subjectAltName=DNS:localhost,IP:127.0.0.1\n"
        "keyUsage=critical,digitalSignature,keyEncipherment\n"
        f"extendedKeyUsage={kind}Auth\nbasicConstraints=critical,CA:false\n"
    )
    run(
        *("openssl", "req", *_KEY, "-subj", f"/CN=test {kind}"),
        *("-keyout", directory / f"{kind}-key.pem", "-out", request),
    )
    run(
        *("openssl", "x509", "-req", "-days", "2", "-in", request),
        *("-CA", authority / "ca-cert.pem", "-CAkey", authority / "ca-key.pem"),
        *("-CAcreateserial", "-extfile", extensions, "-out", directory / f"{kind}-cert.pem"),
    )
    (directory / "ca-cert.pem").write_bytes((authority / "ca-cert.pem").read_bytes())


def make_self_signed(directory: Path) -> tuple[Path, Path]:
    """Certificate and key as vSphere servers have them; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    certificate, key = directory / "cert.pem", directory / "key.pem"
    run(
        *("openssl", "req", "-x509", *_KEY, "-days", "2", "-subj", "/CN=localhost"),
        *("-keyout", key, "-out", certificate),
    )
    return certificate, key
