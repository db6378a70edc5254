"""Pages of proofs: what the newest verifications found, the certificates, and one in full."""

from __future__ import annotations

from typing import Any

from appliance.api.errors import NotFoundError
from appliance.api.permissions import Permission
from appliance.api.routes import proofs, verifications
from appliance.api.ui.page import Page, PageCall

_PAGE = 50


def _reports(page: PageCall) -> dict[str, Any]:
    query = verifications.CertificateQuery(before=page.number("before") or None, limit=_PAGE)
    found = page.ask(verifications.list_certificates, query=query)
    return {
        "chain": page.ask(proofs.check_chain),
        "certificates": found,
        "older": found[-1].sequence if len(found) == _PAGE else None,
        "latest": page.ask(proofs.list_latest_proofs, query=proofs.LatestQuery(limit=500)),
    }


def _report(page: PageCall) -> dict[str, Any]:
    found = page.ask(verifications.show_certificate)
    if found.failure is not None:
        raise NotFoundError(f"certificate {found.sequence} is not genuine: {found.failure}")
    return {"certificate": found, "guests": found.body.get("guests", [])}


PAGES = (
    Page(address="/reports", template="reports.html", permission=Permission.VIEW, show=_reports),
    Page(
        address="/reports/{sequence}",
        template="report.html",
        permission=Permission.VIEW,
        show=_report,
    ),
)
