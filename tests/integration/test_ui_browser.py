"""The pages as a person uses them: Chromium, from the first set-up to a finalised recovery."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from lab.faults import FaultName
from lab.guests import GuestKind, build
from tests.support import holdfast_program
from tests.support.browser import Browser, browsing
from tests.support.holdfast_program import serving
from tests.support.lab_nfs import needs_nfs_datastores, own_address
from tests.support.needs import needs
from tests.support.vm_lab import VmLab, vm_lab

pytestmark = pytest.mark.integration

PASSWORD = "a long sentence of my own"
PATIENCE_MS = 120_000


@pytest.fixture(scope="module")
def lab() -> Iterator[VmLab]:
    needs("chromium", "qemu-img", "qemu-system-x86_64")
    needs_nfs_datastores()
    with vm_lab() as running:
        holdfast_program.run(running.home, "host", "remove", "lab", "--force")
        running.add_machine("web", build(GuestKind.TINY))
        yield running


@pytest.mark.timeout(600)
def test_a_person_sets_up_protects_recovers_and_reads_the_report(lab: VmLab) -> None:
    """First account, hypervisor, job, a run watched live, verification, an instant recovery moved
    to production: by mouse and keyboard only. No page has an error on its console, a serious
    barrier for anybody, or more width than its screen."""
    token_file = lab.home / "token"
    address = own_address()
    words = ("serve", "--bind", address, "--port", "0", "--portmap", "own", "--reserve", "0")
    with (
        serving(lab.home, *words, "--setup-token-file", token_file) as (_, document),
        browsing(f"https://{address}:{document['web']['port']}") as browser,
    ):
        set_up(browser, token_file.read_text().strip())
        add_hypervisor(browser, lab)
        make_job(browser)
        run_and_watch(browser, lab)
        verify(browser)
        recover(browser, lab)
        look_at_every_page(browser)
        assert len(browser.looked_at) >= 20


def set_up(browser: Browser, token: str) -> None:
    page = browser.page
    browser.open("/")
    page.wait_for_selector("#setup")
    browser.look("set-up")
    browser.type_in(token="wrong", name="ada", password=PASSWORD)
    browser.press("setup-button")
    page.wait_for_selector("#setup .failure")
    browser.errors.clear()  # the browser itself reports the refused request
    browser.type_in(token=token)
    browser.press("setup-button")
    page.wait_for_selector("#log-out-button")
    browser.look("first-dashboard")


def add_hypervisor(browser: Browser, lab: VmLab) -> None:
    page, vcenter = browser.page, lab.vcenter
    browser.open("/hosts")
    page.fill("#look-address", vcenter.address)
    page.fill("#look-port", str(vcenter.port))
    browser.press("look-button")
    page.wait_for_selector("#look .shown")
    assert page.input_value("#pin") == vcenter.fingerprint
    browser.look("add-hypervisor")
    browser.type_in(name="vc1", user=vcenter.user, password=vcenter.password)
    browser.press("add-host-button")
    page.wait_for_selector("text=Remove")
    browser.look("hypervisors")


def make_job(browser: Browser) -> None:
    page = browser.page
    browser.open("/new-job")
    page.fill("[name='job.name']", "nightly")
    page.uncheck("[name='job.select.everything']")
    page.fill("[name='job.select.names[]']", "we*")
    page.wait_for_selector("#preview >> text=1 of 1")
    browser.look("job-wizard")
    browser.press("save-job")
    page.wait_for_url(re.compile("/jobs/nightly$"))
    browser.look("job")


def run_and_watch(browser: Browser, lab: VmLab) -> None:
    """The page follows the run by itself: nothing is loaded again."""
    page = browser.page
    lab.faults.arm(FaultName.SLOW_STREAM, None, amount=8 << 20, path="*-flat.vmdk")
    page.click("text=Run now")
    page.wait_for_url(re.compile("/runs/[^/]+$"))
    page.wait_for_selector("progress")
    browser.look("run-live")
    lab.faults.disarm()
    page.wait_for_selector("#run-parts .badge:has-text('success')", timeout=PATIENCE_MS)
    browser.look("run")


def verify(browser: Browser) -> None:
    page = browser.page
    browser.open("/new-job?job.kind=verification")
    page.fill("[name='job.name']", "proof")
    page.fill("[name='job.select.names[]']", "web")
    page.fill("[name='job.probes[]']", "serial:HOLDFAST-READY")
    page.fill("[name='job.memory_mib']", "256")
    page.click("#groups summary")
    page.click("#vm-checks summary")
    browser.look("verification-wizard")
    page.fill("[name='job.vms.0.names[]']", "other*")
    page.fill("[name='job.vms.0.probes[]']", "tcp:22")
    browser.press("save-job")
    page.wait_for_url(re.compile("/jobs/proof$"))
    page.click("text=Run now")
    page.wait_for_url(re.compile("/runs/[^/]+$"))
    page.wait_for_selector("#run-parts .badge:has-text('success')", timeout=PATIENCE_MS)
    browser.look("verification-run")


def recover(browser: Browser, lab: VmLab) -> None:
    page = browser.page
    browser.open("/vms/web")
    browser.look("vm")
    page.click("a[href^='/points/']")
    browser.look("point")
    page.click("#recover-instantly")
    page.fill("[name='name']", "web-again")
    page.click("summary:has-text('Identity, addresses')")
    page.fill("[name='address']", page.url.partition("//")[2].partition(":")[0])
    browser.look("instant-wizard")
    browser.press("start-instant")
    page.wait_for_url(re.compile("/operations/"))
    page.wait_for_selector("#operation-parts .badge:is(.good, .warn)", timeout=PATIENCE_MS)
    browser.look("instant-started")
    browser.open("/recoveries")
    assert page.locator("button:has-text('Discard')").is_visible()
    browser.look("recoveries")
    page.fill("[name='datastore']", "ds2")
    page.click("button:has-text('Finalise')")
    page.wait_for_url(re.compile("/operations/"))
    page.wait_for_selector("#operation-parts .badge:is(.good, .warn)", timeout=PATIENCE_MS)
    browser.look("finalised")
    browser.open("/recoveries")
    assert page.locator("text=No VM runs from its backup").is_visible()


def look_at_every_page(browser: Browser) -> None:
    """Whatever the menu leads to."""
    browser.open("/")
    browser.look("dashboard")
    links = browser.page.locator("nav a").evaluate_all("all => all.map(a => a.pathname)")
    for path in links:
        if path != "/":
            browser.open(path)
            browser.look("menu-" + path.strip("/").replace("/", "-"))
