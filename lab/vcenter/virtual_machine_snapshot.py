"""Snapshot objects: a machine's frozen states by reference. The engine has the state itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from lab.esx.vm_snapshots import remove_snapshot, rename_snapshot, revert_to_snapshot
from lab.vcenter.call import Call
from lab.vcenter.host_faults import host_faults
from lab.vcenter.managed_object import LabObject, computed, method
from lab.vcenter.tasks import TaskControl

if TYPE_CHECKING:
    from lab.vcenter.virtual_machine_view import EngineView


class MachineSnapshot(LabObject):
    vim_type = vim.vm.Snapshot
    moid_prefix = "snapshot"

    def __init__(self, machine: EngineView, number: int) -> None:
        super().__init__(machine.vcenter)
        self.machine = machine
        self.number = number

    def guarded_by(self) -> LabObject:
        return self.machine

    @computed("config")
    def _config(self, _call: Call | None) -> Any:
        snapshot = self.machine.engine.snapshots.get(self.number)
        return self.machine.config_info(snapshot.config) if snapshot is not None else None

    @computed("childSnapshot")
    def _children(self, _call: Call | None) -> Any:
        return [
            self.machine.snapshot_ref(one.id)
            for one in self.machine.engine.snapshots.values()
            if one.parent == self.number
        ]

    @computed("vm")
    def _vm(self, _call: Call | None) -> Any:
        return self.machine.ref

    @method("RemoveSnapshot_Task")
    def remove(self, call: Call, children: bool, consolidate: bool | None) -> Any:
        def work(task: TaskControl) -> None:
            with host_faults():
                remove_snapshot(
                    self.machine.engine,
                    self.number,
                    children=children,
                    consolidate=consolidate is not False,
                    work=task,
                )

        return call.start_task(self.machine, work, cancelable=True)

    @method("RevertToSnapshot_Task")
    def revert(self, call: Call, _host: Any, _suppress_power_on: bool | None) -> Any:
        def work(task: TaskControl) -> None:
            with host_faults():
                revert_to_snapshot(self.machine.engine, self.number, task)

        return call.start_task(self.machine, work)

    @method("ExportSnapshot")
    def export(self, call: Call) -> Any:
        from lab.data_plane.soap_lease import Leased

        machine, plane = self.machine, self.vcenter.data_plane
        if plane is None:
            raise vmodl.fault.NotSupported(msg="This vCenter has no data plane.")
        with host_faults():
            config = machine.engine.snapshot(self.number).config
        leased = Leased(entity=machine, engine=machine.engine, config=config)
        return plane.leases.export(call, leased, machine.host)

    @method("RenameSnapshot")
    def rename(self, _call: Call, name: str | None, description: str | None) -> None:
        with host_faults():
            rename_snapshot(self.machine.engine, self.number, name, description)
