"""What a client asks of a VirtualMachine that runs: the engine of `lab/esx` behind SOAP.

Every method translates, starts a task, and lets `lab/esx` decide. What a client reads of the
machine is `virtual_machine_view`.
Source: vSphere Web Services API, VirtualMachine; design notes on vSphere, sections 2 to 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from lab.esx import vm_power, vm_snapshots
from lab.esx.virtual_machine import VirtualMachine as Engine
from lab.esx.vm_changed_areas import query_changed_areas
from lab.esx.vm_consolidation import consolidate
from lab.esx.vm_library import VmLibrary
from lab.esx.vm_reconfigure import reconfigure
from lab.esx.vm_screen import take_screenshot
from lab.esx.vm_state import NotSupportedError, PowerState
from lab.vcenter.call import Call
from lab.vcenter.folders import Folder
from lab.vcenter.host_faults import host_faults
from lab.vcenter.managed_object import method
from lab.vcenter.names import plain_name
from lab.vcenter.tasks import TaskControl
from lab.vcenter.virtual_machine_relocate import Destination, relocate_request
from lab.vcenter.virtual_machine_snapshot import MachineSnapshot
from lab.vcenter.virtual_machine_spec import privileges_of, reconfigure_request
from lab.vcenter.virtual_machine_view import EngineView

if TYPE_CHECKING:
    from lab.vcenter.compute import ResourcePool
    from lab.vcenter.hosts import HostSystem


class EngineMachine(EngineView):
    """Made over an engine that its library has."""

    def __init__(
        self,
        engine: Engine,
        library: VmLibrary,
        *,
        folder: Folder,
        pool: ResourcePool,
        host: HostSystem,
    ) -> None:
        self.library = library
        super().__init__(engine, folder=folder, pool=pool, host=host)

    def start(
        self, call: Call, work: Callable[[TaskControl], Any], *, cancelable: bool = False
    ) -> Any:
        return call.start_task(self, work, cancelable=cancelable)

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
        request = vm_snapshots.SnapshotRequest(
            name=plain_name(name), description=description or "", memory=memory, quiesce=quiesce
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
