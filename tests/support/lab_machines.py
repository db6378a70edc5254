"""A practice vCenter whose machines run, on folders of the test, and pyVmomi as its client."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyVmomi import vim

from lab.data_plane.data_plane import DataPlane
from lab.esx.datastore import LabDatastore
from lab.esx.nas_datastore import NasTimings
from lab.esx.virtual_machine import VirtualMachine as Engine
from lab.esx.vm_library import VmLibrary
from lab.esx.vm_state import PowerState
from lab.faults import FaultSwitches
from lab.vcenter.inventory import Inventory, build_inventory
from lab.vcenter.lab_vcenter import LabVcenter
from lab.vcenter.virtual_machine_setup import give_library
from tests.support.lab import client

TASK_TIMEOUT_S = 120.0
_HOSTS = ("127.0.1.1", "127.0.1.2")  # clients reach them by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Practice:
    vcenter: LabVcenter
    inventory: Inventory
    library: VmLibrary
    plane: DataPlane
    faults: FaultSwitches
    folder: Path
    instance: Any

    def machine(self, name: str) -> Any:
        """The client's reference to a machine."""
        content = self.instance.content
        view = content.viewManager.CreateContainerView(
            content.rootFolder, [vim.VirtualMachine], True
        )
        try:
            return next(one for one in view.view if one.name == name)
        finally:
            view.Destroy()

    def wait(self, condition: Callable[[], bool], failure: str) -> None:
        wait_until(condition, failure)

    def wait_power(self, engine: Engine, state: PowerState) -> None:
        wait_until(lambda: engine.power is state and not engine.busy, f"the machine is not {state}")

    def wait_question(self, vm: Any) -> Any:
        """The question that a machine waits with."""
        wait_until(lambda: vm.runtime.question is not None, "nothing is asked")
        return vm.runtime.question

    def create(self, name: str, *changes: Any, **spec: Any) -> Any:
        """CreateVM_Task with a PVSCSI controller (key -1) and these device changes."""
        controller = vim.vm.device.ParaVirtualSCSIController(
            key=-1, busNumber=0, sharedBus="noSharing"
        )
        config = vim.vm.ConfigSpec(
            name=name,
            files=vim.vm.FileInfo(vmPathName="[ds1]"),
            deviceChange=[added(controller), *changes],
            **spec,
        )
        folder = self.instance.content.rootFolder.childEntity[0].vmFolder
        pool = folder.parent.hostFolder.childEntity[0].resourcePool
        return done(folder.CreateVM_Task(config, pool))


@contextlib.contextmanager
def practice(
    *datastores: str,
    changed_areas_max: int = 2000,
    vcenter_options: dict[str, Any] | None = None,
    nas: NasTimings | None = None,
    **plane_options: Any,
) -> Iterator[Practice]:
    """Options are those of LabVcenter and of DataPlane."""
    # Sockets below it: a path of pytest's would be too long.
    folder = Path(tempfile.mkdtemp(prefix="holdfast-lab-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stores = []
        for name in datastores or ("ds1", "ds2"):
            place = folder / name
            place.mkdir()
            stores.append(LabDatastore(name, place))
        vcenter = stack.enter_context(LabVcenter(**(vcenter_options or {})))
        inventory = build_inventory(vcenter, hosts=_HOSTS, stores=stores)
        library = give_library(
            inventory, folder / "run", changed_areas_max=changed_areas_max, nas=nas
        )
        plane = DataPlane(vcenter, library.site, **plane_options)
        for host in inventory.hosts:
            plane.serve_host(host)
        stack.callback(library.close)
        yield Practice(
            vcenter=vcenter,
            inventory=inventory,
            library=library,
            plane=plane,
            faults=vcenter.switches,
            folder=folder,
            instance=stack.enter_context(client(vcenter)),
        )


def wait_until(fits: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + TASK_TIMEOUT_S
    while not fits():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.01)


def added(device: Any, *, create: bool = False) -> Any:
    return vim.vm.device.VirtualDeviceSpec(
        operation="add", device=device, fileOperation="create" if create else None
    )


def disk(
    *,
    size_bytes: int = 8 << 20,
    unit: int | None = None,
    controller: int = -1,
    file: str = "",
    mode: str = "persistent",
) -> Any:
    """A VirtualDisk to add; without a file it is a new one."""
    device = vim.vm.device.VirtualDisk(
        key=-10,
        controllerKey=controller,
        unitNumber=unit,
        capacityInKB=size_bytes >> 10,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=file, diskMode=mode, thinProvisioned=True
        ),
    )
    return added(device, create=not file)


def disks_of(hardware_owner: Any) -> list[Any]:
    """The disks of `vm.config` or of `snapshot.config`."""
    devices = hardware_owner.hardware.device
    return [one for one in devices if isinstance(one, vim.vm.device.VirtualDisk)]


def done(task: Any) -> Any:
    """Wait for a task; return its result or raise its fault."""
    deadline = time.monotonic() + TASK_TIMEOUT_S
    while True:
        info = task.info
        if info.state == "success":
            return info.result
        if info.state == "error":
            raise info.error
        if time.monotonic() > deadline:
            raise TimeoutError(f"{info.descriptionId} did not end")
        time.sleep(0.01)


def reconfigured(vm: Any, *changes: Any, **spec: Any) -> Any:
    return done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=list(changes), **spec)))


def snapped(vm: Any, name: str = "snap", *, quiesce: bool = False) -> Any:
    return done(vm.CreateSnapshot_Task(name, "", False, quiesce))


def removed(snapshot: Any, *, children: bool = False) -> None:
    done(snapshot.RemoveSnapshot_Task(children, True))
