"""A share of ours that a Hyper-V host uses as a whole, its services and VMs too, by an account.

    map_share -> VMs with disks `\\\\server\\share\\…` -> unmap_share

The mapping does not outlive a restart of the host. Each call may be repeated.
Thread model: functions; they block. Source: scripts `map_share`, `unmap_share`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hyperv.host_session import HostSession
from hyperv.patience import Patience
from hyperv.script_types import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedShare:
    server: str
    port: int
    name: str

    @property
    def path(self) -> str:
        server = self.server
        if ":" in server:  # an IPv6 address, as names of servers have it
            server = f"{server.replace(':', '-').replace('%', 's')}.ipv6-literal.net"
        return f"\\\\{server}\\{self.name}"


class _Mapped(Answer):
    path: str


class _Found(Answer):
    found: bool


def map_share(
    host: HostSession,
    share: MappedShare,
    *,
    user: str,
    password: Callable[[], str],
    patience: Patience,
) -> None:
    """Raises HypervError."""
    parameters = {
        "path": share.path,
        "port": share.port,
        "user": user,
        "password": password(),
    }
    host.call("map_share", parameters, _Mapped, patience=patience)


def unmap_share(host: HostSession, share: MappedShare, patience: Patience) -> None:
    """What is not there is gone. Raises HypervError."""
    host.call("unmap_share", {"path": share.path}, _Found, patience=patience)


def is_on_share(share: MappedShare, path: str) -> bool:
    """Whether a file lies on it."""
    return path.lower().startswith(f"{share.path}\\".lower())
