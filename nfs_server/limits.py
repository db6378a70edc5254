"""How much a server takes on, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass

from nfs_server.protocol import AUTH_BYTES_MAX

STRANGERS = 16  # connections of addresses that no export admits
_CALL_BYTES = 4096 + 2 * AUTH_BYTES_MAX  # everything of a call but the data of a WRITE


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on memory and work; each connection gets an equal share of `memory_bytes`."""

    connections: int = 256  # half of them from one address; a few from strangers
    memory_bytes: int = 256 << 20  # requests not answered and replies not taken, of all
    transfer_bytes: int = 1 << 20  # rtmax and wtmax
    metadata_workers: int = 4
    data_workers: int = 8
    batches_per_connection: int = 4  # on one lane at once: the others get their turn
    shutdown_s: float = 10.0

    @property
    def record_bytes(self) -> int:
        return self.transfer_bytes + _CALL_BYTES

    @property
    def connections_per_client(self) -> int:
        return max(self.connections // 2, 1)

    def share_bytes(self, connections: int) -> int:
        return max(self.memory_bytes // max(connections, 1), self.record_bytes)


@dataclass(slots=True)
class Counters:
    """Since the server was made."""

    connections: int = 0
    accepted: int = 0
    refused: int = 0
    calls: int = 0
    replayed: int = 0
    read_bytes: int = 0
