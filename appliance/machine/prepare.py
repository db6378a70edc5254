"""What happens at every boot before network and daemon start: settings, firewall, data disk.

Settings are taken from the cache; at first boot from the deployment properties, which are then
cached and blanked. With none, or with a bad one, the machine comes up with DHCP and the console
says so. Where the cache is damaged, the files that were made from it stay as they are: the defaults
would take address and SSH key away and let everybody in. A machine without its data disk comes up
too, but its daemon does not start: it would begin an empty repository on the system disk. Neither
does it without a firewall, which is loaded before anything else can fail.
Runs as root, once per boot, in one thread. Every step may be repeated after a crash.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from appliance.base.atomic import replace_file
from appliance.base.errors import ApplianceError, StorageError
from appliance.base.secret import Secret
from appliance.machine.data_disk import plan
from appliance.machine.data_disk_steps import carry_out, survey
from appliance.machine.errors import MachineCommandError, PropertyError
from appliance.machine.firewall import closed_rules, rules
from appliance.machine.firewall_loading import load_firewall
from appliance.machine.layout import Layout, Status
from appliance.machine.ovf_environment import parse_environment
from appliance.machine.programs import run
from appliance.machine.property_source import PropertySource
from appliance.machine.settings import Deployment, MachineSettings, parse_properties
from appliance.machine.system_files import system_files

SERVICE_USER = "holdfast"
_ZONES = Path("usr/share/zoneinfo")


def prepare(layout: Layout, source: PropertySource) -> Status:
    """Whatever fails is told in the result; the machine comes up as far as it can."""
    problems: list[str] = []
    settings: MachineSettings | None = MachineSettings()
    try:
        settings = settings_of(layout, source)
    except (ApplianceError, OSError) as error:
        problems.append(_told(error))
        if layout.settings.exists():
            settings = None
    firewall = load_firewall(_last_rules(layout) if settings is None else rules(settings))
    if firewall.problem is not None:
        problems.append(f"[{firewall.problem.code}] {firewall.problem}")
    steps: tuple[Callable[[], None], ...] = (
        lambda: apply_settings(layout, settings) if settings is not None else None,
        lambda: make_ssh_host_keys(layout),
        lambda: mount_data_disk(layout),
    )
    for step in steps:
        try:
            step()
        except (ApplianceError, OSError) as error:
            problems.append(_told(error))
    status = Status(
        firewall=firewall.state, configured=layout.settings.exists(), problems=tuple(problems)
    )
    status.write(layout.status)
    return status


def _last_rules(layout: Layout) -> str:
    """Of the last settings that were good; where there are none, nobody is let in."""
    try:
        return layout.firewall.read_text()
    except (OSError, ValueError):
        return closed_rules()


def _told(error: ApplianceError | OSError) -> str:
    """For the console: an OSError is of the system disk (full, or read-only after an error)."""
    code = error.code if isinstance(error, ApplianceError) else StorageError.code
    return f"[{code}] {error}"


def settings_of(layout: Layout, source: PropertySource) -> MachineSettings:
    """From the cache, else from the properties, which are cached and then blanked.

    Raises PropertyError, OvfEnvironmentError; nothing is cached or blanked then.
    """
    raw = source.read()
    if layout.settings.exists():
        settings = MachineSettings.from_json(layout.settings.read_bytes())
    elif raw is None:
        return MachineSettings()
    else:
        deployment = parse_properties(parse_environment(raw).properties)
        settings = deployment.settings
        keep(layout, deployment)
    if raw is not None:
        with suppress(MachineCommandError):  # Tools refuse: the next boot tries again
            source.blank()
    return settings


def keep(layout: Layout, deployment: Deployment) -> None:
    """The passphrase first: once the settings are cached, nobody looks at the properties again."""
    layout.configuration.mkdir(parents=True, exist_ok=True)
    if deployment.repository_passphrase is not None:
        write_passphrase(layout, deployment.repository_passphrase)
    replace_file(layout.settings, deployment.settings.to_json(), mode=0o644)


def write_passphrase(layout: Layout, passphrase: Secret) -> None:
    """For the daemon, which opens the repository without anybody there."""
    replace_file(layout.passphrase, passphrase.reveal() + b"\n", mode=0o640)
    give_to_service(layout.passphrase, "root")
    options = f"SERVE_OPTIONS=--passphrase-file /{layout.passphrase.relative_to(layout.root)}\n"
    replace_file(layout.configuration / "serve.env", options.encode(), mode=0o644)


def give_to_service(path: Path, user: str = SERVICE_USER) -> None:
    """Where there is no such user (a test), nothing changes."""
    with suppress(LookupError, PermissionError):
        shutil.chown(path, user, SERVICE_USER)


def apply_settings(layout: Layout, settings: MachineSettings) -> None:
    """Write the files that changed. Raises PropertyError, OSError."""
    for file in system_files(settings):
        path = layout.root / file.path.relative_to("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = file.text.encode()
        if not path.exists() or path.read_bytes() != raw:
            replace_file(path, raw, mode=file.mode)
            path.chmod(file.mode)
    set_time_zone(layout, settings.time_zone)
    if layout.root == Path("/"):
        socket.sethostname(settings.hostname)


def set_time_zone(layout: Layout, name: str) -> None:
    """Raises PropertyError: there is no such zone."""
    zone = layout.root / _ZONES / name
    if not zone.is_file():
        raise PropertyError(f"time_zone {name!r}: there is no such zone")
    link = layout.root / "etc/localtime"
    temp = link.with_name(".localtime.tmp")
    temp.unlink(missing_ok=True)
    temp.symlink_to(Path("/") / _ZONES / name)
    temp.replace(link)


def make_ssh_host_keys(layout: Layout) -> None:
    """Each machine its own: the image has none."""
    if layout.root == Path("/"):
        run(["ssh-keygen", "-A"])


def mount_data_disk(layout: Layout) -> None:
    """Raises DataDiskError, MachineCommandError."""
    if os.path.ismount(layout.home):
        return
    recorded = layout.data_disk.read_text().strip() if layout.data_disk.exists() else ""
    run(["udevadm", "settle", "--timeout=30"])
    uuid = carry_out(plan(survey(), recorded), layout.home)
    if uuid != recorded:
        layout.configuration.mkdir(parents=True, exist_ok=True)
        replace_file(layout.data_disk, f"{uuid}\n".encode(), mode=0o644)
    give_to_service(layout.home)
    layout.home.chmod(0o700)
