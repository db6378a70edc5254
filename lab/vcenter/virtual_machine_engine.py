"""VirtualMachine objects that run: the engine of `lab/esx` behind SOAP.

Every property is worked out from the engine's values at each read; the engine says when to look
again. Every method translates, starts a task, and lets `lab/esx` decide.
Source: vSphere Web Services API, VirtualMachine; design notes on vSphere, sections 2 to 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from lab.esx import vm_power, vm_snapshots
from lab.esx.datastore_path import DatastorePath
from lab.esx.hardware import VmConfig
from lab.esx.virtual_machine import VirtualMachine as Engine
from lab.esx.vm_changed_areas import query_changed_areas
from lab.esx.vm_consolidation import consolidate
from lab.esx.vm_library import VmLibrary
from lab.esx.vm_reconfigure import reconfigure
from lab.esx.vm_screen import take_screenshot
from lab.esx.vm_state import NotSupportedError, PowerState
from lab.vcenter.call import Call
from lab.vcenter.folders import Datacenter, Folder
from lab.vcenter.host_faults import host_faults
from lab.vcenter.managed_object import computed, method
from lab.vcenter.networks import DistributedVirtualPortgroup, Network
from lab.vcenter.tasks import TaskControl
from lab.vcenter.virtual_machine import VirtualMachine
from lab.vcenter.virtual_machine_config import Lookups, config_info
from lab.vcenter.virtual_machine_relocate import Destination, relocate_request
from lab.vcenter.virtual_machine_snapshot import MachineSnapshot
from lab.vcenter.virtual_machine_spec import NetworkName, privileges_of, reconfigure_request
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


class EngineMachine(VirtualMachine):
    """Made over an engine that its library has; its id is the engine's."""

    engine: Engine

    def __init__(
        self,
        engine: Engine,
        library: VmLibrary,
        *,
        folder: Folder,
        pool: ResourcePool,
        host: HostSystem,
    ) -> None:
        self.engine = engine
        self.library = library
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

    def start(
        self, call: Call, work: Callable[[TaskControl], Any], *, cancelable: bool = False
    ) -> Any:
        return call.start_task(self, work, cancelable=cancelable)

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

    # ------------------------------------------------------------------ power

    def start_power_on(self, call: Call) -> Any:
        call.require("VirtualMachine.Interact.PowerOn", self)
        return self._power_on(call)

    @method("PowerOnVM_Task")
    def power_on(self, call: Call, _host: Any) -> Any:
        return self._power_on(call)

    def _power_on(self, call: Call) -> Any:
        def work(task: TaskControl) -> None:
            with host_faults():
                vm_power.power_on(self.engine, task)

        return self.start(call, work, cancelable=True)

    @method("PowerOffVM_Task")
    def power_off(self, call: Call) -> Any:
        return self._run(call, lambda: vm_power.power_off(self.engine))

    @method("ResetVM_Task")
    def reset(self, call: Call) -> Any:
        return self._run(call, lambda: vm_power.reset(self.engine))

    @method("SuspendVM_Task")
    def suspend(self, call: Call) -> Any:
        def refuse() -> None:
            raise NotSupportedError("machines of this host cannot be suspended")

        return self._run(call, refuse)

    @method("ShutdownGuest")
    def shut_down(self, _call: Call) -> None:
        with host_faults():
            vm_power.shut_down_guest(self.engine)

    @method("AnswerVM")
    def answer(self, _call: Call, question_id: str, choice: str) -> None:
        with host_faults():
            self.engine.answer(question_id, choice)

    @method("CreateScreenshot_Task")
    def screenshot(self, call: Call) -> Any:
        return self._run(call, lambda: str(take_screenshot(self.engine)))

    # ------------------------------------------------------------------ snapshots

    @method("CreateSnapshot_Task")
    def create_snapshot(
        self, call: Call, name: str, description: str | None, memory: bool, quiesce: bool
    ) -> Any:
        return self._snapshot_task(call, name, description, memory, quiesce)

    @method("CreateSnapshotEx_Task")
    def create_snapshot_ex(
        self, call: Call, name: str, description: str | None, memory: bool, quiesce: Any
    ) -> Any:
        return self._snapshot_task(call, name, description, memory, quiesce is not None)

    def _snapshot_task(
        self, call: Call, name: str, description: str | None, memory: bool, quiesce: bool
    ) -> Any:
        plain = name.replace("%2f", "/").replace("%5c", "\\").replace("%25", "%")
        request = vm_snapshots.SnapshotRequest(
            name=plain, description=description or "", memory=memory, quiesce=quiesce
        )

        def work(task: TaskControl) -> Any:
            with host_faults():
                snapshot = vm_snapshots.create_snapshot(self.engine, request, task)
            return self.snapshot_ref(snapshot.id)

        return self.start(call, work, cancelable=True)

    @method("RemoveAllSnapshots_Task")
    def remove_all_snapshots(self, call: Call, merge: bool | None, _spec: Any) -> Any:
        def work(task: TaskControl) -> None:
            with host_faults():
                for one in sorted(self.engine.snapshots.values(), key=lambda one: one.id):
                    if one.parent is None:
                        vm_snapshots.remove_snapshot(
                            self.engine,
                            one.id,
                            children=True,
                            consolidate=merge is not False,
                            work=task,
                        )

        return self.start(call, work)

    @method("RevertToCurrentSnapshot_Task")
    def revert_to_current(self, call: Call, _host: Any, _suppress: bool | None) -> Any:
        def work(task: TaskControl) -> None:
            current = self.engine.current_snapshot
            if current is None:
                raise vim.fault.NotFound(msg="The machine has no snapshot.")
            with host_faults():
                vm_snapshots.revert_to_snapshot(self.engine, current, task)

        return self.start(call, work)

    @method("ConsolidateVMDisks_Task")
    def consolidate(self, call: Call) -> Any:
        def work(task: TaskControl) -> None:
            with host_faults():
                consolidate(self.engine, task)

        return self.start(call, work)

    @method("QueryChangedDiskAreas")
    def changed_areas(
        self, call: Call, snapshot: Any, device_key: int, start: int, change_id: str
    ) -> Any:
        number = None
        if snapshot is not None:
            found = call.resolve(snapshot, MachineSnapshot)
            if found.machine is not self:
                raise vim.fault.NotFound(msg="The snapshot is another machine's.")
            number = found.number
        with host_faults():
            page = query_changed_areas(self.engine, number, device_key, start, change_id)
        return vim.VirtualMachine.DiskChangeInfo(
            startOffset=page.start_offset,
            length=page.length,
            changedArea=[
                vim.VirtualMachine.DiskChangeInfo.DiskChangeExtent(start=offset, length=length)
                for offset, length in page.areas
            ],
        )

    # ------------------------------------------------------------------ configuration

    @method("ReconfigVM_Task")
    def reconfigure(self, call: Call, spec: Any) -> Any:
        for privilege in privileges_of(spec):
            call.require(privilege, self)
        expected = spec.changeVersion
        if expected and expected != self._config(None).changeVersion:
            raise vim.fault.ConcurrentAccess(msg="The configuration has changed meanwhile.")

        def work(_task: TaskControl) -> None:
            with host_faults():
                request = reconfigure_request(spec, self.engine.config, self.network_of)
                reconfigure(self.engine, request)

        return self.start(call, work)

    @method("Rename_Task", privilege=None)
    def rename(self, call: Call, new_name: str) -> Any:
        return self.reconfigure(call, vim.vm.ConfigSpec(name=new_name))

    @method("MarkAsTemplate")
    def mark_as_template(self, _call: Call) -> None:
        self._mark(template=True)

    @method("MarkAsVirtualMachine")
    def mark_as_machine(self, _call: Call, _pool: Any, _host: Any) -> None:
        self._mark(template=False)

    def _mark(self, *, template: bool) -> None:
        engine = self.engine
        with host_faults(), engine.operation("MarkAsTemplate"):
            engine.refuse_unless(PowerState.OFF)
            engine.save(replace(engine.config, template=template))

    @method("RefreshStorageInfo")
    def refresh_storage(self, _call: Call) -> None:
        self.touch()

    # ------------------------------------------------------------------ moving and leaving

    @method("RelocateVM_Task", privilege=None)
    def relocate(self, call: Call, spec: Any, _priority: Any) -> Any:
        hot = self.engine.on
        call.require("Resource.HotMigrate" if hot else "Resource.ColdMigrate", self)
        destination: Destination = relocate_request(call, self, spec)
        user = call.authenticated().user

        def work(task: TaskControl) -> None:
            with host_faults():
                destination.move(self.engine, task)
            source = self.host
            self._settle(destination)
            self._tell_move(source, user)

        return self.start(call, work)

    def _tell_move(self, source: HostSystem, user: str) -> None:
        """What a client that watches for moves under its feet looks for."""
        home = self.home()
        self.vcenter.events.post(
            vim.event.VmRelocatedEvent,
            f"Completed the relocation of the virtual machine {self.name}",
            user=user,
            entity=self,
            extra={
                "template": self.engine.config.template,
                "sourceHost": vim.event.HostEventArgument(name=source.name, host=source.ref),
                "sourceDatacenter": vim.event.DatacenterEventArgument(
                    name=home.name, datacenter=home.ref
                ),
            },
        )

    def _settle(self, destination: Destination) -> None:
        with self.vcenter.registry.lock:
            if destination.host is not None and destination.host is not self.host:
                self.host.release(self)
                self.host = destination.host
                self.engine.host_name = self.host.name
                self.host.take(self)
            if destination.pool is not None and destination.pool is not self.pool:
                self.pool.release(self)
                self.pool = destination.pool
                self.pool.take(self)
        self._engine_changed()

    @method("UnregisterVM")
    def unregister_machine(self, _call: Call) -> None:
        with host_faults():
            self.library.unregister(self.engine)
        self.leave()

    @method("Destroy_Task", privilege="VirtualMachine.Inventory.Delete")
    def destroy(self, call: Call) -> Any:
        def work(_task: TaskControl) -> None:
            with host_faults():
                self.library.destroy(self.engine)
            self.leave()

        return self.start(call, work)

    def leave(self) -> None:
        """The engine is gone: take the machine and its snapshots out of the inventory."""
        for snapshot in self._snapshots.values():
            snapshot.unregister()
        self.remove()

    def _run(self, call: Call, action: Callable[[], Any]) -> Any:
        def work(_task: TaskControl) -> Any:
            with host_faults():
                return action()

        return self.start(call, work)


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


def datastore_path(text: str) -> DatastorePath:
    """Raises faults."""
    with host_faults():
        return DatastorePath.parse(text)
