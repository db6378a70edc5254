"""VirtualMachine objects: the least of one; what runs and has disks is bound to it by `lab/esx`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from lab.vcenter.call import Call
from lab.vcenter.folders import Folder, drop
from lab.vcenter.managed_object import ManagedEntity, computed, method

if TYPE_CHECKING:
    from lab.esx.virtual_machine import VirtualMachine as EngineVm
    from lab.vcenter.compute import ResourcePool
    from lab.vcenter.datastores import Datastore
    from lab.vcenter.hosts import HostSystem
    from lab.vcenter.lab_vcenter import LabVcenter
    from lab.vcenter.networks import Network


class VirtualMachine(ManagedEntity):
    """Made in its folder, on its host and in its pool; `remove` takes it out of all of them."""

    vim_type = vim.VirtualMachine
    moid_prefix = "vm"
    engine: EngineVm | None = None  # None: only to be looked at

    def __init__(
        self,
        vcenter: LabVcenter,
        name: str,
        *,
        folder: Folder,
        pool: ResourcePool,
        host: HostSystem,
        config: Any,
        runtime: Any,
        moid: str | None = None,
    ) -> None:
        super().__init__(vcenter, name, folder, moid)
        self.pool = pool
        self.host = host
        self.datastores: list[Datastore] = []
        self.networks: list[Network] = []
        self.set(config=config, runtime=runtime, guestHeartbeatStatus="gray")
        folder.add(self)
        pool.take(self)
        host.take(self)

    def rename_privilege(self) -> str:
        return "VirtualMachine.Config.Rename"

    def use(self, datastores: list[Datastore], networks: list[Network]) -> None:
        """Say which datastores and networks the machine has files and cards on."""
        for place in self._places():
            place.release(self)
        self.datastores, self.networks = list(datastores), list(networks)
        for place in self._places():
            place.take(self)
        self.touch()

    def _places(self) -> list[Datastore | Network]:
        return [*self.datastores, *self.networks]

    def remove(self) -> None:
        """Take the machine out of the inventory; its files stay."""
        self.use([], [])
        self.pool.release(self)
        self.host.release(self)
        drop(self)

    def start_power_on(self, _call: Call) -> Any:
        """Start the power-on task and return its reference."""
        raise vmodl.fault.NotSupported(msg="This virtual machine has no engine.")

    @method("ExportVm")
    def export_vm(self, call: Call) -> Any:
        """A lease over the disks as they are; the machine must be off."""
        from lab.data_plane.soap_lease import Leased

        plane = self.vcenter.data_plane
        if plane is None or self.engine is None:
            raise vmodl.fault.NotSupported(msg="This virtual machine has no disks to export.")
        leased = Leased(entity=self, engine=self.engine, config=self.engine.config)
        return plane.leases.export_vm(call, leased, self.host)

    @computed("resourcePool")
    def _resource_pool(self, _call: Call | None) -> Any:
        return self.pool.ref

    @computed("datastore")
    def _datastore(self, _call: Call | None) -> Any:
        return [datastore.ref for datastore in self.datastores]

    @computed("network")
    def _network(self, _call: Call | None) -> Any:
        return [network.ref for network in self.networks]

    @computed("summary")
    def _summary(self, _call: Call | None) -> Any:
        config = self.get("config")
        return vim.vm.Summary(
            vm=self.ref,
            runtime=self.get("runtime"),
            guest=vim.vm.Summary.GuestSummary(
                guestId=config.guestId, guestFullName=config.guestFullName
            ),
            config=vim.vm.Summary.ConfigSummary(
                name=self.name,
                template=config.template,
                vmPathName=config.files.vmPathName,
                memorySizeMB=config.hardware.memoryMB,
                numCpu=config.hardware.numCPU,
                uuid=config.uuid,
                instanceUuid=config.instanceUuid,
                guestId=config.guestId,
                guestFullName=config.guestFullName,
                annotation=config.annotation,
            ),
            quickStats=vim.vm.Summary.QuickStats(),
            overallStatus="green",
        )
