"""All routes of the API, one module per noun."""

from __future__ import annotations

from appliance.api.route import Route
from appliance.api.routes import (
    accounts,
    audit,
    hosts,
    login,
    notifications,
    points,
    recoveries,
    runs,
    tokens,
)

ROUTES: tuple[Route, ...] = tuple(
    route
    for module in (login, accounts, tokens, hosts, points, runs, recoveries, notifications, audit)
    for route in module.table.routes
)
