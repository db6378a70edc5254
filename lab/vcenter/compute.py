"""Clusters, stand-alone compute resources and resource pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from lab.vcenter.call import Call
from lab.vcenter.folders import Folder
from lab.vcenter.managed_object import ManagedEntity, computed, method
from lab.vcenter.names import check_new_name

if TYPE_CHECKING:
    from lab.vcenter.hosts import HostSystem
    from lab.vcenter.lab_vcenter import LabVcenter


class ComputeResource(ManagedEntity):
    vim_type = vim.ComputeResource
    moid_prefix = "domain-s"

    def __init__(self, vcenter: LabVcenter, name: str, parent: Folder) -> None:
        super().__init__(vcenter, name, parent, vcenter.registry.allocate(self.moid_prefix))
        self.hosts: list[HostSystem] = []
        self.root_pool = ResourcePool(vcenter, "Resources", self, self)
        parent.add(self)

    def children(self) -> list[ManagedEntity]:
        return [*self.hosts, self.root_pool]

    def add_host(self, host: HostSystem) -> None:
        self.hosts.append(host)
        self.touch()

    def rename_privilege(self) -> str:
        return "Host.Inventory.RenameCluster"

    @computed("resourcePool")
    def _resource_pool(self, _call: Call | None) -> Any:
        return self.root_pool.ref

    @computed("host")
    def _host(self, _call: Call | None) -> Any:
        return [host.ref for host in self.hosts]

    @computed("datastore")
    def _datastore(self, _call: Call | None) -> Any:
        return _union(host.get("datastore") for host in self.hosts)

    @computed("network")
    def _network(self, _call: Call | None) -> Any:
        return _union(host.get("network") for host in self.hosts)

    @computed("summary")
    def _summary(self, _call: Call | None) -> Any:
        return vim.ComputeResource.Summary(**self._figures())

    def _figures(self) -> dict[str, Any]:
        hardware = [host.get("hardware") for host in self.hosts]
        cores = sum(h.cpuInfo.numCpuCores for h in hardware)
        megahertz = sum(h.cpuInfo.numCpuCores * h.cpuInfo.hz // 1_000_000 for h in hardware)
        memory = sum(h.memorySize for h in hardware)
        return {
            "totalCpu": megahertz,
            "totalMemory": memory,
            "numCpuCores": cores,
            "numCpuThreads": sum(h.cpuInfo.numCpuThreads for h in hardware),
            "effectiveCpu": megahertz,
            "effectiveMemory": memory >> 20,
            "numHosts": len(self.hosts),
            "numEffectiveHosts": len(self.hosts),
            "overallStatus": "green",
        }


def _union(groups: Any) -> list[Any]:
    return list({ref._moId: ref for group in groups for ref in group or []}.values())


class ClusterComputeResource(ComputeResource):
    vim_type = vim.ClusterComputeResource
    moid_prefix = "domain-c"

    def __init__(self, vcenter: LabVcenter, name: str, parent: Folder) -> None:
        super().__init__(vcenter, name, parent)
        self.set(
            configuration=vim.cluster.ConfigInfo(
                dasConfig=vim.cluster.DasConfigInfo(enabled=False),
                drsConfig=vim.cluster.DrsConfigInfo(enabled=False),
            ),
            configurationEx=vim.cluster.ConfigInfoEx(
                dasConfig=vim.cluster.DasConfigInfo(enabled=False),
                drsConfig=vim.cluster.DrsConfigInfo(enabled=False),
            ),
        )

    @computed("summary")
    def _summary(self, _call: Call | None) -> Any:
        return vim.ClusterComputeResource.Summary(
            currentFailoverLevel=0, numVmotions=0, **self._figures()
        )


class ResourcePool(ManagedEntity):
    vim_type = vim.ResourcePool
    moid_prefix = "resgroup"

    def __init__(
        self, vcenter: LabVcenter, name: str, parent: ManagedEntity, owner: ComputeResource
    ) -> None:
        super().__init__(vcenter, name, parent)
        self.owner_resource = owner
        self._pools: list[ResourcePool] = []
        self._machines: dict[str, ManagedEntity] = {}
        self.set(owner=owner.ref, config=pool_config())

    def rename_privilege(self) -> str:
        return "Resource.RenamePool"

    def children(self) -> list[ManagedEntity]:
        return list(self._pools)

    def view_children(self) -> list[ManagedEntity]:
        return [*self._pools, *self._machines.values()]

    def take(self, machine: ManagedEntity) -> None:
        self._machines[machine.moid] = machine
        self.touch()

    def release(self, machine: ManagedEntity) -> None:
        self._machines.pop(machine.moid, None)
        self.touch()

    @computed("resourcePool")
    def _resource_pool(self, _call: Call | None) -> Any:
        return [pool.ref for pool in self._pools]

    @computed("vm")
    def _vm(self, call: Call | None) -> Any:
        machines = list(self._machines.values())
        return [m.ref for m in machines if call is None or call.may("System.View", m)]

    @computed("runtime")
    def _runtime(self, _call: Call | None) -> Any:
        usage = {
            "reservationUsed": 0,
            "reservationUsedForVm": 0,
            "unreservedForPool": 0,
            "unreservedForVm": 0,
            "overallUsage": 0,
            "maxUsage": 0,
        }
        return vim.ResourcePool.RuntimeInfo(
            memory=vim.ResourcePool.ResourceUsage(**usage),
            cpu=vim.ResourcePool.ResourceUsage(**usage),
            overallStatus="green",
        )

    @computed("summary")
    def _summary(self, call: Call | None) -> Any:
        return vim.ResourcePool.Summary(
            name=self.name, config=self.get("config"), runtime=self._runtime(call)
        )

    @method("CreateResourcePool")
    def create_pool(self, _call: Call, name: str, spec: Any) -> Any:
        check_new_name(self, name)
        pool = ResourcePool(self.vcenter, name, self, self.owner_resource)
        pool.set(config=spec)
        self._pools.append(pool)
        self.touch()
        return pool.ref

    @method("ImportVApp")
    def import_vapp(self, call: Call, spec: Any, folder: Any, host: Any) -> Any:
        from lab.vcenter.hosts import HostSystem

        plane = self.vcenter.data_plane
        if plane is None or folder is None:
            raise vmodl.fault.NotSupported(msg="There is nothing to import to.")
        call.require("VApp.Import", self)
        return plane.leases.import_vapp(
            call,
            self,
            spec,
            call.resolve(folder, Folder),
            call.resolve(host, HostSystem) if host is not None else None,
        )

    @method("Destroy_Task", privilege="Resource.DeletePool")
    def destroy(self, call: Call) -> Any:
        def work(_task: Any) -> None:
            if not isinstance(self.parent, ResourcePool):
                raise vim.fault.InvalidState(msg="The root resource pool stays.")
            for machine in self._machines.values():
                self.parent.take(machine)
            self.parent._pools.remove(self)
            self.parent.touch()
            self.unregister()

        return call.start_task(self, work)


def pool_config() -> Any:
    allocation = {
        "reservation": 0,
        "expandableReservation": True,
        "limit": -1,
        "shares": vim.SharesInfo(shares=4000, level="normal"),
    }
    return vim.ResourceConfigSpec(
        cpuAllocation=vim.ResourceAllocationInfo(**allocation),
        memoryAllocation=vim.ResourceAllocationInfo(**allocation),
    )
