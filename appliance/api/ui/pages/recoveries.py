"""Pages of recovery: wizards of a point, sessions that run from their backup, restores."""

from __future__ import annotations

import json
from typing import Any

from appliance.api.permissions import Permission
from appliance.api.routes import hosts, operations, places, points, recoveries
from appliance.api.ui.page import Page, PageCall
from appliance.api.ui.pages.runs import throughput_of
from appliance.exports.datastore.session import Phase
from appliance.service.operations import OperationKind
from appliance.targets.captured_networks import captured_networks

_WORDS = {
    OperationKind.RESTORE: "Restore as a new VM",
    OperationKind.ROLL_BACK: "Roll-back",
    OperationKind.INSTANT_START: "Instant recovery",
    OperationKind.INSTANT_FINALISE: "Move to production storage",
    OperationKind.INSTANT_DISCARD: "Discard of a recovery session",
}
_WAIT_S = 3.0
_STARTING = (Phase.PUBLISHED, Phase.MOUNTED, Phase.REGISTERED)
_FINALISABLE = (Phase.REGISTERED, Phase.RUNNING, Phase.FINALISING, Phase.MOVED)


def _recoveries(page: PageCall) -> dict[str, Any]:
    found = page.ask(operations.list_operations, query=operations.OperationQuery(limit=200))
    going_on = {each.result.get("session_id"): each for each in found if each.ended_at is None}
    live = {each.run_id: each for each in found if each.live is not None}
    sessions = page.ask(recoveries.list_recoveries)
    movable = page.may(Permission.RESTORE) and any(one.phase in _FINALISABLE for one in sessions)
    return {
        "sessions": sessions,
        "places": _places(page, 0.0) if movable else (),
        "going_on": going_on,
        "starting": [each for each in live.values() if each.kind is OperationKind.INSTANT_START],
        "can": page.may(Permission.RESTORE),
        "resumable": _STARTING,
        "finalisable": _FINALISABLE,
    }


def _operations(page: PageCall) -> dict[str, Any]:
    query = operations.OperationQuery(limit=100)
    return {"operations": page.ask(operations.list_operations, query=query), "words": _WORDS}


def _operation(page: PageCall) -> dict[str, Any]:
    found = page.ask(operations.show_operation)
    return {
        "operation": found,
        "words": _WORDS,
        "result": json.dumps(found.result, indent=1),
        **throughput_of(page, found.run_id),
    }


def _wizard(page: PageCall) -> dict[str, Any]:
    point = page.ask(points.show_point)
    manifest = page.services.repository.points.get(point.point_id)
    return {
        "point": point,
        "hosts": [(each.name, each.name) for each in page.ask(hosts.list_hosts)],
        "networks": captured_networks(manifest.hardware),
    }


def _placing_wizard(page: PageCall) -> dict[str, Any]:
    return _wizard(page) | {"places": _places(page, _WAIT_S)}


def _places(page: PageCall, wait_s: float) -> Any:
    return page.ask(places.list_places, query=places.PlacesQuery(wait_s=wait_s))


PAGES = (
    Page(
        address="/recoveries",
        template="recoveries.html",
        permission=Permission.VIEW,
        show=_recoveries,
        live=("session", "operation"),
    ),
    Page(
        address="/operations",
        template="operations.html",
        permission=Permission.VIEW,
        show=_operations,
        live=("operation",),
    ),
    Page(
        address="/operations/{operation}",
        template="operation.html",
        permission=Permission.VIEW,
        show=_operation,
        live=("operation", "progress"),
    ),
    *(
        Page(
            address=f"/points/{{point}}/{way}",
            template=f"{template}.html",
            permission=Permission.RESTORE,
            show=show,
        )
        for way, template, show in (
            ("instant", "instant_form", _placing_wizard),
            ("restore", "restore_form", _placing_wizard),
            ("roll-back", "roll_back_form", _wizard),
        )
    ),
)
