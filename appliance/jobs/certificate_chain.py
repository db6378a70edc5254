"""Certificates against each other and against a key: a chain holds as a whole or not at all. Pure.

Order is that of the sequence numbers. Each names the SHA-256 of the one before, so a trusted
certificate vouches for all before it; a key's successor is named by a certificate that the key
itself signed, so it vouches for all behind it. Hence one certificate of a trusted key, anywhere, is
enough. Being named as a successor is not: anybody can hand a chain of his own over to your key.
What cannot be seen from certificates alone: that newer ones once existed and were taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from appliance.jobs.certificate import (
    Certificate,
    CertificateChainError,
    CertificateError,
    CertificateKeyError,
    RotationBody,
    read_certificate,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    certificates: tuple[Certificate, ...]  # in order, contiguous
    keys: tuple[bytes, ...]  # that signed, oldest first, each once


def verify_chain(files: Mapping[str, bytes], trusted_key: bytes | None) -> Chain:
    """Check signatures, links and keys of the given files; `trusted_key` None: any key will do.

    Raises:
        CertificateTamperedError: a file is not what was signed.
        CertificateChainError: one is missing, repeated, or follows another than is given.
        CertificateKeyError: `trusted_key` signed none of them.
    """
    named = sorted(
        ((name, read_certificate(name, raw)) for name, raw in files.items()),
        key=lambda pair: pair[1].body.sequence,
    )
    if not named:
        raise CertificateError("no certificate was given")
    _check_beginning(*named[0])
    for before, behind in pairwise(named):
        _check_link(before, behind)
    certificates = tuple(certificate for _, certificate in named)
    keys = tuple(dict.fromkeys(certificate.public_key for certificate in certificates))
    if trusted_key is not None and trusted_key not in keys:
        why = "not signed by the key that you gave"
        if trusted_key == _successor(certificates[-1]):
            why += ", only handed over to it, which anybody can do: give the key before it"
        raise CertificateKeyError(f"{_names(named)}: {why}, or a certificate that it has signed")
    return Chain(certificates=certificates, keys=keys)


def _check_beginning(name: str, certificate: Certificate) -> None:
    body = certificate.body
    if (body.sequence == 1) != (body.previous_sha256 is None):
        raise CertificateChainError(
            f"{name}: number {body.sequence} "
            + ("names one before it" if body.previous_sha256 else "names none before it")
        )


def _check_link(before: tuple[str, Certificate], behind: tuple[str, Certificate]) -> None:
    (before_name, earlier), (name, later) = before, behind
    number = later.body.sequence
    if number == earlier.body.sequence:
        raise CertificateChainError(f"{before_name} and {name} are both number {number}")
    if number != earlier.body.sequence + 1:
        missing = f"{earlier.body.sequence + 1} to {number - 1}"
        raise CertificateChainError(f"{name}: number {number}, but {missing} are missing")
    if later.body.previous_sha256 != earlier.sha256:
        raise CertificateChainError(f"{name}: follows another certificate than {before_name}")
    if later.public_key != (_successor(earlier) or earlier.public_key):
        raise CertificateChainError(
            f"{name}: signed by another key than {before_name} hands over to"
        )


def _successor(certificate: Certificate) -> bytes | None:
    body = certificate.body
    return bytes.fromhex(body.new_public_key) if isinstance(body, RotationBody) else None


def _names(named: Sequence[tuple[str, Certificate]]) -> str:
    return named[0][0] if len(named) == 1 else f"{named[0][0]} to {named[-1][0]}"
