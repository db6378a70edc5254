"""Keyed BLAKE3-256: what a chunk or a tree node is called.

Chunks and nodes have keys of their own, so that guest data can never pass for a tree node. The
keys are the repository's: two repositories give equal data different digests, unless one is a
replica of the other. BLAKE3 releases the GIL and does 5 to 7 GB/s per core on 64 KiB inputs
(*measured*, 2-core x86-64).
"""

from __future__ import annotations

from blake3 import blake3

from appliance.base.ids import Digest
from appliance.repository.format import RecordKind


class Digester:
    """Pure and thread-safe."""

    def __init__(self, digest_key: bytes) -> None:
        node_key = blake3(digest_key, derive_key_context="holdfast 2026 tree nodes").digest()
        self._key_of_kind: dict[int, bytes] = {
            RecordKind.CHUNK: digest_key,
            RecordKind.LEAF: node_key,
            RecordKind.INNER: node_key,
        }
        self._chunk_key = digest_key

    def chunk(self, raw: bytes | memoryview) -> Digest:
        return Digest(blake3(raw, key=self._chunk_key).digest())

    def of(self, kind: int, raw: bytes | memoryview) -> Digest:
        return Digest(blake3(raw, key=self._key_of_kind[kind]).digest())
