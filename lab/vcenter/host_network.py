"""HostNetworkSystem: standard switches and port groups of one host.

Its vmkernel adapters are where NFS servers see the host: vmk0 has the host's own address, from
which the host reads and writes files, and vmk1 is the address of this machine from which the QEMU
of each running machine reaches its disks.

A port group of a name makes the Network object of that name in the host's datacenter, or joins the
one that other hosts have made. Removal refuses what is in use.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from lab.vcenter.call import Call
from lab.vcenter.folders import Datacenter
from lab.vcenter.managed_object import LabObject, computed, method

if TYPE_CHECKING:
    from lab.vcenter.hosts import HostSystem
    from lab.vcenter.lab_vcenter import LabVcenter
    from lab.vcenter.networks import Network

_VLAN_LIMIT = 4095
_QEMU_ADDRESS = "127.0.0.1"
_MANAGEMENT = "Management Network"
_NAME_LIMIT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PortGroup:
    name: str
    vlan: int
    switch: str


class HostNetworkSystem(LabObject):
    vim_type = vim.host.NetworkSystem
    moid_prefix = "networkSystem"

    def __init__(self, vcenter: LabVcenter, host: HostSystem) -> None:
        super().__init__(vcenter)
        self.host = host
        self.switches: dict[str, Any] = {}  # name -> vim.host.VirtualSwitch.Specification or None
        self.port_groups: dict[str, PortGroup] = {}

    def guarded_by(self) -> LabObject:
        return self.host

    def install(self, switch: str, port_groups: tuple[str, ...]) -> None:
        """What a fresh host has; the networks are attached by who calls."""
        self.switches[switch] = None
        for name in port_groups:
            self.port_groups[name] = PortGroup(name=name, vlan=0, switch=switch)

    @method("AddVirtualSwitch")
    def add_switch(self, _call: Call, name: str, spec: Any) -> None:
        if not name or len(name) > _NAME_LIMIT:
            raise vmodl.fault.InvalidArgument(msg="The name is invalid.", invalidProperty="name")
        with self.vcenter.registry.lock:
            if name in self.switches:
                raise vim.fault.AlreadyExists(msg=f"The switch {name} exists.", name=name)
            self.switches[name] = spec
            self._changed()

    @method("RemoveVirtualSwitch")
    def remove_switch(self, _call: Call, name: str) -> None:
        with self.vcenter.registry.lock:
            if name not in self.switches:
                raise vim.fault.NotFound(msg=f"There is no switch {name}.")
            mine = [group for group in self.port_groups.values() if group.switch == name]
            if any(self._in_use(group) for group in mine):
                raise vim.fault.ResourceInUse(
                    msg=f"The switch {name} is in use.", type=vim.Network, name=name
                )
            for group in mine:
                self._remove(group)
            del self.switches[name]
            self._changed()

    @method("AddPortGroup")
    def add_port_group(self, _call: Call, spec: Any) -> None:
        if not spec.name or not 0 <= spec.vlanId <= _VLAN_LIMIT:
            raise vmodl.fault.InvalidArgument(
                msg="The port group is invalid.", invalidProperty="portgrp"
            )
        with self.vcenter.registry.lock:
            if spec.vswitchName not in self.switches:
                raise vim.fault.NotFound(msg=f"There is no switch {spec.vswitchName}.")
            if spec.name in self.port_groups:
                raise vim.fault.AlreadyExists(
                    msg=f"The port group {spec.name} exists.", name=spec.name
                )
            self.port_groups[spec.name] = PortGroup(
                name=spec.name, vlan=spec.vlanId, switch=spec.vswitchName
            )
            self._network_named(spec.name).attach(self.host)
            self._changed()

    @method("RemovePortGroup")
    def remove_port_group(self, _call: Call, name: str) -> None:
        with self.vcenter.registry.lock:
            group = self.port_groups.get(name)
            if group is None:
                raise vim.fault.NotFound(msg=f"There is no port group {name}.")
            if self._in_use(group):
                raise vim.fault.ResourceInUse(
                    msg=f"The port group {name} is in use.", type=vim.Network, name=name
                )
            self._remove(group)
            self._changed()

    def _remove(self, group: PortGroup) -> None:
        del self.port_groups[group.name]
        self._network_named(group.name).detach(self.host)

    def _in_use(self, group: PortGroup) -> bool:
        mine = {machine.moid for machine in self.host.machines()}
        return any(m.moid in mine for m in self._network_named(group.name).machines())

    def _network_named(self, name: str) -> Network:
        from lab.vcenter.networks import Network

        datacenter = self.host.datacenter()
        assert isinstance(datacenter, Datacenter)
        for child in datacenter.network_folder.children():
            if isinstance(child, Network) and child.name == name:
                return child
        return Network(self.vcenter, name, datacenter)

    def _changed(self) -> None:
        self.touch()
        self.host.touch()

    @computed("networkInfo")
    def _network_info(self, _call: Call | None) -> Any:
        return self.network_info()

    def network_info(self) -> Any:
        groups = list(self.port_groups.values())
        return vim.host.NetworkInfo(
            vnic=self._vmkernel_adapters(),
            vswitch=[
                vim.host.VirtualSwitch(
                    name=name,
                    key=f"key-vim.host.VirtualSwitch-{name}",
                    numPorts=128,
                    numPortsAvailable=120,
                    portgroup=[_key(group) for group in groups if group.switch == name],
                    spec=spec or vim.host.VirtualSwitch.Specification(numPorts=128),
                )
                for name, spec in self.switches.items()
            ],
            portgroup=[
                vim.host.PortGroup(
                    key=_key(group),
                    vswitch=f"key-vim.host.VirtualSwitch-{group.switch}",
                    computedPolicy=vim.host.NetworkPolicy(),
                    spec=vim.host.PortGroup.Specification(
                        name=group.name,
                        vlanId=group.vlan,
                        vswitchName=group.switch,
                        policy=vim.host.NetworkPolicy(),
                    ),
                )
                for group in groups
            ],
        )

    def _vmkernel_adapters(self) -> list[Any]:
        addresses = dict.fromkeys([self.host.vmkernel_address or _QEMU_ADDRESS, _QEMU_ADDRESS])
        return [
            vim.host.VirtualNic(
                device=f"vmk{number}",
                key=f"key-vim.host.VirtualNic-vmk{number}",
                portgroup=_MANAGEMENT,
                spec=vim.host.VirtualNic.Specification(
                    ip=vim.host.IpConfig(dhcp=False, ipAddress=address, subnetMask="255.0.0.0"),
                    mac=f"00:50:56:6f:00:{number:02x}",
                    mtu=1500,
                    portgroup=_MANAGEMENT,
                ),
            )
            for number, address in enumerate(addresses)
        ]


def is_address(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).version == 4
    except ValueError:
        return False


def _key(group: PortGroup) -> str:
    return f"key-vim.host.PortGroup-{group.name}"
