"""Datastore objects: what vCenter shows of a datastore whose bytes are in `lab/esx`."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from lab.esx.datastore import LabDatastore
from lab.esx.files import Files
from lab.esx.nas_datastore import NasDatastore
from lab.esx.nfs_mount import Remote
from lab.vcenter.call import Call
from lab.vcenter.datastore_browser import DatastoreBrowser
from lab.vcenter.folders import Datacenter, drop
from lab.vcenter.host_faults import host_faults
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
        if isinstance(store, NasDatastore):
            store.changed = self._paths_changed

    @property
    def remote(self) -> Remote | None:
        """The export, where it is one."""
        return self.store.remote if isinstance(self.store, NasDatastore) else None

    @property
    def accessible(self) -> bool:
        return self.store is None or self.store.accessible

    def _paths_changed(self) -> None:
        self.touch()
        for machine in self.machines():
            machine.touch()

    @property
    def files(self) -> Files:
        """Raises InaccessibleDatastore when there are none, or they cannot be reached."""
        self.check_accessible()
        assert self.store is not None
        with host_faults():
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

    def unmount_from(self, host: HostSystem) -> None:
        """Take it from a host, and out of the inventory with the last; its bytes stay.

        Raises ResourceInUse; NotSupported for what is no NFS datastore. The caller has the
        datacenter's `mounting`.
        """
        store, home = self.store, self.datacenter()
        if not isinstance(store, NasDatastore) or not isinstance(home, Datacenter):
            raise vmodl.fault.NotSupported(msg="Only NFS datastores can be removed here.")
        assert home.library is not None
        last = self.hosts == [host]
        used = [one.name for one in self.machines() if last or one in host.machines()]
        locks = [lock.holder for lock in home.library.site.locks.all_locks_of(self.name)]
        if used or (last and locks):
            by = ", ".join(used or locks)
            raise vim.fault.ResourceInUse(
                msg=f"The resource '{self.name}' is in use by {by}.",
                type=vim.Datastore,
                name=self.name,
            )
        self.unmount(host)
        if last:
            home.library.site.datastores.remove(self.name)
            self.browser.unregister()
            drop(self)
        store.unmount_from(host.moid)

    @method("DestroyDatastore")
    def destroy_datastore(self, _call: Call) -> None:
        self._destroy()

    @method("Destroy_Task", privilege="Datastore.Delete")
    def destroy(self, call: Call) -> Any:
        return call.start_task(self, lambda _task: self._destroy())

    def _destroy(self) -> None:
        home = self.datacenter()
        assert isinstance(home, Datacenter)
        with home.mounting:
            for host in list(self.hosts):
                self.unmount_from(host)

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
        space = self.store.space()
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
            remote = self.remote
            assert remote is not None
            nas = vim.host.NasVolume(
                name=self.name,
                type=self.kind,
                capacity=capacity,
                remoteHost=remote.host,
                remotePath=remote.path,
                remoteHostNames=[remote.host],
                securityType="AUTH_SYS",
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
            vim.Datastore.HostMount(key=host.ref, mountInfo=self._mount_info(host))
            for host in self.hosts
        ]

    def _mount_info(self, host: HostSystem) -> Any:
        store = self.store
        mount = store.mount_of(host.moid) if isinstance(store, NasDatastore) else None
        return vim.host.MountInfo(
            path=f"/vmfs/volumes/{self.uuid}",
            accessMode="readOnly" if mount is not None and mount.read_only else "readWrite",
            mounted=True,
            accessible=mount is None or mount.accessible,
            inaccessibleReason=(mount.reason or None) if mount is not None else None,
        )

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
