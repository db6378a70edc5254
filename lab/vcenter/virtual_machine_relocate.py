"""RelocateSpec → what `lab/esx` moves, and the places in the inventory that change with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from lab.esx.virtual_machine import VirtualMachine as Engine
from lab.esx.vm_relocate import RelocateRequest, relocate
from lab.vcenter.call import Call
from lab.vcenter.compute import ResourcePool
from lab.vcenter.datastores import Datastore
from lab.vcenter.hosts import HostSystem
from lab.vcenter.tasks import TaskControl

if TYPE_CHECKING:
    from lab.vcenter.virtual_machine_engine import EngineMachine


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    request: RelocateRequest | None  # None: no file moves
    host: HostSystem | None
    pool: ResourcePool | None

    def move(self, engine: Engine, task: TaskControl) -> None:
        """Raises HostError."""
        if self.request is not None:
            relocate(engine, self.request, task)


def relocate_request(call: Call, machine: EngineMachine, spec: Any) -> Destination:
    """Raises faults for what is not there, not reachable, or not supported."""
    host = call.resolve(spec.host, HostSystem) if spec.host else None
    pool = call.resolve(spec.pool, ResourcePool) if spec.pool else None
    if pool is not None:
        call.require("Resource.AssignVMToPool", pool)
    if spec.deviceChange or spec.folder or spec.service:
        raise vmodl.fault.NotSupported(msg="The lab moves machines, and changes nothing else.")
    main = _datastore(call, machine, spec.datastore) if spec.datastore else None
    disks = {
        locator.diskId: _datastore(call, machine, locator.datastore).name
        for locator in spec.disk or []
    }
    known = {disk.key for disk in machine.engine.config.disks}
    if set(disks) - known:
        raise vmodl.fault.InvalidArgument(msg="No such disk.", invalidProperty="spec.disk.diskId")
    request = None
    if main is not None or disks:
        request = RelocateRequest(datastore=main.name if main else None, disks=disks)
    return Destination(request=request, host=host, pool=pool)


def _datastore(call: Call, machine: EngineMachine, ref: Any) -> Datastore:
    datastore = call.resolve(ref, Datastore)
    call.require("Datastore.AllocateSpace", datastore)
    if machine.datastore_named(datastore.name) is not datastore or datastore.store is None:
        raise vim.fault.InvalidDatastore(
            msg="The datastore is not in the machine's datacenter.",
            datastore=datastore.ref,
            name=datastore.name,
        )
    return datastore
