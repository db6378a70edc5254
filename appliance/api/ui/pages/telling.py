"""Who is told of what: notification channels, and what became of their messages."""

from __future__ import annotations

from typing import Any

from appliance.api.permissions import Permission
from appliance.api.routes import about, notifications
from appliance.api.ui.page import Page, PageCall

_OCCASIONS = (
    ("failed", "fails"),
    ("warning", "ends with warnings"),
    ("recovered", "works again after a failure"),
    ("success", "ends well"),
)


def _notifications(page: PageCall) -> dict[str, Any]:
    query = notifications.DeliveryQuery(limit=20)
    channels = page.ask(notifications.list_channels)
    first_mail = not any(each.kind == "email" for each in channels)
    return {
        "channels": channels,
        "suggested": page.ask(about.show_settings).administrator_email if first_mail else "",
        "deliveries": page.ask(notifications.list_deliveries, query=query),
        "occasions": _OCCASIONS,
    }


PAGES = (
    Page(
        address="/notifications",
        template="notifications.html",
        permission=Permission.CONFIGURE,
        show=_notifications,
    ),
)
