"""HostSystem: an ESXi host as vCenter shows it. What runs on it is `lab/esx`."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from lab.vcenter.api_versions import API_VERSION
from lab.vcenter.call import Call
from lab.vcenter.compute import ComputeResource
from lab.vcenter.host_datastores import HostDatastoreSystem
from lab.vcenter.host_network import HostNetworkSystem, is_address
from lab.vcenter.managed_object import ManagedEntity, computed
from lab.vcenter.options import OptionManager

if TYPE_CHECKING:
    from lab.vcenter.datastores import Datastore
    from lab.vcenter.lab_vcenter import LabVcenter
    from lab.vcenter.networks import Network

ESXI_VERSION = "8.0.3"
ESXI_BUILD = "24022510"
_CORES, _HERTZ, _MEMORY_BYTES = 16, 2_400_000_000, 128 << 30


class HostSystem(ManagedEntity):
    """Subclassing, or `config_managers`, is how a host gets further managers (B's, C's)."""

    vim_type = vim.HostSystem
    moid_prefix = "host"

    def __init__(self, vcenter: LabVcenter, name: str, parent: ComputeResource) -> None:
        super().__init__(vcenter, name, parent)
        self.compute = parent
        self.https_port = 443  # of its own server; the data plane sets it
        self.networks: list[Network] = []
        self.datastores: list[Datastore] = []
        self._machines: dict[str, ManagedEntity] = {}
        self.network_system = HostNetworkSystem(vcenter, self)
        self.datastore_system = HostDatastoreSystem(vcenter, self)
        self.advanced_options = OptionManager(vcenter, guarded_by=self)
        self.config_managers: dict[str, Any] = {
            "networkSystem": self.network_system.ref,
            "datastoreSystem": self.datastore_system.ref,
            "advancedOption": self.advanced_options.ref,
        }
        self.set(
            hardware=_hardware(),
            runtime=vim.host.RuntimeInfo(
                connectionState="connected",
                powerState="poweredOn",
                inMaintenanceMode=False,
                bootTime=datetime.now(UTC),
            ),
        )
        parent.add_host(self)

    def rename_privilege(self) -> str:
        return "Host.Inventory.MoveHost"

    @property
    def vmkernel_address(self) -> str:
        """What its NFS client calls from; empty where the lab cannot give the host one."""
        return self.name if is_address(self.name) else ""

    def view_children(self) -> list[ManagedEntity]:
        return list(self._machines.values())

    def take(self, machine: ManagedEntity) -> None:
        self._machines[machine.moid] = machine
        self.touch()

    def release(self, machine: ManagedEntity) -> None:
        self._machines.pop(machine.moid, None)
        self.touch()

    def machines(self) -> list[ManagedEntity]:
        return list(self._machines.values())

    def add_datastore(self, datastore: Datastore) -> None:
        self.datastores.append(datastore)
        self.touch()
        self.compute.touch()

    def remove_datastore(self, datastore: Datastore) -> None:
        if datastore in self.datastores:
            self.datastores.remove(datastore)
        self.touch()
        self.compute.touch()

    def add_config_manager(self, name: str, manager: Any) -> None:
        """Show a manager in `configManager` under its VMODL name, such as `datastoreSystem`."""
        self.config_managers[name] = manager.ref
        self.touch()

    @computed("configManager")
    def _config_manager(self, _call: Call | None) -> Any:
        return vim.host.ConfigManager(**self.config_managers)

    @computed("vm")
    def _vm(self, call: Call | None) -> Any:
        machines = self.machines()
        return [m.ref for m in machines if call is None or call.may("System.View", m)]

    @computed("datastore")
    def _datastore(self, _call: Call | None) -> Any:
        return [datastore.ref for datastore in self.datastores]

    @computed("network")
    def _network(self, _call: Call | None) -> Any:
        return [network.ref for network in self.networks]

    @computed("datastoreBrowser")
    def _browser(self, _call: Call | None) -> Any:
        return self.datastores[0].browser.ref if self.datastores else None

    @computed("config")
    def _config(self, _call: Call | None) -> Any:
        return vim.host.ConfigInfo(
            host=self.ref, product=product(), network=self.network_system.network_info()
        )

    @computed("summary")
    def _summary(self, _call: Call | None) -> Any:
        hardware = self.get("hardware")
        return vim.host.Summary(
            host=self.ref,
            hardware=vim.host.Summary.HardwareSummary(
                vendor=hardware.systemInfo.vendor,
                model=hardware.systemInfo.model,
                uuid=hardware.systemInfo.uuid,
                memorySize=hardware.memorySize,
                cpuModel="Practice CPU",
                cpuMhz=_HERTZ // 1_000_000,
                numCpuPkgs=hardware.cpuInfo.numCpuPackages,
                numCpuCores=hardware.cpuInfo.numCpuCores,
                numCpuThreads=hardware.cpuInfo.numCpuThreads,
                numNics=1,
                numHBAs=1,
            ),
            runtime=self.get("runtime"),
            config=vim.host.Summary.ConfigSummary(
                name=self.name, port=self.https_port, product=product(), vmotionEnabled=True
            ),
            quickStats=vim.host.Summary.QuickStats(overallCpuUsage=100, overallMemoryUsage=1024),
            overallStatus="green",
            rebootRequired=False,
        )


def product() -> Any:
    return vim.AboutInfo(
        name="VMware ESXi",
        fullName=f"VMware ESXi {ESXI_VERSION} build-{ESXI_BUILD}",
        vendor="VMware, Inc.",
        version=ESXI_VERSION,
        build=ESXI_BUILD,
        localeVersion="INTL",
        localeBuild="000",
        osType="vmnix-x86",
        productLineId="embeddedEsx",
        apiType="HostAgent",
        apiVersion=API_VERSION,
        licenseProductName="VMware ESX Server",
        licenseProductVersion="8.0",
    )


def _hardware() -> Any:
    return vim.host.HardwareInfo(
        systemInfo=vim.host.SystemInfo(
            vendor="Holdfast", model="Practice host", uuid=str(uuid.uuid4())
        ),
        cpuInfo=vim.host.CpuInfo(
            numCpuPackages=1, numCpuCores=_CORES, numCpuThreads=2 * _CORES, hz=_HERTZ
        ),
        memorySize=_MEMORY_BYTES,
    )
