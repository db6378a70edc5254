"""How other hosts see on NFS datastores that a machine runs: lock files, and a changed disk.

Descriptors of the disks that the guest will write get a new content id first, as a host marks that
they change. Thread model: one caller at a time, the operation that has the machine.
Source: design notes on vSphere, section 5 "Locks" and "VMDK descriptor".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lab.esx.datastore import Datastores
from lab.esx.disk_chain import DiskChain
from lab.esx.hardware import VmConfig
from lab.esx.nas_datastore import NasDatastore, NasTimings
from lab.esx.nas_locks import NasLocks
from lab.esx.vmdk import new_content_id


class NasPresence:
    def __init__(self, datastores: Datastores, host: str, timings: NasTimings) -> None:
        self._datastores = datastores
        self._locks = NasLocks(datastores, host, timings)

    def enter(self, config: VmConfig, chains: Mapping[int, DiskChain]) -> None:
        """Lock the .vmx and the disks' extents.

        Raises:
            FileLockedError: another host has one of them; nothing is locked.
        """
        extents = (chain.leaf.extent_path for chain in chains.values())
        self._locks.acquire((config.vmx_path, *extents))

    def leave(self) -> None:
        """Idempotent; what cannot be reached stays."""
        self._locks.release()

    def mark_written(self, chain: DiskChain) -> DiskChain:
        """Give the leaf a new content id, where it is on NFS."""
        leaf = chain.leaf
        if not isinstance(self._datastores.get(leaf.path.datastore), NasDatastore):
            return chain
        descriptor = replace(leaf.descriptor, content_id=new_content_id())
        self._datastores.write_text(leaf.path, descriptor.text())
        return DiskChain(files=(replace(leaf, descriptor=descriptor), *chain.parents))
