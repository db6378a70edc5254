"""A virtual disk as its chain of files, leaf first: opened, locked, read merged, shown to QEMU.

`open_chain` follows the parents as a host does and checks that each is the one its child was made
over (content ids) and of the same size. `ChainReader` merges the chain without QEMU; it serves the
data plane (leases, `/folder` on a descriptor) and hot-add's checks.
Invariants: at most `CHAIN_FILES_MAX` files; the base is flat, everything above it a delta.
Thread model: any thread; a reader's files must be frozen for as long as it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.esx.areas import Area, merged
from lab.esx.datastore import Datastores
from lab.esx.datastore_path import DatastorePath
from lab.esx.errors import FileFaultError, HostError
from lab.esx.file_locks import LockMode
from lab.esx.qcow2 import CLUSTER_BYTES, Qcow2Image
from lab.esx.vmdk import DiskFile, ExtentKind, read_disk_file

SNAPSHOT_LEVELS_MAX = 32
CHAIN_FILES_MAX = SNAPSHOT_LEVELS_MAX + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskChain:
    files: tuple[DiskFile, ...]  # leaf first

    @property
    def leaf(self) -> DiskFile:
        return self.files[0]

    @property
    def base(self) -> DiskFile:
        return self.files[-1]

    @property
    def parents(self) -> tuple[DiskFile, ...]:
        return self.files[1:]

    @property
    def capacity_bytes(self) -> int:
        return self.leaf.descriptor.capacity_bytes

    def locks(self, leaf_mode: LockMode) -> list[tuple[DatastorePath, LockMode]]:
        """What to hold to use the disk: the leaf in this mode, its parents shared."""
        wanted = [(path, leaf_mode) for path in self.leaf.own_files]
        for parent in self.parents:
            wanted += [(path, LockMode.SHARED) for path in parent.own_files]
        return wanted

    def paths(self) -> list[DatastorePath]:
        return [path for disk in self.files for path in disk.own_files]


def open_chain(datastores: Datastores, leaf: DatastorePath) -> DiskChain:
    """Raises FileMissingError for the leaf; FileFaultError for a chain that is broken."""
    files = [read_disk_file(datastores, leaf)]
    while (parent_path := files[-1].parent_path) is not None:
        if len(files) == CHAIN_FILES_MAX:
            raise FileFaultError(f"the chain of {leaf} is too long", file=str(leaf))
        try:
            parent = read_disk_file(datastores, parent_path)
        except HostError as error:
            raise FileFaultError(f"{leaf}: a parent is missing: {error}", file=str(leaf)) from error
        child = files[-1].descriptor
        if child.parent_content_id != parent.descriptor.content_id:
            raise FileFaultError(
                f"{parent_path} has been modified since the child {files[-1].path} was created",
                file=str(leaf),
            )
        if child.capacity_bytes != parent.descriptor.capacity_bytes:
            raise FileFaultError(f"{parent_path} and its child differ in size", file=str(leaf))
        files.append(parent)
    return DiskChain(files=tuple(files))


def file_node(datastores: Datastores, disk: DiskFile, *, read_only: bool = False) -> dict[str, Any]:
    """BlockdevOptions of one file of a chain, without its backing and its node name."""
    extent = disk.extent_path
    driver = "raw" if disk.descriptor.kind is ExtentKind.FLAT else "qcow2"
    protocol = datastores.files_of(extent).block_node(extent.path)
    if read_only:
        protocol = {**protocol, "read-only": True}
    return {"driver": driver, "discard": "unmap", "read-only": read_only, "file": protocol}


class ChainReader:
    """The merged content of a chain of frozen files, by plain reads of the datastores."""

    def __init__(self, datastores: Datastores, chain: DiskChain) -> None:
        self.size_bytes = chain.capacity_bytes
        self._base_files = datastores.files_of(chain.base.extent_path)
        self._base_path = chain.base.extent_path.path
        self._deltas = [
            Qcow2Image(datastores.files_of(disk.extent_path), disk.extent_path.path)
            for disk in chain.files[:-1]
        ]

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes. Raises FileFaultError outside of the disk."""
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise FileFaultError(f"[{offset}, {offset + length}) lies outside the disk")
        if not self._deltas:
            return self._base_files.read_at(self._base_path, offset, length)
        parts = []
        while length:
            start = offset // CLUSTER_BYTES * CLUSTER_BYTES
            count = min(length, start + CLUSTER_BYTES - offset)
            cluster = self._cluster(start)
            parts.append(cluster[offset - start : offset - start + count])
            offset, length = offset + count, length - count
        return b"".join(parts)

    def allocated(self) -> list[Area]:
        """What may differ from zeros, joined; the rest reads as zeros."""
        areas = list(self._base_files.data_extents(self._base_path))
        for delta in self._deltas:
            areas += delta.allocated()
        return merged(areas)

    def _cluster(self, start: int) -> bytes:
        for delta in self._deltas:
            if (data := delta.read_cluster(start)) is not None:
                return data
        count = min(CLUSTER_BYTES, self.size_bytes - start)
        return self._base_files.read_at(self._base_path, start, count)
