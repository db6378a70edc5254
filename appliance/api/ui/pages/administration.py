"""Pages of the appliance itself: hypervisors, accounts, audit log, one's own account."""

from __future__ import annotations

from typing import Any

from appliance.api.permissions import Permission
from appliance.api.routes import about, accounts, approvals, audit, hosts, job_file, login, tokens
from appliance.api.ui.page import Page, PageCall
from appliance.catalog.accounts import Role


def _hosts(page: PageCall) -> dict[str, Any]:
    return {
        "hosts": page.ask(hosts.list_hosts),
        "configure": page.may(Permission.CONFIGURE),
    }


def _accounts(page: PageCall) -> dict[str, Any]:
    return {
        "accounts": page.ask(accounts.list_accounts),
        "tokens": page.ask(tokens.list_tokens),
        "roles": [(str(role), str(role)) for role in reversed(Role)],
    }


def _approvals(page: PageCall) -> dict[str, Any]:
    query = approvals.ApprovalQuery()
    return {
        "guard": str(page.ask(approvals.show_guard).require),
        "approvals": page.ask(approvals.list_approvals, query=query),
    }


def _audit(page: PageCall) -> dict[str, Any]:
    query = audit.AuditPage(before=page.number("before") or None)
    return {
        "entries": page.ask(audit.list_audit, query=query),
        "broken": page.ask(audit.check_audit).first_broken,
        "page_size": query.limit,
    }


def _me(page: PageCall) -> dict[str, Any]:
    return {"account": page.ask(login.me), "own": page.call.caller.account is not None}


def _security(page: PageCall) -> dict[str, Any]:
    found = page.ask(about.check_security)
    return {
        "failed": [each for each in found if not each.passed],
        "passed": [each for each in found if each.passed],
    }


def _settings(page: PageCall) -> dict[str, Any]:
    return {
        "settings": page.ask(about.show_settings),
        "job_file": page.ask(job_file.export_job_file).text,
        "configure": page.may(Permission.CONFIGURE),
    }


PAGES = (
    Page(address="/security", template="security.html", permission=Permission.VIEW, show=_security),
    Page(address="/settings", template="settings.html", permission=Permission.VIEW, show=_settings),
    Page(address="/hosts", template="hosts.html", permission=Permission.VIEW, show=_hosts),
    Page(
        address="/accounts",
        template="accounts.html",
        permission=Permission.ADMINISTER,
        show=_accounts,
    ),
    Page(
        address="/approvals",
        template="approvals.html",
        permission=Permission.ADMINISTER,
        show=_approvals,
    ),
    Page(address="/audit", template="audit.html", permission=Permission.ADMINISTER, show=_audit),
    Page(address="/me", template="me.html", permission=Permission.VIEW, show=_me),
)
