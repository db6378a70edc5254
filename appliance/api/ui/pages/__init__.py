"""All pages of the web interface."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from appliance.api.dispatch import Dispatcher
from appliance.api.gate import Gate
from appliance.api.services import Services
from appliance.api.ui.forms import add_forms
from appliance.api.ui.page import FOLDER, Page, Pages
from appliance.api.ui.pages import (
    administration,
    inventory,
    jobs,
    overview,
    proofs,
    recoveries,
    runs,
    telling,
)
from appliance.base.errors import ApplianceError

_MODULES = (overview, inventory, jobs, runs, recoveries, proofs, telling, administration)
PAGES: tuple[Page, ...] = tuple(page for module in _MODULES for page in module.PAGES)


def add_pages(
    application: web.Application,
    services: Services,
    gate: Gate,
    dispatcher: Dispatcher,
    failure: Callable[[ApplianceError], web.Response],
) -> None:
    pages = Pages(services, gate)
    for page in PAGES:
        application.router.add_get(page.address, pages.endpoint(page))
    add_forms(application, dispatcher, pages.show, failure)
    application.router.add_static("/static/", FOLDER / "static")
