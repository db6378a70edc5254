"""A disk for NBD tests that only answers questions about itself."""

from __future__ import annotations


class Disk:
    """What negotiation and the checks of requests look at; it has no content."""

    def __init__(self, size_bytes: int = 62 << 40, *, read_only: bool = False) -> None:
        self.size_bytes = size_bytes
        self.read_only = read_only
        self.preferred_block_bytes = 4096
        self.fast_zero = True
