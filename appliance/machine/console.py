"""The console: shows the page of `console_page`, and asks for the settings where there are none.

One process per terminal (tty1, the serial line), run by systemd as root in place of a login prompt.
There is no password to ask for: before the first account is made, who is at the console sets the
machine up; afterwards it only shows.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from dataclasses import fields

from appliance.base.errors import ApplianceError
from appliance.machine.console_page import ConsoleFacts, console_page, may_set_up
from appliance.machine.settings import (
    SECRET_PROPERTIES,
    Deployment,
    MachineSettings,
    parse_properties,
)

_LOOK_EVERY_S = 3.0
_CLEAR = "\033[2J\033[H"
_QUESTIONS = {
    "hostname": "host name",
    "ipv4_address": "IPv4 address with prefix length, dhcp or none",
    "ipv4_gateway": "IPv4 gateway",
    "ipv6_address": "IPv6 address with prefix length, auto or none",
    "ipv6_gateway": "IPv6 gateway",
    "dns": "DNS servers",
    "search_domain": "search domain",
    "ntp": "time servers",
    "time_zone": "time zone",
    "admin_email": "e-mail of the administrator",
    "ssh_key": "public SSH key of the user admin",
    "management_networks": "networks that may manage",
    "nfs_networks": "networks that may use NFS (instant recovery)",
    "nbd_networks": "networks that may use NBD",
    "iscsi_networks": "networks that may use iSCSI",
}


def ask_settings(
    ask: Callable[[str], str], say: Callable[[str], None], present: MachineSettings
) -> Deployment:
    """One question per setting, empty keeps what stands; again until all are good.

    Raises what `ask` raises at the end of input.
    """
    assert set(_QUESTIONS) == {field.name for field in fields(MachineSettings)}
    values = {name: _shown(getattr(present, name)) for name in _QUESTIONS}
    while True:
        for name, question in _QUESTIONS.items():
            answer = ask(f"{question} [{values[name]}]: ").strip()
            if answer:
                values[name] = "" if answer == "-" else answer
        try:
            return parse_properties(
                {name: value for name, value in values.items() if name not in SECRET_PROPERTIES}
            )
        except ApplianceError as error:
            say(f"\n{error}\nOnce more (- empties a field):\n")


def run_console(
    facts: Callable[[], ConsoleFacts],
    present: Callable[[], MachineSettings],
    accept: Callable[[Deployment], None],
) -> None:
    """Until the terminal is gone (OSError, EOFError are the caller's).

    What `accept` raises (ApplianceError, OSError) is shown.
    """
    shown = ""
    while True:
        known = facts()
        page = console_page(known)
        if page != shown:
            shown = page
            sys.stdout.write(_CLEAR + page)
            sys.stdout.flush()
        ready, _, _ = select.select([sys.stdin], [], [], _LOOK_EVERY_S)
        if not ready:
            continue
        if not sys.stdin.readline():
            raise EOFError
        if may_set_up(facts()):
            _set_up(ask_settings(_ask, _say, present()), accept)
        shown = ""


def _set_up(deployment: Deployment, accept: Callable[[Deployment], None]) -> None:
    """What cannot be carried out is said here: nobody at a console sees a log."""
    try:
        accept(deployment)
    except (ApplianceError, OSError) as error:
        _ask(f"\n{error}\nNot all of it was done. Press Enter, then set it up once more.\n")


def _ask(question: str) -> str:
    _say(question)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _shown(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
