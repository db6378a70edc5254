"""What a client reads of a VirtualMachine that runs: the engine of `lab/esx` behind SOAP.

Every property is worked out from the engine's values at each read; the engine says when to look
again. What a client asks of the machine is `virtual_machine_engine`.
Source: vSphere Web Services API, VirtualMachine; design notes on vSphere, sections 2 to 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from lab.esx.hardware import VmConfig
from lab.esx.virtual_machine import VirtualMachine as Engine
from lab.vcenter.call import Call
from lab.vcenter.folders import Datacenter, Folder
from lab.vcenter.managed_object import computed
from lab.vcenter.networks import DistributedVirtualPortgroup, Network
from lab.vcenter.virtual_machine import VirtualMachine
from lab.vcenter.virtual_machine_config import Lookups, config_info
from lab.vcenter.virtual_machine_snapshot import MachineSnapshot
from lab.vcenter.virtual_machine_spec import NetworkName
from lab.vcenter.virtual_machine_state import (
    capability,
    guest_info,
    layout_ex,
    runtime_info,
    snapshot_info,
    storage_info,
)

if TYPE_CHECKING:
    from lab.vcenter.compute import ResourcePool
    from lab.vcenter.datastores import Datastore
    from lab.vcenter.hosts import HostSystem


class EngineView(VirtualMachine):
    """Its id is the engine's."""

    engine: Engine

    def __init__(
        self, engine: Engine, *, folder: Folder, pool: ResourcePool, host: HostSystem
    ) -> None:
        self.engine = engine
        self._snapshots: dict[int, MachineSnapshot] = {}
        super().__init__(
            folder.vcenter,
            engine.config.name,
            folder=folder,
            pool=pool,
            host=host,
            config=None,
            runtime=None,
            moid=engine.vm_id,
        )
        self.set(capability=capability())
        engine.changed = self._engine_changed
        engine.host_name = host.name
        self._engine_changed()

    # ------------------------------------------------------------------ looking up

    def home(self) -> Datacenter:
        found = self.datacenter()
        assert isinstance(found, Datacenter)
        return found

    def snapshot_ref(self, number: int) -> Any:
        with self.vcenter.registry.lock:
            if number not in self._snapshots:
                self._snapshots[number] = MachineSnapshot(self, number)
            return self._snapshots[number].ref

    def datastore_named(self, name: str) -> Datastore | None:
        found = self._named(self.home().datastore_folder, name)
        return found if found is not None and hasattr(found, "store") else None

    def network_of(self, backing: Any) -> NetworkName:
        return network_name(self.home(), backing)

    def config_info(self, config: VmConfig) -> Any:
        def datastore_ref(name: str) -> Any:
            found = self.datastore_named(name)
            return found.ref if found is not None else None

        def datastore_url(name: str) -> str:
            found = self.datastore_named(name)
            return found.url if found is not None else ""

        def network_ref(name: str) -> Any:
            found = self._named(self.home().network_folder, name)
            return found.ref if found is not None else None

        engine = self.engine
        return config_info(
            config,
            Lookups(
                datastore=datastore_ref,
                datastore_url=datastore_url,
                network=network_ref,
                chain=lambda path: engine.chain_at(path),
            ),
            modified=engine.modified_at,
            change_version=f"{engine.modified_at.isoformat()}.{engine.change_version}",
        )

    def _named(self, folder: Folder, name: str) -> Any:
        from lab.vcenter.managed_object import ManagedEntity

        every = self.home().below(folder, ManagedEntity)
        return next((one for one in every if one.name == name), None)

    def _engine_changed(self) -> None:
        """The engine is another one than before: keep the inventory in step."""
        config = self.engine.config
        with self.vcenter.registry.lock:
            if not self.registered:
                return
            for number in [n for n in self._snapshots if n not in self.engine.snapshots]:
                self._snapshots.pop(number).unregister()
            if self.name != config.name:
                self.set(name=config.name)
            names = {config.vmx_path.datastore, *(disk.path.datastore for disk in config.disks)}
            stores = [found for name in sorted(names) if (found := self.datastore_named(name))]
            cards = dict.fromkeys(nic.network for nic in config.nics)
            every = [self._named(self.home().network_folder, name) for name in cards]
            networks = [found for found in every if isinstance(found, Network)]
            if (stores, networks) != (self.datastores, self.networks):
                self.use(stores, networks)
            self.touch()

    # ------------------------------------------------------------------ properties

    @computed("config")
    def _config(self, _call: Call | None) -> Any:
        return self.config_info(self.engine.config)

    @computed("runtime")
    def _runtime(self, _call: Call | None) -> Any:
        return runtime_info(self.engine, self.host.ref)

    @computed("guest")
    def _guest(self, _call: Call | None) -> Any:
        return guest_info(self.engine)

    @computed("guestHeartbeatStatus")
    def _heartbeat(self, _call: Call | None) -> Any:
        return self.engine.guest_info.heartbeat.value

    @computed("snapshot")
    def _snapshot(self, _call: Call | None) -> Any:
        return snapshot_info(self.engine, self.snapshot_ref, self.ref)

    @computed("rootSnapshot")
    def _root_snapshot(self, _call: Call | None) -> Any:
        roots = [one.id for one in self.engine.snapshots.values() if one.parent is None]
        return [self.snapshot_ref(number) for number in sorted(roots)]

    @computed("layoutEx")
    def _layout_ex(self, _call: Call | None) -> Any:
        return layout_ex(self.engine, self.snapshot_ref)

    @computed("storage")
    def _storage(self, _call: Call | None) -> Any:
        def datastore_ref(name: str) -> Any:
            found = self.datastore_named(name)
            return found.ref if found is not None else None

        return storage_info(self.engine, datastore_ref)

    @computed("summary")
    def _summary_with_guest(self, call: Call | None) -> Any:
        summary = super()._summary(call)
        guest, engine = guest_info(self.engine), self.engine
        for name in ("toolsStatus", "toolsRunningStatus", "toolsVersionStatus2", "hostName"):
            setattr(summary.guest, name, getattr(guest, name))
        summary.guest.ipAddress = guest.ipAddress
        usage = self._storage(call).perDatastoreUsage
        summary.storage = vim.vm.Summary.StorageSummary(
            committed=sum(one.committed for one in usage),
            uncommitted=sum(one.uncommitted for one in usage),
            unshared=sum(one.unshared for one in usage),
            timestamp=engine.site.now(),
        )
        summary.config.numVirtualDisks = len(engine.config.disks)
        summary.config.numEthernetCards = len(engine.config.nics)
        summary.quickStats.guestHeartbeatStatus = engine.guest_info.heartbeat.value
        return summary


def network_name(home: Datacenter, backing: Any) -> NetworkName:
    """The port group that a network card's backing means. Raises faults."""
    every = [one for one in home.below(home.network_folder, Network)]
    if isinstance(backing, vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo):
        for one in every:
            if isinstance(one, DistributedVirtualPortgroup) and (
                one.moid == backing.port.portgroupKey
            ):
                return NetworkName(one.name, backing.port.switchUuid, one.moid)
        raise vim.fault.NotFound(msg="There is no such distributed port group.")
    name = getattr(backing, "deviceName", None) or ""
    ref = getattr(backing, "network", None)
    for one in every:
        if isinstance(one, Network) and (one.name == name or (ref and one.moid == ref._moId)):
            return NetworkName(one.name)
    raise vim.fault.InvalidDeviceBacking(
        msg=f"There is no network {name!r}.", deviceIndex=0, property="backing"
    )
