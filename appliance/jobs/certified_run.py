"""What a verification run found, signed, recorded and reported.

What a run proved is certified even when it failed: that is what was found. A run whose certificate
cannot be issued keeps its verdict and gets a warning: the certificate is about the run and no part
of it.

Thread model: any thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.base.atomic import make_folders, replace_file
from appliance.base.errors import ApplianceError, StorageError
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.catalog.catalog import Catalog
from appliance.catalog.verifications import VerificationRecord
from appliance.jobs.certificate import CertificateError, VerificationBody, read_certificate
from appliance.jobs.certificate_store import CertificateStore, Issued, read_bounded
from appliance.jobs.verification_outcome import VerificationOutcome
from appliance.jobs.verification_proof import proof_of, records_in, records_of
from appliance.jobs.verification_report import report_html, report_json

log = EventLog(__name__)

_TREND_MOST = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedRun:
    outcome: VerificationOutcome
    certificate: Issued | None
    trends: Mapping[str, Sequence[VerificationRecord]]  # by VM, oldest first, this run included
    reasons: tuple[Reason, ...]  # of the outcome, and why there is no certificate


def certify(
    home: Path, catalog: Catalog, repository_id: bytes, outcome: VerificationOutcome
) -> CertifiedRun:
    """Issue the next certificate of the chain and write a row for each VM.

    Never raises for what cannot be written: the run has a reason then.
    """
    reasons = list(outcome.reasons)
    certificate: Issued | None = None
    trends: dict[str, Sequence[VerificationRecord]] = {}
    try:
        store = CertificateStore(home, clock=catalog.clock)
        certificate = store.issue(proof_of(outcome, repository_id))
        records = records_of(outcome, certificate.sequence)
        catalog.verifications.add(records)
        trends = {
            record.vm: catalog.verifications.trend(record.vm, limit=_TREND_MOST)
            for record in records
        }
    except ApplianceError as error:
        reasons.append(not_recorded(error))
    return CertifiedRun(
        outcome=outcome, certificate=certificate, trends=trends, reasons=tuple(reasons)
    )


def remember_proofs(home: Path, catalog: Catalog) -> int:
    """Fill an empty catalog from the certificates; return how many told something.

    One that cannot be read is logged and left out. Raises StorageError.
    """
    if not catalog.verifications.empty():
        return 0
    count = 0
    for path in CertificateStore(home, clock=catalog.clock).paths():
        try:
            body = read_certificate(path.name, read_bounded(path)).body
        except CertificateError as error:
            log.warning("certificate not taken into the catalog", error=error)
            continue
        if isinstance(body, VerificationBody):
            catalog.verifications.add(records_in(body))
            count += 1
    return count


def not_recorded(error: ApplianceError) -> Reason:
    return Reason.relayed(
        error.code,
        f"the run could not be certified or recorded: {error}",
        " ".join((type(error).__doc__ or "").split()),
    )


def write_report(run: CertifiedRun, folder: Path) -> Path:
    """Put `report.html`, `report.json` and a copy of the certificate there; return the page.

    Each file appears whole. Raises StorageError.
    """
    parts = (run.outcome, run.certificate, run.trends)
    document = json.dumps(report_json(*parts), indent=1, default=str)
    try:
        make_folders(folder)
        if run.certificate is not None:
            certificate = read_bounded(run.certificate.path)
            replace_file(folder / run.certificate.path.name, certificate, mode=0o644)
        replace_file(folder / "report.json", document.encode(), mode=0o644)
        replace_file(folder / "report.html", report_html(*parts).encode(), mode=0o644)
    except OSError as error:
        raise StorageError(f"{folder}: {os.strerror(error.errno or 0)}") from error
    return folder / "report.html"
