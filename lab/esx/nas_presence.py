"""What a host keeps on NFS datastores while it runs a machine: lock files and the swap file.

The swap file is as large as the memory that is not reserved, takes no space, and is removed at
power-off; `sched.swap.dir` puts it elsewhere (nowhere, in the lab). Descriptors of the disks that
the guest will write get a new content id first, as a host marks that they change.
Thread model: one caller at a time, the operation that has the machine.
Source: design notes on vSphere, section 5 "Expect extra files" and "VMDK descriptor".
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import replace

from lab.esx.datastore import Datastores
from lab.esx.datastore_path import DatastorePath
from lab.esx.disk_chain import DiskChain
from lab.esx.errors import HostError, NoSpaceError
from lab.esx.hardware import VmConfig
from lab.esx.nas_datastore import NasDatastore, NasTimings
from lab.esx.nas_locks import NasLocks
from lab.esx.vmdk import new_content_id

_MIB = 1 << 20


class NasPresence:
    def __init__(self, datastores: Datastores, host: str, timings: NasTimings) -> None:
        self._datastores = datastores
        self._locks = NasLocks(datastores, host, timings)
        self._swap: DatastorePath | None = None

    def enter(self, config: VmConfig, chains: Mapping[int, DiskChain]) -> None:
        """Lock the .vmx and the disks' extents, then make the swap file.

        Raises:
            FileLockedError: another host has one of them.
            NoSpaceError: there is none for the swap file. Nothing is left in both cases.
        """
        try:
            extents = (chain.leaf.extent_path for chain in chains.values())
            self._locks.acquire((config.vmx_path, *extents))
            self._make_swap(config)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Idempotent; what cannot be reached stays."""
        if self._swap is not None:
            with contextlib.suppress(HostError):
                self._datastores.delete_if_there(self._swap)
            self._swap = None
        self._locks.release()

    def mark_written(self, chain: DiskChain) -> DiskChain:
        """Give the leaf a new content id, where it is on NFS."""
        leaf = chain.leaf
        if not isinstance(self._datastores.get(leaf.path.datastore), NasDatastore):
            return chain
        descriptor = replace(leaf.descriptor, content_id=new_content_id())
        self._datastores.write_text(leaf.path, descriptor.text())
        return DiskChain(files=(replace(leaf, descriptor=descriptor), *chain.parents))

    def _make_swap(self, config: VmConfig) -> None:
        datastore = self._datastores.get(config.vmx_path.datastore)
        if not isinstance(datastore, NasDatastore) or config.extra.get("sched.swap.dir"):
            return
        size_bytes = max(0, config.memory_mib - _reserved_mib(config)) * _MIB
        free_bytes = datastore.files.space().free_bytes
        if free_bytes < size_bytes:
            raise NoSpaceError(
                f"the swap file needs {size_bytes} bytes, {datastore.name} has {free_bytes}",
                datastore=datastore.name,
            )
        digest = hashlib.sha256(str(config.vmx_path).encode()).hexdigest()[:8]
        swap = config.folder.child(f"{config.file_stem}-{digest}.vswp")
        self._datastores.delete_if_there(swap)  # of a host that died
        datastore.files.create(swap.path, size_bytes)
        self._swap = swap
        self._locks.acquire([swap])


def _reserved_mib(config: VmConfig) -> int:
    if config.extra.get("sched.mem.pin", "").upper() == "TRUE":
        return config.memory_mib
    reserved = config.extra.get("sched.mem.min", "")
    return int(reserved) if reserved.isdecimal() else 0
