"""A vCenter in memory, below pyVmomi's types: arguments and results are checked as on the wire.

    server = ScriptedVcenter()
    vm = ScriptedVm(server, "vm-1")
    server.fail("CreateSnapshotEx_Task", vim.fault.ApplicationQuiesceFault())
    create_snapshot(server.session(), "vm-1", marker)

It has no network, and only what the tests of snapshots, change lists and hot-add need. `fail` makes
the next call of a method raise, `hook` runs something in its place or around it. Tasks are done
when their call returns, or failed with the fault that was scripted with `fail_task`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

from pyVmomi import VmomiSupport, vim, vmodl

from vmware.faults import translated
from vmware.session import Session

Hook = Callable[[Callable[[], Any]], Any]


class ScriptedVcenter:
    """The objects by moref, and what goes wrong next."""

    version = "vim.version.version12"

    def __init__(self) -> None:
        self.objects: dict[str, ScriptedObject] = {}
        self.calls: list[tuple[str, str]] = []  # (moref, method), reads left out
        self.away_for_reads = 0  # so many reads of properties find nobody
        self._hooks: dict[str, deque[Hook]] = defaultdict(deque)
        self._task_faults: dict[str, deque[Exception]] = defaultdict(deque)
        self._numbers = itertools.count(1)
        self.objects["views"] = ScriptedViews(self)

    def session(self) -> Session:
        return cast(Session, ScriptedSession(self))

    def fail(self, method: str, *errors: Exception) -> None:
        """The next calls raise these."""
        for error in errors:

            def raising(_: Callable[[], Any], error: Exception = error) -> Any:
                raise error

            self.hook(method, raising)

    def fail_task(self, method: str, *faults: Exception) -> None:
        """The next calls return tasks that end with these faults, and do nothing else."""
        self._task_faults[method] += faults

    def hook(self, method: str, hook: Hook) -> None:
        """The next call runs `hook(real)`; `real()` does what the call would have done."""
        self._hooks[method].append(hook)

    def task(self, result: Any = None, error: Exception | None = None, kind: str = "") -> Any:
        moref = f"task-{next(self._numbers)}"
        self.objects[moref] = ScriptedObject(
            {
                "info.state": "error" if error else "success",
                "info.result": result,
                "info.error": error,
                "info.descriptionId": kind,
                "info.cancelable": False,
                "info.key": moref,
            }
        )
        return vim.Task(moref, self)

    def new_number(self) -> int:
        return next(self._numbers)

    # pyVmomi's stub interface

    def InvokeMethod(self, managed: Any, info: Any, args: Any, outer: Any = None) -> Any:
        moref, method = managed._GetMoId(), info.wsdlName
        if method == "RetrievePropertiesEx":
            if self.away_for_reads:
                self.away_for_reads -= 1
                raise ConnectionResetError
            return self._retrieve(*args)
        self.calls.append((moref, method))

        def real() -> Any:
            target = self.objects.get(moref)
            if target is None:
                raise vmodl.fault.ManagedObjectNotFound(obj=managed)
            if self._task_faults[method]:
                return self.task(error=self._task_faults[method].popleft())
            handler = getattr(target, method, None)
            if handler is None:
                raise vmodl.fault.MethodNotFound(receiver=managed, method=method)
            return handler(*args)

        hooks = self._hooks[method]
        return hooks.popleft()(real) if hooks else real()

    def InvokeAccessor(self, managed: Any, info: Any) -> Any:
        return self._of(managed).values.get(info.name)

    def _of(self, managed: Any) -> ScriptedObject:
        found = self.objects.get(managed._GetMoId())
        if found is None:
            raise vmodl.fault.ManagedObjectNotFound(obj=managed)
        return found

    def _selected(self, start: Any) -> list[Any]:
        """The object itself; of a container view, all VMs."""
        if not isinstance(start, vim.view.ContainerView):
            return [start]
        vms = [moref for moref, each in self.objects.items() if isinstance(each, ScriptedVm)]
        return [vim.VirtualMachine(moref, self) for moref in vms]

    def _retrieve(self, specs: Any, options: Any) -> Any:
        collector = vmodl.query.PropertyCollector
        objects = []
        for spec in specs:
            for item in spec.objectSet:
                for target in self._selected(item.obj):
                    values = self._of(target).values
                    found = [
                        vmodl.DynamicProperty(name=path, val=_typed(values[path]))
                        for wanted in spec.propSet
                        if isinstance(target, wanted.type)
                        for path in wanted.pathSet
                        if values.get(path) is not None
                    ]
                    objects.append(collector.ObjectContent(obj=target, propSet=found))
        return collector.RetrieveResult(objects=objects)


def _typed(value: Any) -> Any:
    """A plain list as the array type that pyVmomi wants."""
    if type(value) is not list:
        return value
    if not value:
        return VmomiSupport.GetVmodlType("anyType[]")()
    device = vim.vm.device.VirtualDevice
    item = device if isinstance(value[0], device) else type(value[0])
    return VmomiSupport.CreateArrayType(item)(value)


class ScriptedObject:
    """Properties by leaf path; methods by their WSDL names."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


class ScriptedViews(ScriptedObject):
    def __init__(self, server: ScriptedVcenter) -> None:
        super().__init__({})
        self._server = server

    def CreateContainerView(self, container: Any, kinds: Any, recursive: bool) -> Any:
        moref = f"view-{self._server.new_number()}"
        self._server.objects[moref] = ScriptedView()
        return vim.view.ContainerView(moref, self._server)


class ScriptedView(ScriptedObject):
    def __init__(self) -> None:
        super().__init__({})

    def DestroyView(self) -> None:
        pass


