"""All routes of the API, one module per noun."""

from __future__ import annotations

from appliance.api.route import Route
from appliance.api.routes import (
    about,
    accounts,
    approvals,
    audit,
    events,
    hosts,
    job_file,
    jobs,
    login,
    notifications,
    operations,
    places,
    points,
    policies,
    proofs,
    recoveries,
    runs,
    tokens,
    verifications,
)

_MODULES = (
    login,
    accounts,
    tokens,
    hosts,
    places,
    jobs,
    policies,
    job_file,
    runs,
    points,
    recoveries,
    verifications,
    operations,
    proofs,
    events,
    notifications,
    about,
    approvals,
    audit,
)
ROUTES: tuple[Route, ...] = tuple(route for module in _MODULES for route in module.table.routes)
