"""Pages of recoveries: the sessions that run from their backup."""

from __future__ import annotations

from typing import Any

from appliance.api.permissions import Permission
from appliance.api.routes import recoveries
from appliance.api.ui.page import Page, PageCall


def _recoveries(page: PageCall) -> dict[str, Any]:
    return {"sessions": page.ask(recoveries.list_recoveries)}


PAGES = (
    Page(
        address="/recoveries",
        template="recoveries.html",
        permission=Permission.VIEW,
        show=_recoveries,
        live=("session",),
    ),
)
