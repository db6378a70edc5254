"""Debian's Chromium under Playwright, with what every page must be free of: errors on the console
and serious barriers (axe-core).

`HOLDFAST_PICTURES`, a folder, keeps a picture of each page that is looked at; the ones in `docs/`
are made so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

from tests.support.needs import needs

_GRAVE = ("serious", "critical")
_SIZE = (1280, 900)
_PHONE = (390, 844)
_TOO_WIDE = """
() => document.documentElement.scrollWidth <= window.innerWidth ? [] :
  [...document.querySelectorAll("body *")]
    .filter((each) => each.getBoundingClientRect().right > window.innerWidth)
    .map((each) => each.outerHTML.slice(0, 120))
"""


@dataclass
class Browser:
    """One person at one browser, on the appliance at `origin`."""

    page: Page
    origin: str
    errors: list[str] = field(default_factory=list)
    looked_at: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        answer = self.page.goto(f"{self.origin}{path}")
        assert answer is not None and answer.status == 200, f"{path}: {answer and answer.status}"

    def type_in(self, **fields: str) -> None:
        """Type into fields by the part of their id behind `field-`, with `_` for `-`."""
        for name, text in fields.items():
            self.page.fill(f"#field-{name.replace('_', '-')}", text)

    def press(self, button_id: str) -> None:
        """Press a button, agreeing to what it asks."""
        self.page.once("dialog", lambda dialog: dialog.accept())
        self.page.click(f"#{button_id}")

    def look(self, name: str) -> None:
        """Find nothing wrong with the page as it stands, on a desk and on a phone."""
        for (width, height), scheme in ((_PHONE, "dark"), (_SIZE, "light")):
            self._looks_like(width, height, "dark" if scheme == "dark" else "light")
            too_wide = self.page.evaluate(_TOO_WIDE)
            assert too_wide == [], f"{name} is wider than {width} px: {too_wide}"
            found = [
                f"{violation['id']} ({violation['impact']}): {violation['help']}; "
                f"{[node['html'] for node in violation['nodes']][:3]}"
                for violation in Axe().run(self.page).response["violations"]
                if violation["impact"] in _GRAVE
            ]
            assert found == [], f"{name}, {scheme}, {width} px: {found}"
        self.looked_at.append(name)
        self.keep_picture(name)

    def keep_picture(self, name: str) -> None:
        pictures = os.environ.get("HOLDFAST_PICTURES")
        if pictures:
            self.page.screenshot(path=Path(pictures, f"ui-{name}.png"))

    def _looks_like(self, width: int, height: int, scheme: Literal["dark", "light"]) -> None:
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")


@contextmanager
def browsing(origin: str) -> Iterator[Browser]:
    """A browser that has never been here; at the end its console must be empty."""
    needs("chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            page = chromium.new_context(ignore_https_errors=True).new_page()
            browser = Browser(page, origin)
            page.on(
                "console",
                lambda said: (
                    browser.errors.append(f"{page.url}: {said.text}")
                    if said.type in ("error", "warning")
                    else None
                ),
            )
            page.on("pageerror", lambda error: browser.errors.append(f"{page.url}: {error}"))
            try:
                yield browser
            except BaseException:
                browser.keep_picture("failed")
                raise
            assert browser.errors == [], browser.errors
        finally:
            chromium.close()