class ScriptedSession:
    """What the code under test sees of `vmware.session.Session`."""

    def __init__(self, server: ScriptedVcenter) -> None:
        self._server = server
        self.content = vim.ServiceInstanceContent(
            propertyCollector=vmodl.query.PropertyCollector("pc", server),
            searchIndex=vim.SearchIndex("search", server),
            viewManager=vim.view.ViewManager("views", server),
            rootFolder=vim.Folder("root", server),
        )
        self.is_vcenter = True

    def object(self, kind: Any, moref: str) -> Any:
        return kind(moref, self._server)

    def call(self, what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with translated(what):
            return function(*args, **kwargs)

    read = call


class ScriptedVm(ScriptedObject):
    """A VM with snapshots; quiescing works when its tools run."""

    def __init__(self, server: ScriptedVcenter, moref: str = "vm-1") -> None:
        super().__init__(
            {
                "runtime.powerState": "poweredOn",
                "runtime.connectionState": "connected",
                "guest.toolsRunningStatus": "guestToolsRunning",
                "guest.guestFamily": "linuxGuest",
                "config.guestId": "debian12_64Guest",
                "config.version": "vmx-19",
                "config.changeTrackingEnabled": False,
                "config.changeVersion": "1",
                "capability.changeTrackingSupported": True,
                "config.hardware.device": [],
                "recentTask": [],
            }
        )
        self.server = server
        self.moref = moref
        self.writers_manifest: str | None = None
        self.has_ex = True
        self.quiesce_specs: list[Any] = []
        self.leave_unconsolidated = 0  # so many removals or consolidations leave work behind
        server.objects[moref] = self

    @property
    def snapshots(self) -> list[Any]:
        """Every entry of the tree, flat."""
        found: list[Any] = []
        waiting = list(self._roots())
        while waiting:
            entry = waiting.pop(0)
            found.append(entry)
            waiting += entry.childSnapshotList
        return found

    def add_snapshot(self, name: str, description: str = "", *, quiesced: bool = False) -> str:
        """One more level below the newest; returns its moref."""
        number = self.server.new_number()
        moref = f"snapshot-{number}"
        entry = vim.vm.SnapshotTree(
            snapshot=vim.vm.Snapshot(moref, self.server),
            vm=vim.VirtualMachine(self.moref, self.server),
            name=name,
            description=description,
            id=number,
            createTime=datetime(2026, 11, 20, tzinfo=UTC),
            state="poweredOn",
            quiesced=quiesced,
            backupManifest=self.writers_manifest if quiesced else None,
            childSnapshotList=[],
        )
        if self.snapshots:
            self.snapshots[-1].childSnapshotList = [entry]
        else:
            self._set_roots([entry])
        self.server.objects[moref] = ScriptedSnapshot(self, moref)
        return moref

    def drop_snapshot(self, moref: str) -> None:
        """Take it out of the tree; its child moves up."""

        def without(entries: list[Any]) -> list[Any]:
            kept = []
            for entry in entries:
                entry.childSnapshotList = without(entry.childSnapshotList)
                if entry.snapshot._GetMoId() == moref:
                    kept += entry.childSnapshotList
                else:
                    kept.append(entry)
            return kept

        self._set_roots(without(list(self._roots())))
        del self.server.objects[moref]
        self._note_leftovers()

    def CreateSnapshotEx_Task(self, name: str, text: str, memory: bool, spec: Any) -> Any:
        if not self.has_ex:
            raise vmodl.fault.MethodNotFound()
        self.quiesce_specs.append(spec)
        return self._create(name, text, memory, wanted=spec is not None)

    def CreateSnapshot_Task(self, name: str, text: str, memory: bool, quiesce: bool) -> Any:
        self.quiesce_specs.append(quiesce)
        return self._create(name, text, memory, wanted=quiesce)

    def ReconfigVM_Task(self, spec: Any) -> Any:
        if spec.changeVersion and spec.changeVersion != self.values["config.changeVersion"]:
            return self.server.task(error=vim.fault.ConcurrentAccess())
        if spec.changeTrackingEnabled is not None:
            self.values["config.changeTrackingEnabled"] = spec.changeTrackingEnabled
        self.values["config.changeVersion"] += "1"
        return self.server.task()

    def Destroy_Task(self) -> Any:
        assert self.values["runtime.powerState"] == "poweredOff"
        del self.server.objects[self.moref]
        return self.server.task()

    def RefreshStorageInfo(self) -> None:
        pass

    def ConsolidateVMDisks_Task(self) -> Any:
        self._note_leftovers()
        return self.server.task()

    def _create(self, name: str, text: str, memory: bool, *, wanted: bool) -> Any:
        assert not memory
        running = self.values["guest.toolsRunningStatus"] == "guestToolsRunning"
        on = self.values["runtime.powerState"] == "poweredOn"
        moref = self.add_snapshot(name, text, quiesced=wanted and running and on)
        return self.server.task(vim.vm.Snapshot(moref, self.server))

    def _note_leftovers(self) -> None:
        self.values["runtime.consolidationNeeded"] = self.leave_unconsolidated > 0
        self.leave_unconsolidated = max(0, self.leave_unconsolidated - 1)

    def _roots(self) -> list[Any]:
        info = self.values.get("snapshot")
        return list(info.rootSnapshotList) if info else []

    def _set_roots(self, roots: list[Any]) -> None:
        self.values["snapshot"] = vim.vm.SnapshotInfo(rootSnapshotList=roots) if roots else None


class ScriptedSnapshot(ScriptedObject):
    def __init__(self, vm: ScriptedVm, moref: str) -> None:
        super().__init__({})
        self._vm = vm
        self._moref = moref

    def RemoveSnapshot_Task(self, children: bool, consolidate: bool | None) -> Any:
        assert not children
        self._vm.drop_snapshot(self._moref)
        return self._vm.server.task()
