"""Where a further node of a failover cluster is reached, as a registration keeps it.

User, password and kind of login are those of the registration; the certificate is each node's own.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_NODES_MOST = 64  # of a failover cluster of Windows
_PORT_MOST = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAddress:
    """Raises ValueError: a port that is none."""

    address: str
    port: int
    smb_port: int
    fingerprint: str  # SHA-256 of its certificate, "AA:BB:…"; empty over plain HTTP

    def __post_init__(self) -> None:
        if not self.address or not all(
            0 < port <= _PORT_MOST for port in (self.port, self.smb_port)
        ):
            raise ValueError(f"not the address of a node: {self.address!r} {self.port}")


def as_text(nodes: Sequence[NodeAddress]) -> str:
    """For the settings of a registered host."""
    return json.dumps([asdict(node) for node in nodes])


def from_text(text: str) -> tuple[NodeAddress, ...]:
    """Raises ValueError: it is not what `as_text` writes, or there are too many."""
    found = json.loads(text)
    if not isinstance(found, list) or len(found) > _NODES_MOST:
        raise ValueError("the nodes of the cluster are no list of at most 64")
    try:
        return tuple(
            NodeAddress(
                address=str(each["address"]),
                port=int(each["port"]),
                smb_port=int(each["smb_port"]),
                fingerprint=str(each["fingerprint"]),
            )
            for each in found
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"a node of the cluster lacks {error}") from error
