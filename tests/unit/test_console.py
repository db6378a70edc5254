"""The console: what it shows, to whom it offers set-up, and what it asks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.machine.console import ask_settings
from appliance.machine.console_page import ConsoleFacts, console_page, may_set_up
from appliance.machine.firewall import FirewallState
from appliance.machine.layout import Status
from appliance.machine.settings import MachineSettings

FACTS = ConsoleFacts(
    version="1.0",
    hostname="backup",
    addresses=["192.0.2.10", "2001:db8::10"],
    fingerprint=":".join(["AB"] * 32),
    setup_token="first-time",
    status=Status(firewall=FirewallState.SETTINGS, configured=True),
)


def test_the_page_shows_address_certificate_and_token() -> None:
    """All that a first login needs."""
    page = console_page(FACTS)
    assert "https://192.0.2.10/" in page and "https://[2001:db8::10]/" in page
    assert "".join(page.split()).count("AB:" * 15 + "AB") >= 2
    assert "first-time" in page
    assert all(len(line) <= 80 for line in page.splitlines())


def test_after_set_up_there_is_no_token_and_nothing_to_enter() -> None:
    """Who then walks up to the console changes nothing."""
    done = replace(FACTS, setup_token="")
    assert "token" not in console_page(done) and not may_set_up(done)


@pytest.mark.parametrize(
    "status",
    [
        Status(firewall=FirewallState.SETTINGS, configured=False),
        Status(firewall=FirewallState.CLOSED, configured=True, problems=("nobody gets in",)),
    ],
)
def test_a_machine_without_settings_or_with_a_problem_can_be_set_up(status: Status) -> None:
    """And the problem is there to be read."""
    facts = replace(FACTS, setup_token="", status=status)
    assert may_set_up(facts)
    assert all(problem in console_page(facts) for problem in status.problems)


def test_before_the_machine_is_prepared_nothing_can_be_entered() -> None:
    """The settings would be overwritten."""
    facts = replace(FACTS, status=None)
    assert not may_set_up(facts) and "starting" in console_page(facts)


def test_set_up_asks_again_until_all_is_good() -> None:
    """An empty answer keeps what stands, "-" empties it."""
    said: list[str] = []
    first = iter(["a b", "192.0.2.10/24", "192.0.2.1"])
    second = iter(["backup", "", "-"])
    rounds = [first, second]

    def ask(question: str) -> str:
        if question.startswith("host name") and said:
            rounds.pop(0)
        return next(rounds[0], "")

    found = ask_settings(ask, said.append, MachineSettings()).settings
    assert found.hostname == "backup"
    assert found.ipv4_address == "192.0.2.10/24" and found.ipv4_gateway == ""
    assert len(said) == 1 and "hostname" in said[0]
