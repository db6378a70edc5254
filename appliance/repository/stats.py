"""Figures of a repository: what the points refer to, and what is stored for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from appliance.repository.format import BLOCK_BYTES, EMPTY_DIGEST, INDEX_VALUE, PackKind
from appliance.repository.image_tree import TreeReader

if TYPE_CHECKING:
    from appliance.repository.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryStats:
    point_count: int
    vm_count: int
    disk_bytes: int  # virtual size of all disks of all points
    referenced_bytes: int  # what is not zero of it: each point as if it were alone
    unique_bytes: int  # chunks, uncompressed, each once
    chunk_count: int
    stored_bytes: int  # all packs
    pack_count: int
    index_bytes: int

    @property
    def deduplication(self) -> float:
        return self.referenced_bytes / self.unique_bytes if self.unique_bytes else 1.0

    @property
    def compression(self) -> float:
        return self.unique_bytes / self.stored_bytes if self.stored_bytes else 1.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "deduplication": round(self.deduplication, 3),
            "compression": round(self.compression, 3),
        }


def repository_stats(repository: Repository) -> RepositoryStats:
    """Walk each shared leaf once; read-only, beside anything else."""
    manifests = repository.points.list()
    packs = repository.index.packs()
    data_packs = {pack.number for pack in packs if pack.kind is PackKind.DATA}
    unique_bytes = chunk_count = 0
    for _, value in repository.index.entries():
        number, _, _, raw_bytes = INDEX_VALUE.unpack(value)
        if number in data_packs:
            unique_bytes += raw_bytes
            chunk_count += 1
    leaf_bytes: dict[bytes, int] = {}
    referenced_bytes = sum(
        _referenced_bytes(repository, disk.root, leaf_bytes)
        for manifest in manifests
        for disk in manifest.disks
    )
    return RepositoryStats(
        point_count=len(manifests),
        vm_count=len({manifest.vm for manifest in manifests}),
        disk_bytes=sum(manifest.size_bytes for manifest in manifests),
        referenced_bytes=referenced_bytes,
        unique_bytes=unique_bytes,
        chunk_count=chunk_count,
        stored_bytes=sum(pack.size_bytes for pack in packs),
        pack_count=len(packs),
        index_bytes=repository.index.size_bytes(),
    )


def _referenced_bytes(repository: Repository, root: bytes, leaf_bytes: dict[bytes, int]) -> int:
    if root == EMPTY_DIGEST:
        return 0
    tree = TreeReader(root, repository.chunks.load)
    total = 0
    for _, digest in tree.leaves():
        known = leaf_bytes.get(digest)
        if known is None:
            blocks = sum(entry.blocks for entry in tree.load_leaf(digest).entries)
            known = leaf_bytes[digest] = blocks * BLOCK_BYTES
        total += known
    return total
