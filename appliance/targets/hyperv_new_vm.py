"""A new VM on a Hyper-V host, from the plan to the finished VM, or to nothing.

    plan -> intent -> empty files, named on the host under our mark -> VM with our mark, no disks
    -> [the run writes VHDX into the files over SMB] -> disks attached -> the mark taken off
    -> files kept, share gone: finished

Until the mark is taken off, every end of the block removes the VM, then its files.

Crash guarantee: a kill leaves at most a VM with our mark, files that the host knows by our mark,
and a share with it; `hyperv.orphans` finds each without the journal.
Thread model: the block belongs to one thread; its sinks to one thread each.
Source: design notes sections 2 and 8; [MS-VHDX].
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.base.units import format_size
from appliance.sources.hyperv_errors import HypervFullError, hyperv_calls
from appliance.sources.hyperv_host import HypervHost, patience_until
from appliance.sources.intents import Intents, Made
from appliance.targets.contract import (
    DiskSink,
    NewVm,
    NewVmRequest,
    NoSuchPlaceError,
    TargetError,
)
from appliance.targets.hyperv_plan import BuildPlan, plan_build
from appliance.targets.hyperv_sink import HypervSink, new_disk
from hyperv.disk_files import keep_disk_files, make_disk_files, remove_disk_files
from hyperv.errors import ScriptError
from hyperv.inventory import read_vm
from hyperv.new_vm import NewDisk, attach, find_marked, remove, unmark
from hyperv.new_vm import new_vm as make_vm
from hyperv.shares import share_for_writing, unshare
from hyperv.vm_configuration import apply_settings
from hyperv.windows_path import drive_of

log = EventLog(__name__)

SMB = "smb"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTools:
    """What a build works with; the same for all runs of a host."""

    host: HypervHost
    appliance_id: str
    intents: Intents


@contextmanager
def new_vm(
    tools: BuildTools, request: NewVmRequest, context: RunContext, leftovers: list[Reason]
) -> Iterator[NewVm]:
    """See `VmTarget.build`; what the end has to say goes to `leftovers`."""
    unknown = [name for name in request.transports if name != SMB]
    if unknown:
        raise UsageError(f"no way to write called {unknown[0]!r}; on Hyper-V there is {SMB}")
    with hyperv_calls(tools.host.name, context.cancel):
        patience = patience_until(context.cancel)
        plan = plan_build(tools.host, tools.appliance_id, request, patience)
    build = _Build(tools, plan, request.run_id, context, leftovers)
    with ExitStack() as undo:
        with hyperv_calls(tools.host.name, context.cancel):
            build.begin(undo)
        yield build


class _Build:
    """A `NewVm`."""

    transport = SMB

    def __init__(
        self,
        tools: BuildTools,
        plan: BuildPlan,
        run_id: RunId,
        context: RunContext,
        leftovers: list[Reason],
    ) -> None:
        self._tools = tools
        self._host = tools.host
        self._session = tools.host.session
        self._plan = plan
        self._marker = plan.marker.text
        self._run_id = run_id
        self._context = context
        self._patience = patience_until(context.cancel)
        self._leftovers = leftovers
        self._lock = threading.Lock()
        self._open: dict[int, HypervSink] = {}
        self._written: set[int] = set()
        self._paths: dict[int, str] = {}
        self._shares: dict[str, str] | None = None
        self._vm_id = ""
        self._is_finished = False
        self._reasons: list[Reason] = []
        self._log = log.bind(host=tools.host.name, vm=plan.name, run=run_id)

    @property
    def reasons(self) -> Sequence[Reason]:
        return (*self._plan.reasons, *self._reasons)

    @property
    def same_vm(self) -> bool:
        return self._plan.same_vm

    def begin(self, undo: ExitStack) -> None:
        """Make files and VM. Raises: HypervErrors, NoSuchPlaceError, HypervFullError."""
        plan = self._plan
        intent = self._tools.intents.record(
            Made.VM, self._run_id, plan.disk_folder, plan.name, self._marker
        )
        undo.callback(self._end, intent)
        try:
            files = make_disk_files(
                self._session, self._marker, plan.disk_folder, plan.file_names, self._patience
            )
        except ScriptError as error:
            if error.reason == "bad-folder":
                raise NoSuchPlaceError(f"{self._host.name}: no volume for {plan.folder}") from error
            raise
        if 0 <= files.free_bytes < plan.need_bytes:
            raise HypervFullError(
                f"{self._host.name}: {plan.folder} has room for {format_size(files.free_bytes)}, "
                f"and the disks need up to {format_size(plan.need_bytes)}"
            )
        self._paths = dict(zip((disk.number for disk in plan.disks), files.paths, strict=True))
        if not self._host.facts.admin_shares:
            drives = sorted({drive_of(path) for path in files.paths})
            self._shares = share_for_writing(self._session, drives, plan.marker, self._patience)
        self._vm_id = make_vm(
            self._session,
            plan.captured,
            marker=self._marker,
            name=plan.name,
            folder=plan.folder,
            adapters=plan.adapters,
            keep_identity=plan.same_vm,
            patience=self._patience,
        )
        self._tools.intents.complete(intent, self._vm_id)

    def open_disk(self, number: int) -> DiskSink:
        disk = next(each for each in self._plan.disks if each.number == number)

        def closed() -> None:
            with self._lock:
                self._open.pop(number)
                self._written.add(number)

        sink = HypervSink(
            self._host.name,
            self._host.smb,
            self._paths[number],
            self._shares,
            new_disk(disk.shape),
            self._context.cancel,
            closed,
        )
        with self._lock:
            self._open[number] = sink
        return sink

    def finish(self) -> str:
        if self._written != self._paths.keys():
            raise TargetError(f"{self._plan.name}: a disk was not written to its end")
        with hyperv_calls(self._host.name, self._context.cancel):
            attach(self._session, self._vm_id, self._marker, self._drives(), self._patience)
            refused = apply_settings(
                self._session,
                self._vm_id,
                self._marker,
                self._plan.captured,
                is_copy=not self._plan.same_vm,
                patience=self._patience,
            )
            if refused:
                self._reasons.append(_not_set(refused))
            vm = read_vm(self._session, self._vm_id, self._patience)
            unmark(
                self._session,
                vm,
                self._marker,
                self._plan.captured.notes,
                self._patience.unstoppable(),
            )
        self._is_finished = True
        return self._vm_id

    def _drives(self) -> list[NewDisk]:
        return [
            NewDisk(
                path=self._paths[disk.number],
                controller=disk.place.controller,
                controller_number=disk.place.controller_number,
                location=disk.place.location,
                boot_first=disk.boot_first,
            )
            for disk in self._plan.disks
        ]

    def _end(self, intent: int) -> None:
        """Take everything away, unless it is finished. Never raises."""
        with self._lock:
            sinks = list(self._open.values())
        for sink in sinks:
            sink.abandon()
        patience = self._patience.unstoppable()
        try:
            with hyperv_calls(self._host.name):
                if self._is_finished:
                    keep_disk_files(self._session, self._marker, patience)
                else:
                    vm = find_marked(self._session, self._marker, patience)
                    if vm is not None:
                        remove(self._session, vm.id, self._marker, patience)
                    remove_disk_files(self._session, self._marker, patience)
                if not self._host.facts.admin_shares:
                    unshare(self._session, self._marker, patience)
            self._tools.intents.close(intent)
        except ApplianceError as error:
            self._log.error("not all of a restore was taken away", error=error)
            self._leftovers.append(_not_removed(self._plan.name, error))


def _not_removed(name: str, error: ApplianceError) -> Reason:
    return Reason(
        "restore.vm-not-removed",
        f"what the restore of {name} needed could not be taken away ([{error.code}] {error})",
        "none at once: the next run or clean-up removes it by its mark",
    )


def _not_set(refused: Sequence[str]) -> Reason:
    return Reason(
        "restore.settings-not-set",
        f"the host refused some settings that the VM had: {', '.join(refused)}",
        "compare them with the original's in Hyper-V Manager",
    )
