"""Inventories to start from: a small datacenter, and any number of synthetic machines in it.

Synthetic machines have no engine: they are to be looked at. Their configurations are copies of one
template that share every part which does not differ, so 10,000 of them are made in a second.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from lab.esx.datastore import LabDatastore
from lab.vcenter.compute import ClusterComputeResource, ResourcePool
from lab.vcenter.datastores import Datastore
from lab.vcenter.folders import Datacenter
from lab.vcenter.hosts import HostSystem
from lab.vcenter.networks import DistributedVirtualPortgroup, DistributedVirtualSwitch, Network
from lab.vcenter.virtual_machine import VirtualMachine

if TYPE_CHECKING:
    from lab.vcenter.lab_vcenter import LabVcenter

GUEST_ID, GUEST_NAME = "debian12_64Guest", "Debian GNU/Linux 12 (64-bit)"
_DISK_BYTES = 16 << 30


@dataclass(slots=True, kw_only=True)
class Inventory:
    datacenter: Datacenter
    cluster: ClusterComputeResource
    hosts: list[HostSystem]
    datastores: list[Datastore]
    network: Network
    portgroup: DistributedVirtualPortgroup
    machines: list[VirtualMachine] = field(default_factory=list)

    @property
    def pool(self) -> ResourcePool:
        return self.cluster.root_pool


def build_inventory(
    vcenter: LabVcenter,
    *,
    datacenter: str = "DC0",
    hosts: int | Sequence[str] = 2,
    stores: Sequence[LabDatastore] = (),
) -> Inventory:
    """One datacenter, one cluster, hosts, a standard network and a distributed port group.

    `hosts` is how many, or their names. `stores` are the datastores to show; without them, one
    that has no bytes is made.
    """
    home = Datacenter(vcenter, datacenter, vcenter.root_folder)
    vcenter.root_folder.add(home)
    cluster = ClusterComputeResource(vcenter, f"{datacenter}_C0", home.host_folder)
    if isinstance(hosts, int):
        hosts = [f"esx{number}.{datacenter.lower()}.lab" for number in range(1, hosts + 1)]
    machines = [HostSystem(vcenter, name, cluster) for name in hosts]
    network = Network(vcenter, "VM Network", home)
    switch = DistributedVirtualSwitch(vcenter, f"{datacenter}_DVS", home)
    switch.hosts = list(machines)
    for host in machines:
        host.network_system.install("vSwitch0", ("VM Network",))
        network.attach(host)
    datastores = [Datastore(vcenter, store.name, home, store=store) for store in stores]
    if not datastores:
        datastores = [Datastore(vcenter, "datastore1", home)]
    for datastore in datastores:
        for host in machines:
            datastore.mount(host)
    return Inventory(
        datacenter=home,
        cluster=cluster,
        hosts=machines,
        datastores=datastores,
        network=network,
        portgroup=DistributedVirtualPortgroup(vcenter, f"{datacenter}_DVPG0", switch),
    )


def add_synthetic_machines(inventory: Inventory, count: int, *, prefix: str = "vm") -> None:
    """Make `count` powered-off machines named `{prefix}0001`…, each with one disk and one card."""
    template = _Template(inventory)
    width = max(4, len(str(count)))
    for number in range(1, count + 1):
        template.make(f"{prefix}{number:0{width}d}", number)


class _Template:
    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._disk = synthetic_disk()
        self._others = [
            vim.vm.device.ParaVirtualSCSIController(
                key=1000,
                busNumber=0,
                sharedBus="noSharing",
                scsiCtlrUnitNumber=7,
                hotAddRemove=True,
                controllerKey=100,
                unitNumber=3,
                device=[2000],
                deviceInfo=vim.Description(
                    label="SCSI controller 0", summary="VMware paravirtual SCSI"
                ),
            ),
            vim.vm.device.VirtualVmxnet3(
                key=4000,
                controllerKey=100,
                unitNumber=7,
                macAddress="00:50:56:00:00:01",
                addressType="assigned",
                deviceInfo=vim.Description(label="Network adapter 1", summary="VM Network"),
                backing=vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(
                    deviceName="VM Network", network=inventory.network.ref
                ),
            ),
        ]
        self._config = synthetic_config()
        self._runtime = off_runtime()
        self._capability = vim.vm.Capability(
            snapshotOperationsSupported=True, changeTrackingSupported=True
        )

    def make(self, name: str, number: int) -> VirtualMachine:
        place = self._inventory
        host = place.hosts[number % len(place.hosts)]
        datastore = place.datastores[number % len(place.datastores)]
        folder = f"[{datastore.name}] {name}"
        disk, backing = copy.copy(self._disk), copy.copy(self._disk.backing)
        backing.fileName = f"{folder}/{name}.vmdk"
        backing.datastore = datastore.ref
        backing.uuid = str(uuid.uuid4())
        disk.backing = backing
        config, hardware = copy.copy(self._config), copy.copy(self._config.hardware)
        hardware.device = [*self._others, disk]
        config.hardware = hardware
        config.name = name
        config.uuid, config.instanceUuid = str(uuid.uuid4()), str(uuid.uuid4())
        config.files = vim.vm.FileInfo(vmPathName=f"{folder}/{name}.vmx")
        runtime = copy.copy(self._runtime)
        runtime.host = host.ref
        machine = VirtualMachine(
            host.vcenter,
            name,
            folder=place.datacenter.vm_folder,
            pool=place.pool,
            host=host,
            config=config,
            runtime=runtime,
        )
        machine.set(capability=self._capability)
        machine.use([datastore], [place.network])
        place.machines.append(machine)
        return machine


def synthetic_disk() -> Any:
    return vim.vm.device.VirtualDisk(
        key=2000,
        controllerKey=1000,
        unitNumber=0,
        capacityInKB=_DISK_BYTES >> 10,
        capacityInBytes=_DISK_BYTES,
        deviceInfo=vim.Description(label="Hard disk 1", summary=f"{_DISK_BYTES >> 10:,} KB"),
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            diskMode="persistent", thinProvisioned=True, sharing="sharingNone"
        ),
    )


def synthetic_config() -> Any:
    return vim.vm.ConfigInfo(
        changeVersion=datetime.now(UTC).isoformat(),
        modified=datetime.now(UTC),
        guestFullName=GUEST_NAME,
        guestId=GUEST_ID,
        alternateGuestName="",
        version="vmx-21",
        template=False,
        annotation="",
        firmware="bios",
        changeTrackingEnabled=False,
        flags=vim.vm.FlagInfo(diskUuidEnabled=True),
        defaultPowerOps=vim.vm.DefaultPowerOpInfo(),
        hardware=vim.vm.VirtualHardware(numCPU=1, numCoresPerSocket=1, memoryMB=1024),
    )


def off_runtime() -> Any:
    return vim.vm.RuntimeInfo(
        connectionState="connected",
        powerState="poweredOff",
        faultToleranceState="notConfigured",
        recordReplayState="inactive",
        consolidationNeeded=False,
    )
