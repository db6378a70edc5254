"""Settings as the files of Debian 12 that carry them out.

Pure: from settings to paths and texts. `MachineSettings` has checked every value, so it can stand
in these files as it is. Whoever writes them does so before the services that read them start.
Source: systemd.network(5), resolved.conf(5), chrony.conf(5), sshd(8) AUTHORIZED_KEYS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from appliance.machine.firewall import rules
from appliance.machine.settings import AUTOMATIC, DHCP, NONE, MachineSettings

ADMIN_USER = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemFile:
    path: PurePosixPath
    text: str
    mode: int = 0o644


def system_files(settings: MachineSettings) -> tuple[SystemFile, ...]:
    return tuple(_files(settings))


def _files(settings: MachineSettings) -> Iterator[SystemFile]:
    name = settings.hostname
    short = name.partition(".")[0]
    names = name if short == name else f"{name} {short}"
    yield _file("/etc/hostname", f"{name}\n")
    yield _file(
        "/etc/hosts",
        f"127.0.0.1 localhost\n127.0.1.1 {names}\n::1 localhost ip6-localhost ip6-loopback\n",
    )
    yield _file("/etc/systemd/network/10-holdfast.network", _network(settings))
    yield _file("/etc/chrony/sources.d/holdfast.sources", _time_sources(settings))
    yield _file("/etc/timezone", f"{settings.time_zone}\n")
    yield _file("/etc/holdfast/firewall.nft", rules(settings))
    yield _file(
        f"/etc/ssh/authorized_keys/{ADMIN_USER}",
        f"{settings.ssh_key}\n" if settings.ssh_key else "",
    )


def _file(path: str, text: str) -> SystemFile:
    return SystemFile(path=PurePosixPath(path), text=text)


def _network(settings: MachineSettings) -> str:
    """For every card without a file that sorts before this one: a second card (a storage network)
    needs such a file, which is the administrator's."""
    lines = ["[Match]", "Type=ether", "", "[Network]"]
    dynamic4, dynamic6 = settings.ipv4_address == DHCP, settings.ipv6_address == AUTOMATIC
    lines.append(
        "DHCP=" + {(1, 1): "yes", (1, 0): "ipv4", (0, 1): "no", (0, 0): "no"}[(dynamic4, dynamic6)]
    )
    lines.append(f"IPv6AcceptRA={'yes' if dynamic6 else 'no'}")
    if settings.ipv6_address == NONE:
        lines.append("LinkLocalAddressing=no")
    lines += [
        f"Address={address}"
        for address in (settings.ipv4_address, settings.ipv6_address)
        if address not in (DHCP, AUTOMATIC, NONE)
    ]
    lines += [
        f"Gateway={gateway}"
        for gateway in (settings.ipv4_gateway, settings.ipv6_gateway)
        if gateway
    ]
    lines += [f"DNS={server}" for server in settings.dns]
    if settings.search_domain:
        lines.append(f"Domains={settings.search_domain}")
    if settings.dns:  # who names servers wants these, not those of the lease beside them
        lines += ["", "[DHCPv4]", "UseDNS=no", "", "[IPv6AcceptRA]", "UseDNS=no"]
    return "\n".join(lines) + "\n"


def _time_sources(settings: MachineSettings) -> str:
    """Debian's own pool stays in chrony.conf for who names none."""
    return "".join(f"server {server} iburst\n" for server in settings.ntp)
