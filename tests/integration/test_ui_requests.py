"""How often the pages ask: a person who types or watches keeps one request of a page waiting."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Route

from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from tests.support.api_server import api_serving
from tests.support.browser import browsing

pytestmark = pytest.mark.integration

PASSWORD = "correct horse battery"


def test_a_preview_is_asked_for_one_at_a_time_and_ends_with_what_was_typed_last(
    tmp_path: Path,
) -> None:
    """While a hypervisor is slow to answer, more typing sends no more requests; the last one is of
    all that was typed."""
    with (
        api_serving(tmp_path) as (services, port),
        browsing(f"https://127.0.0.1:{port}") as browser,
    ):
        services.catalog.accounts.create("ada", Secret.of_text(PASSWORD), Role.ADMINISTRATOR)
        page = browser.page
        browser.open("/")
        browser.type_in(name="ada", password=PASSWORD)
        browser.press("login-button")
        page.wait_for_selector("#log-out-button")
        page.clock.install()
        browser.open("/new-job")
        asked: list[str] = []
        held: list[Route] = []

        def hold_the_first(route: Route) -> None:
            asked.append(route.request.url)
            if len(asked) == 1:
                held.append(route)
            else:
                route.continue_()

        page.route("**/new-job?*", hold_the_first)
        for name in ("w", "we", "web"):
            page.fill("[name='job.name']", name)
            page.clock.run_for(500)
        page.evaluate("fetch('/static/app.js')")  # what was sent before this has come here too
        assert len(asked) == 1
        with page.expect_response(lambda answer: "job.name=web&" in answer.url):
            held[0].continue_()
        assert len(asked) == 2
