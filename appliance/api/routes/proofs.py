"""Proofs that recovery points can be recovered: chain, evidence, reports, the newest of each VM."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, Raw, RouteTable, Shown
from appliance.base.errors import UsageError
from appliance.jobs.certificate import CertificateError

table = RouteTable("proofs")

_LATEST_MOST = 10_000
_REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
)


class ChainShown(Shown):
    intact: bool
    count: int
    keys: tuple[str, ...] = Field(description="Public keys that signed, oldest first")
    failure: str | None


class LatestProof(Shown):
    """The newest verification of a VM in one place."""

    vm: str
    point_id: str
    started_at: AwareDatetime
    verdict: str
    place: str | None
    recovery_s: float | None
    rto_s: float | None
    point_age_s: float
    rpo_s: float | None
    reasons: tuple[str, ...]
    certificate: int | None


class LatestQuery(Body):
    limit: int = Field(default=1000, ge=1, le=_LATEST_MOST)


@table.add("GET", "/certificate-chain", Permission.VIEW, response=ChainShown)
def check_chain(call: Call) -> ChainShown:
    """Whether all certificates are genuine and none is missing between them."""
    try:
        chain = call.services.proofs.check()
    except CertificateError as error:
        return ChainShown(intact=False, count=0, keys=(), failure=f"[{error.code}] {error}")
    return ChainShown(
        intact=True,
        count=len(chain.certificates) if chain else 0,
        keys=tuple(key.hex() for key in chain.keys) if chain else (),
        failure=None,
    )


@table.add("GET", "/proofs", Permission.VIEW, query=LatestQuery, response=list[LatestProof])
def list_latest_proofs(call: Call) -> list[LatestProof]:
    """What the newest verification of each VM found, by the VM's name."""
    limit = call.query_as(LatestQuery).limit
    found = call.services.catalog.verifications.newest(limit=limit)
    return [LatestProof.model_validate(each) for each in found]


@table.add(
    "GET", "/certificates/{sequence}/file", Permission.VIEW, media="application/octet-stream"
)
def download_certificate(call: Call) -> Raw:
    """The certificate's file as it was issued, for `holdfast certificate verify`."""
    number = _number(call)
    name = f"certificate-{number:06d}.json"
    return Raw(body=call.services.proofs.raw(number), media="application/octet-stream", name=name)


@table.add("GET", "/certificates/{sequence}/report", Permission.VIEW, media="text/html")
def show_report(call: Call) -> Raw:
    """The report that the run left: one page that needs nothing else."""
    body = call.services.proofs.report(_number(call))
    return Raw(body=body, media="text/html", policy=_REPORT_POLICY)


@table.add(
    "GET",
    "/certificates/{sequence}/evidence/{sha256}",
    Permission.VIEW,
    media="application/octet-stream",
)
def show_evidence(call: Call) -> Raw:
    """A file that a certificate names by its hash: a screenshot, a serial log."""
    name, body = call.services.proofs.evidence(_number(call), call.path["sha256"])
    if name.endswith(".png") and body.startswith(b"\x89PNG\r\n\x1a\n"):
        return Raw(body=body, media="image/png")
    return Raw(body=body, media="text/plain", policy="default-src 'none'; sandbox")


def _number(call: Call) -> int:
    text = call.path["sequence"]
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 16):
        raise UsageError(f"{text[:40]!r} is no number of a certificate")
    return int(text)
