"""What verifications measured, and the certificates of their runs."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, Field

from appliance.api.errors import NotFoundError
from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.jobs.certificate import CertificateError, VerificationBody, hash_of, read_certificate
from appliance.jobs.certificate_store import read_bounded

table = RouteTable("verifications")

_Vm = Field(min_length=1, max_length=255)


class VerificationShown(Shown):
    run_id: str
    vm: str
    point_id: str
    started_at: AwareDatetime
    place: str | None = Field(description="sandbox or hypervisor; null: it was not booted")
    verdict: str = Field(description="passed, failed or skipped")
    recovery_s: float | None = Field(description="from the request until it was ready")
    rto_s: float | None
    point_age_s: float
    rpo_s: float | None
    reasons: tuple[str, ...] = Field(description="codes")
    certificate: int | None


class CertificateShown(Shown):
    sequence: int
    kind: str = Field(description="verification, key-rotation, or refused: it is not as signed")
    issued_at: AwareDatetime | None
    run_id: str | None
    verdict: str | None
    vms: tuple[str, ...]
    failure: str | None = Field(description="why it is refused")
    sha256: str


class CertificateFile(CertificateShown):
    """`file` byte for byte: what `holdfast certificate verify` takes."""

    file: str
    body: dict[str, Any] = Field(description="what it says; empty when it is refused")


class VerificationQuery(Body):
    vm: str = _Vm
    limit: int = Field(default=30, ge=1, le=1000)


class CertificateQuery(Body):
    before: int | None = Field(default=None, ge=1, le=10**12)
    limit: int = Field(default=100, ge=1, le=1000)


@table.add(
    "GET",
    "/verifications",
    Permission.VIEW,
    query=VerificationQuery,
    response=list[VerificationShown],
)
def list_verifications(call: Call) -> list[VerificationShown]:
    """The newest verifications of a VM, oldest first: its trend."""
    query = call.query_as(VerificationQuery)
    found = call.services.catalog.verifications.trend(query.vm, limit=query.limit)
    return [VerificationShown.model_validate(record) for record in found]


@table.add(
    "GET",
    "/certificates",
    Permission.VIEW,
    query=CertificateQuery,
    response=list[CertificateShown],
)
def list_certificates(call: Call) -> list[CertificateShown]:
    """Certificates of verification runs, newest first; `before` goes on after a page."""
    query = call.query_as(CertificateQuery)
    store = call.services.jobs.certificates
    numbers = sorted(store.sequences(), reverse=True)
    wanted = [each for each in numbers if query.before is None or each < query.before]
    return [_shown(number, read_bounded(store.path(number))) for number in wanted[: query.limit]]


@table.add("GET", "/certificates/{sequence}", Permission.VIEW, response=CertificateFile)
def show_certificate(call: Call) -> CertificateFile:
    """One certificate, as it was signed."""
    store, text = call.services.jobs.certificates, call.path["sequence"]
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 17 else 0
    if number not in store.sequences():
        raise NotFoundError(f"there is no certificate {text[:20]!r}")
    raw = read_bounded(store.path(number))
    shown = _shown(number, raw)
    body: dict[str, Any] = {}
    if shown.failure is None:
        body = read_certificate(f"certificate {number}", raw).body.model_dump(mode="json")
    return CertificateFile(**shown.model_dump(), file=raw.decode("utf-8", "replace"), body=body)


def _shown(number: int, raw: bytes) -> CertificateShown:
    try:
        body = read_certificate(f"certificate {number}", raw).body
    except CertificateError as error:
        return CertificateShown(
            sequence=number,
            kind="refused",
            issued_at=None,
            run_id=None,
            verdict=None,
            vms=(),
            failure=f"[{error.code}] {error}",
            sha256=hash_of(raw),
        )
    proof = body if isinstance(body, VerificationBody) else None
    return CertificateShown(
        sequence=number,
        kind=body.kind,
        issued_at=body.issued_at,
        run_id=proof.run_id if proof else None,
        verdict=proof.verdict.value if proof else None,
        vms=tuple(guest.vm for guest in proof.guests) if proof else (),
        failure=None,
        sha256=hash_of(raw),
    )
