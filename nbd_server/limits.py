"""Bounds that keep one client from taking what belongs to all, and the figures of a server."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

_MIB = 1 << 20


def processors() -> int:
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Memory held for clients stays below `memory_bytes`, shared out evenly, plus what one request
    holds (at most 4 MiB) per connection."""

    connections: int = 128  # half of them from one address
    near_workers: int = field(default_factory=processors)  # threads for misses near at hand
    workers: int = 8  # threads for what waits for storage: misses, writes, flushes
    jobs_per_connection: int = 4  # so that one client leaves threads to the others
    memory_bytes: int = 256 * _MIB
    handshake_s: float = 30.0
    options: int = 64  # per connection; real clients send fewer than ten
    option_bytes: int = 64 << 10  # longer ones are skipped and refused
    shutdown_s: float = 10.0  # for clients to take the replies to what they had asked for

    MIN_SHARE_BYTES = 2 * _MIB
    MAX_SHARE_BYTES = 16 * _MIB

    @property
    def connections_per_client(self) -> int:
        return max(self.connections // 2, 1)

    def share_bytes(self, connections: int) -> int:
        """What one of so many connections may hold in requests, replies and unsent bytes."""
        share = self.memory_bytes // max(connections, 1)
        return max(self.MIN_SHARE_BYTES, min(share, self.MAX_SHARE_BYTES))


@dataclass(slots=True, kw_only=True)
class Counters:
    """Written on the event loop only; reading them from elsewhere is safe."""

    accepted: int = 0  # connections since the start
    connections: int = 0  # now
    refused: int = 0  # connections above the limit
    requests: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
