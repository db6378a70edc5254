"""The firewall: what may come in, as one nftables rule set made from the settings.

Everything that was not asked for is dropped: management (SSH, the web interface) from the networks
named, and NFS, NBD and iSCSI only from networks named for them, by default none.
Thread model: pure. Source: nft(8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

from appliance.machine.settings import MachineSettings

SSH_PORT, WEB_PORT = 22, 443
NFS_PORTS = (111, 2049)
NBD_PORTS = (10809,)
ISCSI_PORTS = (3260,)


class FirewallState(StrEnum):
    SETTINGS = "settings"  # what the settings ask for
    CLOSED = "closed"  # lets nobody in
    NONE = "none"  # not to be had; the daemon does not start


_HEAD = """\
#!/usr/sbin/nft -f
# Made by holdfast-machine from the settings; changes here are lost.
table inet holdfast
delete table inet holdfast
table inet holdfast {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    ct state invalid drop
    iif lo accept
    icmp type { echo-request, destination-unreachable, time-exceeded } accept
    meta l4proto 58 accept comment "ICMPv6: 58, as there may be no /etc/protocols"
    udp sport 67 udp dport 68 accept
    ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept
"""
_TAIL = """\
  }
  chain forward { type filter hook forward priority filter; policy drop; }
}
"""


def rules(settings: MachineSettings) -> str:
    """The whole file; loading it replaces our table at once and no other."""
    lines = [
        *_allowed("management", settings.management_networks, (SSH_PORT, WEB_PORT), "tcp"),
        *_allowed("NFS", settings.nfs_networks, NFS_PORTS, "tcp"),
        *_allowed("NFS", settings.nfs_networks, NFS_PORTS[:1], "udp"),
        *_allowed("NBD", settings.nbd_networks, NBD_PORTS, "tcp"),
        *_allowed("iSCSI", settings.iscsi_networks, ISCSI_PORTS, "tcp"),
    ]
    return _HEAD + "".join(f"    {line}\n" for line in lines) + _TAIL


def closed_rules() -> str:
    """As `rules`, admitting nobody: what the appliance itself asks for is still answered."""
    return _HEAD + _TAIL


def _allowed(
    what: str, networks: Sequence[str], ports: Sequence[int], protocol: str
) -> Iterator[str]:
    for family, version in (("ip", 4), ("ip6", 6)):
        mine = [network for network in networks if (":" in network) == (version == 6)]
        if mine:
            yield (
                f"{family} saddr {{ {', '.join(dict.fromkeys(mine))} }} "
                f"{protocol} dport {{ {', '.join(map(str, ports))} }} accept "
                f'comment "{what}"'
            )
