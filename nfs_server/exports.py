"""Which trees are served, under which path and to whom.

A client is judged by its address on MNT and again on every call: a handle that has leaked is of no
use from elsewhere. Nothing here blocks; an export table is replaced, never changed, but for what it
remembers of handles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from nfs_server.protocol import PATH_BYTES_MAX
from nfs_server.results import Target
from nfs_server.vfs import Tree

Network = IPv4Network | IPv6Network
_RESOLVED_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """`tree_id` stands in every handle and is the fsid: it must outlive restarts."""

    path: str  # "/holdfast/web"; what MNT asks for
    tree_id: int
    tree: Tree
    clients: tuple[Network, ...]

    def __post_init__(self) -> None:
        path = self.path
        if not path.startswith("/") or path != normal_path(path) or len(path) > PATH_BYTES_MAX:
            raise ValueError(f"export path {path!r} is not absolute and plain")
        if not 0 < self.tree_id < 1 << 64:
            raise ValueError(f"tree id {self.tree_id}")

    def admits(self, address: str) -> bool:
        client = client_address(address)
        return any(
            client in network for network in self.clients if network.version == client.version
        )


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Raises ValueError naming the text that is no address or network."""
    return tuple(ip_network(text, strict=False) for text in texts)


@lru_cache(1024)
def client_address(text: str) -> IPv4Address | IPv6Address:
    address = ip_address(text.split("%", 1)[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def normal_path(path: str) -> str:
    """Without doubled and trailing slashes; dots are names here, not steps."""
    return "/" + "/".join(part for part in path.split("/") if part)


class ExportTable:
    def __init__(self, exports: Sequence[Export]) -> None:
        """Raises ValueError when two have the same path or tree id."""
        self.exports = tuple(exports)
        self.resolved: dict[tuple[bytes, str], Target] = {}  # handles, for clients admitted to them
        self._by_path = {export.path: export for export in exports}
        self._by_id = {export.tree_id: export for export in exports}
        if len(self._by_path) < len(self.exports) or len(self._by_id) < len(self.exports):
            raise ValueError("two exports have the same path or tree id")

    def by_path(self, path: str) -> tuple[Export, list[bytes]] | None:
        """The export that holds `path`, and the names that lead on inside it."""
        parts = normal_path(path)[1:].split("/")
        for count in range(len(parts), -1, -1):
            export = self._by_path.get("/" + "/".join(parts[:count]))
            if export is not None:
                return export, [part.encode() for part in parts[count:]]
        return None

    def remember(self, handle: bytes, client: str, target: Target) -> None:
        """Guests name a few files over and over. Any thread."""
        if len(self.resolved) >= _RESOLVED_MAX:
            self.resolved.clear()
        self.resolved[handle, client] = target

    def by_id(self, tree_id: int) -> Export | None:
        return self._by_id.get(tree_id)
