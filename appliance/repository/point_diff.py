"""What differs between two recovery points, by walking only the subtrees that differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.blocks.extents import Extent, normalise, total_bytes
from appliance.repository.format import BLOCK_BYTES, EMPTY_DIGEST, SEGMENT_BYTES
from appliance.repository.image_tree import Leaf, TreeReader, diff_trees

if TYPE_CHECKING:
    from appliance.repository.manifest import Manifest
    from appliance.repository.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskDifference:
    number: int
    extents: list[Extent]  # in chunks: everything that differs, and at most a chunk around it

    @property
    def changed_bytes(self) -> int:
        return total_bytes(self.extents)


def diff_points(repository: Repository, old: Manifest, new: Manifest) -> list[DiskDifference]:
    """Compare disks of equal number; a disk that only one point has differs wherever it has data.

    Raises: ChunkMissingError, CorruptError.
    """
    numbers = sorted({disk.number for disk in (*old.disks, *new.disks)})
    return [
        DiskDifference(
            number=number,
            extents=diff_roots(repository, _root(old, number), _root(new, number)),
        )
        for number in numbers
    ]


def _root(manifest: Manifest, number: int) -> bytes:
    disk = manifest.disk(number)
    return EMPTY_DIGEST if disk is None else disk.root


def diff_roots(repository: Repository, old_root: bytes, new_root: bytes) -> list[Extent]:
    """Return the set of extents in which two disks may differ, to the chunk."""
    old = TreeReader(old_root, repository.chunks.load)
    new = TreeReader(new_root, repository.chunks.load)
    extents: list[Extent] = []
    for segment, left, right in diff_trees(old, new):
        base = segment * SEGMENT_BYTES
        extents += _diff_leaves(base, old.load_leaf(left), new.load_leaf(right))
    return normalise(extents)


def _diff_leaves(base: int, left: Leaf, right: Leaf) -> list[Extent]:
    return [
        Extent(base + entry.start * BLOCK_BYTES, entry.blocks * BLOCK_BYTES)
        for entry in set(left.entries) ^ set(right.entries)
    ]
