"""Datastore objects: what vCenter shows of a datastore whose bytes are in `lab/esx`."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from lab.esx.datastore import LabDatastore
from lab.esx.files import Files
from lab.vcenter.call import Call
from lab.vcenter.datastore_browser import DatastoreBrowser
from lab.vcenter.folders import Datacenter, drop
from lab.vcenter.managed_object import ManagedEntity, computed, method

if TYPE_CHECKING:
    from lab.vcenter.hosts import HostSystem
    from lab.vcenter.lab_vcenter import LabVcenter

_MAX_FILE_BYTES = 64 << 40


class Datastore(ManagedEntity):
    """`store` is the LabDatastore with the bytes; None for one that is only to be looked at."""

    vim_type = vim.Datastore
    moid_prefix = "datastore"

    def __init__(
        self,
        vcenter: LabVcenter,
        name: str,
        datacenter: Datacenter,
        *,
        store: LabDatastore | None = None,
    ) -> None:
        super().__init__(vcenter, name, None)
        self.store = store
        self.kind = str(store.kind) if store is not None else "VMFS"
        self.uuid = str(uuid.uuid4())
        self.hosts: list[HostSystem] = []
        self.remote: tuple[str, str] | None = None  # host and path of an NFS export
        self.accessible = True
        self._machines: dict[str, ManagedEntity] = {}
        self.browser = DatastoreBrowser(vcenter, self)
        self.set(
            browser=self.browser.ref,
            capability=vim.Datastore.Capability(
                directoryHierarchySupported=True,
                rawDiskMappingsSupported=self.kind == "VMFS",
                perFileThinProvisioningSupported=True,
            ),
        )
        datacenter.datastore_folder.add(self)

    @property
    def files(self) -> Files:
        """Raises InaccessibleDatastore when there are none, or they cannot be reached."""
        self.check_accessible()
        assert self.store is not None
        return self.store.files

    def check_accessible(self) -> None:
        if self.store is None or not self.accessible:
            raise vim.fault.InaccessibleDatastore(
                msg=f"Datastore {self.name} is not accessible.", datastore=self.ref, name=self.name
            )

    @property
    def url(self) -> str:
        return f"ds:///vmfs/volumes/{self.uuid}/"

    def rename_privilege(self) -> str:
        return "Datastore.Rename"

    def mount(self, host: HostSystem) -> None:
        with self.vcenter.registry.lock:
            if host not in self.hosts:
                self.hosts.append(host)
                host.add_datastore(self)
            self.touch()

    def unmount(self, host: HostSystem) -> None:
        with self.vcenter.registry.lock:
            if host in self.hosts:
                self.hosts.remove(host)
                host.remove_datastore(self)
            self.touch()

    def remove(self) -> None:
        """Unmount everywhere and take the datastore out of the inventory; its bytes stay."""
        for host in list(self.hosts):
            self.unmount(host)
        self.browser.unregister()
        drop(self)

    def take(self, machine: ManagedEntity) -> None:
        """A machine has files here."""
        self._machines[machine.moid] = machine
        self.touch()

    def release(self, machine: ManagedEntity) -> None:
        self._machines.pop(machine.moid, None)
        self.touch()

    def machines(self) -> list[ManagedEntity]:
        return list(self._machines.values())

    def space(self) -> tuple[int, int]:
        """Capacity and free bytes."""
        if self.store is None:
            return 1 << 40, 1 << 39
        space = self.store.files.space()
        return space.capacity_bytes, space.free_bytes

    @computed("summary")
    def _summary(self, _call: Call | None) -> Any:
        capacity, free = self.space()
        return vim.Datastore.Summary(
            datastore=self.ref,
            name=self.name,
            url=self.url,
            capacity=capacity,
            freeSpace=free,
            uncommitted=0,
            accessible=self.accessible,
            multipleHostAccess=len(self.hosts) > 1,
            type=self.kind,
            maintenanceMode="normal",
        )

    @computed("info")
    def _info(self, _call: Call | None) -> Any:
        capacity, free = self.space()
        common = {
            "name": self.name,
            "url": self.url,
            "freeSpace": free,
            "maxFileSize": _MAX_FILE_BYTES,
            "maxVirtualDiskCapacity": _MAX_FILE_BYTES,
            "timestamp": datetime.now(UTC),
        }
        if self.kind != "VMFS":
            remote_host, remote_path = self.remote or ("", "")
            nas = vim.host.NasVolume(
                name=self.name,
                type=self.kind,
                capacity=capacity,
                remoteHost=remote_host,
                remotePath=remote_path,
            )
            return vim.host.NasDatastoreInfo(nas=nas, **common)
        volume = vim.host.VmfsVolume(
            name=self.name,
            type="VMFS",
            capacity=capacity,
            uuid=self.uuid,
            blockSizeMb=1,
            blockSize=1024,
            maxBlocks=63_963_136,
            majorVersion=6,
            version="6.82",
            vmfsUpgradable=False,
            extent=[vim.host.ScsiDisk.Partition(diskName=f"naa.{self.uuid[:8]}", partition=1)],
        )
        return vim.host.VmfsDatastoreInfo(vmfs=volume, **common)

    @computed("host")
    def _host(self, _call: Call | None) -> Any:
        return [
            vim.Datastore.HostMount(
                key=host.ref,
                mountInfo=vim.host.MountInfo(
                    path=f"/vmfs/volumes/{self.uuid}",
                    accessMode="readWrite",
                    mounted=True,
                    accessible=self.accessible,
                ),
            )
            for host in self.hosts
        ]

    @computed("vm")
    def _vm(self, call: Call | None) -> Any:
        machines = self.machines()
        return [m.ref for m in machines if call is None or call.may("System.View", m)]

    @method("RefreshDatastore")
    def refresh(self, _call: Call) -> None:
        self.touch()

    @method("RefreshDatastoreStorageInfo")
    def refresh_storage_info(self, _call: Call) -> None:
        self.touch()
