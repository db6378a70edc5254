"""Networks as clients see them: standard port groups, and the groups of a distributed switch."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from lab.vcenter.call import Call
from lab.vcenter.folders import Datacenter, drop
from lab.vcenter.managed_object import ManagedEntity, computed, method
from lab.vcenter.names import check_new_name

if TYPE_CHECKING:
    from lab.vcenter.hosts import HostSystem
    from lab.vcenter.lab_vcenter import LabVcenter


class Network(ManagedEntity):
    """A standard port group: one object for all hosts that have a group of that name."""

    vim_type = vim.Network
    moid_prefix = "network"

    def __init__(self, vcenter: LabVcenter, name: str, datacenter: Datacenter) -> None:
        super().__init__(vcenter, name, None)
        self.hosts: list[HostSystem] = []
        self._machines: dict[str, ManagedEntity] = {}
        datacenter.network_folder.add(self)

    def rename_privilege(self) -> str:
        return "Network.Config"

    def attach(self, host: HostSystem) -> None:
        with self.vcenter.registry.lock:
            if host not in self.hosts:
                self.hosts.append(host)
                host.networks.append(self)
            self.touch()
            host.touch()
            host.compute.touch()

    def detach(self, host: HostSystem) -> None:
        """The last host takes the network away with it."""
        with self.vcenter.registry.lock:
            if host in self.hosts:
                self.hosts.remove(host)
                host.networks.remove(self)
            host.touch()
            host.compute.touch()
            self.touch()
            if not self.hosts and type(self) is Network:
                drop(self)

    def take(self, machine: ManagedEntity) -> None:
        """A machine has a network card here."""
        self._machines[machine.moid] = machine
        self.touch()

    def release(self, machine: ManagedEntity) -> None:
        self._machines.pop(machine.moid, None)
        self.touch()

    def machines(self) -> list[ManagedEntity]:
        return list(self._machines.values())

    @computed("host")
    def _host(self, _call: Call | None) -> Any:
        return [host.ref for host in self.hosts]

    @computed("vm")
    def _vm(self, call: Call | None) -> Any:
        machines = self.machines()
        return [m.ref for m in machines if call is None or call.may("System.View", m)]

    @computed("summary")
    def _summary(self, _call: Call | None) -> Any:
        return vim.Network.Summary(
            network=self.ref, name=self.name, accessible=bool(self.hosts), ipPoolName=""
        )


class DistributedVirtualSwitch(ManagedEntity):
    vim_type = vim.dvs.VmwareDistributedVirtualSwitch
    moid_prefix = "dvs"

    def __init__(self, vcenter: LabVcenter, name: str, datacenter: Datacenter) -> None:
        super().__init__(vcenter, name, None)
        self.uuid = _switch_uuid()
        self.home = datacenter
        self.hosts: list[HostSystem] = []
        self.portgroups: list[DistributedVirtualPortgroup] = []
        self.set(uuid=self.uuid)
        datacenter.network_folder.add(self)

    @computed("portgroup")
    def _portgroup(self, _call: Call | None) -> Any:
        return [group.ref for group in self.portgroups]

    @computed("summary")
    def _summary(self, _call: Call | None) -> Any:
        return vim.DistributedVirtualSwitch.Summary(
            name=self.name,
            uuid=self.uuid,
            numPorts=128,
            hostMember=[host.ref for host in self.hosts],
            numHosts=len(self.hosts),
        )

    @method("CreateDVPortgroup_Task", privilege="DVPortgroup.Create")
    def create_portgroup(self, call: Call, spec: Any) -> Any:
        return self._create(call, [spec])

    @method("AddDVPortgroup_Task", privilege="DVPortgroup.Create")
    def add_portgroups(self, call: Call, specs: list[Any]) -> Any:
        return self._create(call, specs)

    def _create(self, call: Call, specs: list[Any]) -> Any:
        for spec in specs:
            check_new_name(self.home.network_folder, spec.name or "")

        def work(_task: Any) -> Any:
            made = [
                DistributedVirtualPortgroup(self.vcenter, spec.name, self, _vlan_of(spec))
                for spec in specs
            ]
            return made[0].ref if len(made) == 1 else None

        return call.start_task(self, work)


class DistributedVirtualPortgroup(Network):
    vim_type = vim.dvs.DistributedVirtualPortgroup
    moid_prefix = "dvportgroup"

    def __init__(
        self, vcenter: LabVcenter, name: str, switch: DistributedVirtualSwitch, vlan: int = 0
    ) -> None:
        super().__init__(vcenter, name, switch.home)
        self.switch = switch
        self.vlan = vlan
        switch.portgroups.append(self)
        switch.touch()
        for host in switch.hosts:
            self.attach(host)
        self.set(key=self.moid)

    @computed("config")
    def _config(self, _call: Call | None) -> Any:
        vlan = vim.dvs.VmwareDistributedVirtualSwitch.VlanIdSpec(inherited=False, vlanId=self.vlan)
        return vim.dvs.DistributedVirtualPortgroup.ConfigInfo(
            key=self.moid,
            name=self.name,
            numPorts=8,
            distributedVirtualSwitch=self.switch.ref,
            defaultPortConfig=vim.dvs.VmwareDistributedVirtualSwitch.VmwarePortConfigPolicy(
                vlan=vlan
            ),
            type="earlyBinding",
            policy=vim.dvs.DistributedVirtualPortgroup.PortgroupPolicy(),
            configVersion="1",
        )

    @method("Destroy_Task", privilege="DVPortgroup.Delete")
    def destroy(self, call: Call) -> Any:
        def work(_task: Any) -> None:
            if self.machines():
                raise vim.fault.ResourceInUse(
                    msg=f"The port group {self.name} is in use.",
                    type=vim.dvs.DistributedVirtualPortgroup,
                    name=self.name,
                )
            self.switch.portgroups.remove(self)
            self.switch.touch()
            for host in list(self.hosts):
                self.detach(host)
            drop(self)

        return call.start_task(self, work)


def _vlan_of(spec: Any) -> int:
    config = spec.defaultPortConfig
    vlan = getattr(config, "vlan", None)
    return int(getattr(vlan, "vlanId", 0) or 0)


def _switch_uuid() -> str:
    digits = uuid.uuid4().hex
    pairs = [digits[i : i + 2] for i in range(0, 32, 2)]
    return f"{' '.join(pairs[:8])}-{' '.join(pairs[8:])}"
