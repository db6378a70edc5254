"""Re-hash what a recovery point refers to, or a share of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from appliance.base.bounded_map import bounded_map
from appliance.base.run_context import RunContext
from appliance.repository.format import SEGMENT_BYTES
from appliance.repository.image_tree import TreeReader
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository

_SCALE = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class HashOutcome:
    chunk_count: int  # distinct chunks read and proven
    verified_bytes: int
    seconds: float


def verify_hashes(
    repository: Repository, manifest: Manifest, context: RunContext, *, share: float = 1.0
) -> HashOutcome:
    """Read every chunk of the point, or `share` of them, and prove it against its digest; one at
    the least, since nothing read proves nothing.

    The whole tree is read in any case. Which chunks make up a share is drawn anew each time, so
    that night by night all of them come to it, and nobody can know which.

    Raises: ChunkMissingError, ChunkCorruptError: the first damage found; CancelledError.
    """
    started_s = time.perf_counter()
    seen: set[bytes] = set()
    salt, limit = secrets.randbits(64), round(share * _SCALE)

    def place(digest: bytes) -> int:
        return (int.from_bytes(digest[:8], "little") + salt) % _SCALE

    def prove(digests: set[bytes]) -> int:
        context.cancel.check()
        raws = repository.chunks.load_many(digests)
        return sum(len(raw) for raw in raws.values())

    def unproven() -> Iterator[set[bytes]]:
        nearest: set[bytes] = set()  # to being drawn, while none is
        for disk in manifest.disks:
            tree = TreeReader(disk.root, repository.chunks.load)
            context.progress.expect(disk.size_bytes)
            for _, digest in tree.leaves():
                wanted = {entry.digest for entry in tree.load_leaf(digest).entries} - seen
                if wanted and not seen:
                    nearest = {min(wanted | nearest, key=place)}
                wanted = {digest for digest in wanted if place(digest) < limit}
                seen.update(wanted)
                context.progress.advance(SEGMENT_BYTES)
                yield wanted
        if not seen:
            seen.update(nearest)
            yield nearest

    workers = repository.options.workers
    with closing(bounded_map(prove, unproven(), workers=workers, name="verify")) as proven:
        verified_bytes = sum(proven)
    return HashOutcome(
        chunk_count=len(seen),
        verified_bytes=verified_bytes,
        seconds=time.perf_counter() - started_s,
    )
