"""Recoverability certificates: what one verification run proved, signed and chained. Pure.

A certificate is one line of canonical JSON (keys sorted, no spaces, ASCII, no fractions) of a body
and an Ed25519 signature (RFC 8032) over `_DOMAIN` and the body's canonical bytes. The body carries
a sequence number from 1 and the SHA-256 of the whole file before it, so that none can be left out
or exchanged. A change of the signing key is a certificate of its own, signed by the old key.

Only the canonical form is accepted: a file that says the same in other bytes is refused, so one
certificate has one hash. Reading needs nothing of the appliance's state. Bounded: `LIMIT_BYTES`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from appliance.base.errors import ApplianceError
from appliance.jobs.verification_plan import Place
from appliance.jobs.verification_stages import StageName, Verdict

CERTIFICATE_VERSION: Final = 1
LIMIT_BYTES = 4 << 20
_DOMAIN = b"holdfast recoverability certificate, version 1\n"
_INTEGER_MOST = (1 << 53) - 1  # what every reader of JSON takes without loss

HashHex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_KeyHex = HashHex
_SignatureHex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]
_Name = Annotated[str, StringConstraints(max_length=1024)]
_Count = Annotated[int, Field(ge=0, le=_INTEGER_MOST)]


class CertificateError(ApplianceError):
    """A certificate was refused; the message names it and what is wrong. It proves nothing."""

    code = "certificate.refused"


class CertificateTamperedError(CertificateError):
    """The file is not what was signed: damaged or changed. Get it anew from where it was made."""

    code = "certificate.tampered"


class CertificateChainError(CertificateError):
    """Each certificate may be genuine, but they are not the chain in which they were issued."""

    code = "certificate.chain-broken"


class CertificateKeyError(CertificateError):
    """Signed, but by no key that you trust: the one you gave is not in this chain."""

    code = "certificate.wrong-key"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Issuer(_Strict):
    appliance_id: _Name
    version: _Name  # of Holdfast
    public_key: _KeyHex


class DiskProof(_Strict):
    number: _Count
    size_bytes: _Count
    root_hex: HashHex  # the digest of the disk's tree, under the repository's key


class StageProof(_Strict):
    stage: StageName
    verdict: Verdict
    milliseconds: _Count
    reason: _Name | None  # its code; None: passed


class Evidence(_Strict):
    """A file that was kept beside the certificate, such as a screenshot."""

    name: _Name
    size_bytes: _Count
    sha256: HashHex


class GuestProof(_Strict):
    vm: _Name
    point_id: _Name
    created_at: AwareDatetime  # of the point
    consistency: _Name
    repository_id: _Name
    disks: Annotated[tuple[DiskProof, ...], Field(max_length=256)]
    stages: Annotated[tuple[StageProof, ...], Field(max_length=len(StageName))]
    evidence: Annotated[tuple[Evidence, ...], Field(max_length=16)]
    verdict: Verdict
    recovery_milliseconds: _Count | None  # from the request until it was ready
    rto_milliseconds: _Count | None
    point_age_seconds: _Count  # when the run began
    rpo_seconds: _Count | None
    place: Place | None = Field(default=None, exclude_if=lambda place: place is None)
    """Where it was booted; absent: it was not, or the certificate is older than this field."""


class _Body(_Strict):
    version: Literal[1]
    sequence: Annotated[int, Field(ge=1, le=_INTEGER_MOST)]
    previous_sha256: HashHex | None  # None only for the first
    issued_at: AwareDatetime
    issuer: Issuer


class VerificationBody(_Body):
    kind: Literal["verification"]
    run_id: _Name
    started_at: AwareDatetime
    ended_at: AwareDatetime
    guests: Annotated[tuple[GuestProof, ...], Field(min_length=1, max_length=1000)]
    verdict: Verdict


class RotationBody(_Body):
    """Signed by the old key; everything behind it is signed by the new one."""

    kind: Literal["key-rotation"]
    new_public_key: _KeyHex


Body = Annotated[VerificationBody | RotationBody, Field(discriminator="kind")]


class _Signed(_Strict):
    body: Body
    signature: _SignatureHex


_SIGNED: TypeAdapter[_Signed] = TypeAdapter(_Signed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One whose signature by its own key has been checked; whose key that is, is not."""

    body: VerificationBody | RotationBody
    sha256: str  # of its file

    @property
    def public_key(self) -> bytes:
        return bytes.fromhex(self.body.issuer.public_key)


def seal(body: VerificationBody | RotationBody, sign: Callable[[bytes], bytes]) -> bytes:
    """Return the file of a certificate; `sign` is Ed25519 with the key that the body names."""
    document = body.model_dump(mode="json")
    signature = sign(_DOMAIN + _canonical(document))
    return _canonical({"body": document, "signature": signature.hex()}) + b"\n"


def read_certificate(name: str, raw: bytes) -> Certificate:
    """Raises CertificateTamperedError, naming the file and what is wrong with it."""
    if len(raw) > LIMIT_BYTES:
        raise CertificateTamperedError(f"{name}: larger than {LIMIT_BYTES} bytes")
    try:
        signed = _SIGNED.validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise CertificateTamperedError(
            f"{name}: not a certificate: {place}: {first['msg']}"
        ) from None
    document = signed.body.model_dump(mode="json")
    if _canonical({"body": document, "signature": signed.signature}) + b"\n" != raw:
        raise CertificateTamperedError(f"{name}: not in the form in which it was signed")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signed.body.issuer.public_key))
    try:
        key.verify(bytes.fromhex(signed.signature), _DOMAIN + _canonical(document))
    except InvalidSignature:
        raise CertificateTamperedError(f"{name}: the signature does not fit the content") from None
    return Certificate(body=signed.body, sha256=hash_of(raw))


def hash_of(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")
