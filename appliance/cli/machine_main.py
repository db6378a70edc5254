"""`holdfast-machine`: what systemd runs on the appliance; nobody needs to call it by hand.

prepare      settings, firewall, data disk; at every boot, as root
repository   make the repository unless there is one; as the daemon's user
console      the page on a terminal
settle       finish an update that a power cut interrupted
set-up       ask for the settings, as the console does, and apply them
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence

from appliance.base.errors import ApplianceError, CancelledError, StorageError
from appliance.base.version import __version__
from appliance.cli.output import note, show_error
from appliance.machine.console_page import ConsoleFacts
from appliance.machine.errors import PropertyError
from appliance.machine.layout import Layout
from appliance.machine.settings import Deployment, MachineSettings


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="holdfast-machine", description="The appliance's own.")
    parser.add_argument("verb", choices=sorted(_VERBS))
    verb = _VERBS[parser.parse_args(argv).verb]
    try:
        return verb(Layout())
    except ApplianceError as error:
        show_error(None, error)
    except OSError as error:
        show_error(None, StorageError(str(error)))
    return 1


def run_prepare(layout: Layout) -> int:
    from appliance.machine.firewall import FirewallState
    from appliance.machine.prepare import prepare
    from appliance.machine.property_source import property_source

    status = prepare(layout, property_source())
    for problem in status.problems:
        note(problem)
    may_serve = os.path.ismount(layout.home) and status.firewall is not FirewallState.NONE
    return 0 if may_serve else 1


def run_repository(layout: Layout) -> int:
    from appliance.cli.options import read_secret_file
    from appliance.repository.errors import RepositoryExistsError
    from appliance.repository.repository import Repository

    folder = layout.home / "repository"
    if folder.is_symlink():  # an adopted one, whose disk may not be there now
        return 0
    secret = read_secret_file(layout.passphrase) if layout.passphrase.exists() else None
    try:  # also what a power cut left half made
        Repository.create(folder, passphrase=secret)
    except RepositoryExistsError:
        return 0
    note(f"made {'an encrypted' if secret else 'a'} repository in {folder}")
    return 0


def run_console(layout: Layout) -> int:
    from appliance.machine import console

    try:
        console.run_console(
            lambda: _facts(layout), lambda: _present(layout), lambda new: _accept(layout, new)
        )
    except (EOFError, OSError):
        time.sleep(5)  # a terminal that is not there: systemd tries again, not at once
    return 0


def run_set_up(layout: Layout) -> int:
    from appliance.machine import console

    try:
        deployment = console.ask_settings(input, note, _present(layout))
    except (EOFError, KeyboardInterrupt):
        raise CancelledError("nothing was set up") from None
    _accept(layout, deployment)
    return 0


def run_settle(layout: Layout) -> int:
    from appliance.machine.update import settle
    from appliance.service.systemd_daemon import SystemdDaemon

    result = settle(layout, SystemdDaemon(layout.home))
    if result is not None:
        note(f"the update that was cut off: {result.now} runs")
    return 0


def _facts(layout: Layout) -> ConsoleFacts:
    from appliance.api.tls import fingerprint
    from appliance.machine.layout import read_status

    try:
        shown = fingerprint(layout.home)
    except (OSError, ValueError):
        shown = ""
    try:
        token = layout.setup_token.read_text().strip()
    except OSError:
        token = ""
    return ConsoleFacts(
        version=__version__,
        hostname=socket.gethostname(),
        addresses=_addresses(),
        fingerprint=shown,
        setup_token=token,
        status=read_status(layout.status),
    )


def _addresses() -> list[str]:
    from appliance.machine.errors import MachineCommandError
    from appliance.machine.programs import run

    try:
        links = json.loads(run(["ip", "-json", "address", "show", "scope", "global", "up"]))
    except (MachineCommandError, ValueError):
        return []
    return [
        str(address["local"])
        for link in links
        for address in link.get("addr_info", ())
        if address.get("local") and not address.get("temporary")  # ip shows {} for the others
    ]


def _present(layout: Layout) -> MachineSettings:
    """What the questions start from: the defaults where the cache is damaged."""
    if not layout.settings.exists():
        return MachineSettings()
    try:
        return MachineSettings.from_json(layout.settings.read_bytes())
    except PropertyError as error:
        note(f"[{error.code}] {error}")
        return MachineSettings()


def _accept(layout: Layout, deployment: Deployment) -> None:
    """Apply now and keep; the cache is what every later boot begins with."""
    from appliance.machine.firewall import rules
    from appliance.machine.firewall_loading import load_rules
    from appliance.machine.prepare import apply_settings, keep
    from appliance.machine.programs import run

    apply_settings(layout, deployment.settings)
    load_rules(rules(deployment.settings))
    keep(layout, deployment)
    run(["networkctl", "reload"])
    run(["systemctl", "try-restart", "chrony.service"])
    # what could not be done before (a data disk that was not there) is done now
    run(["systemctl", "restart", "--no-block", "holdfast-prepare.service", "holdfast.service"])


_VERBS: dict[str, Callable[[Layout], int]] = {
    "prepare": run_prepare,
    "repository": run_repository,
    "console": run_console,
    "settle": run_settle,
    "set-up": run_set_up,
}

if __name__ == "__main__":
    sys.exit(main())
