"""A new VM on vSphere, from the plan to the finished VM, or to nothing.

    plan -> intent -> CreateVM_Task, its disks hot-added to the appliance for writing
                   or ImportVApp, its disks sent as streams
    -> [the run writes] -> disks given back -> NVRAM, labels -> the mark taken off: finished

Hot-add is tried first; whatever stands against it, before or while the disks are attached, makes
the VM an import instead. Until the mark is taken off, every end of the block destroys the VM.

Crash guarantee: a kill leaves at most a VM with our mark and disks of it on the appliance, both
named by intents; an import's VM goes with its lease.
Thread model: the block belongs to one thread; its sinks to one thread each.
Source: design notes sections 4a, 4c and 8.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pyVmomi import vim

from appliance.base.errors import ApplianceError, UsageError
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.sources.intents import Intents, Made
from appliance.sources.vsphere_reasons import reason, reasons, vsphere_calls
from appliance.targets.contract import DiskSink, NewVm, NewVmRequest, TargetError
from appliance.targets.vsphere_plan import BuildPlan, plan_build
from appliance.targets.vsphere_sink import VsphereSink
from vmware.datastore_files import write_small_file
from vmware.datastore_path import DatastorePath
from vmware.disks import DiskInfo
from vmware.errors import CancelledError as VsphereCancelled
from vmware.errors import UnsupportedError, VsphereError
from vmware.inventory import VmInfo, read_vm
from vmware.labels import give_labels
from vmware.new_vm import create_vm, destroy_unfinished_vm, finish_vm
from vmware.patience import PASSING, Patience
from vmware.properties import fetch_one
from vmware.session import Session
from vmware.transports.appliance_vm import Whereabouts, find_appliance_vm
from vmware.transports.choice import of_error
from vmware.transports.contract import DiskWriter, Refusal
from vmware.transports.hot_add import HotAdd
from vmware.transports.nfc_import import NfcImport
from vmware.vm_spec import last_spec

log = EventLog(__name__)

HOT_ADD, NFC_IMPORT = "hot-add", "nfc-lease"
_WAYS = (HOT_ADD, NFC_IMPORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildTools:
    """What a build works with; the same for all runs of a host."""

    host: str
    session: Session
    appliance_id: str
    intents: Intents
    hot_add: HotAdd
    product_uuid: str | None  # of the machine we run on
    wait: Callable[[float], None] = time.sleep


@contextmanager
def new_vm(
    tools: BuildTools, request: NewVmRequest, context: RunContext, leftovers: list[Reason]
) -> Iterator[NewVm]:
    """See `VmTarget.build`; what the end has to say goes to `leftovers`."""
    unknown = [name for name in request.transports if name not in _WAYS]
    if unknown:
        raise UsageError(f"no way to write called {unknown[0]!r}; there are {', '.join(_WAYS)}")
    with vsphere_calls(tools.host, context.cancel):
        plan = plan_build(tools.session, tools.appliance_id, request)
    build = _Build(tools, plan, request, context, leftovers)
    with ExitStack() as undo:
        with vsphere_calls(tools.host, context.cancel):
            build.begin(undo)
        yield build


class _Build:
    """A `NewVm`."""

    def __init__(
        self,
        tools: BuildTools,
        plan: BuildPlan,
        request: NewVmRequest,
        context: RunContext,
        leftovers: list[Reason],
    ) -> None:
        self._tools = tools
        self._session = tools.session
        self._plan = plan
        self._request = request
        self._context = context
        self._leftovers = leftovers
        self._reasons = list(plan.reasons)
        self._patience = Patience(cancelled=lambda: context.cancel.cancelled, wait=tools.wait)
        self._lock = threading.Lock()
        self._open: dict[int, DiskSink] = {}  # attached, not yet closed
        self._imported: NfcImport | None = None
        self._moref = ""
        self._finished = False
        self.transport = ""
        self._log = log.bind(host=tools.host, vm=request.name, run=request.run_id)

    @property
    def reasons(self) -> Sequence[Reason]:
        return tuple(dict.fromkeys(self._reasons))

    @property
    def same_vm(self) -> bool:
        return self._plan.same_vm

    def begin(self, undo: ExitStack) -> None:
        """Make the VM in the best way that works. Raises: VsphereErrors."""
        ways = self._request.transports or _WAYS
        if HOT_ADD in ways:
            refusal = self._hot_add_refusal() or self._begin_hot_add(undo)
            if refusal is None:
                return
            if NFC_IMPORT not in ways:
                raise UnsupportedError(f"{refusal.text}; {refusal.next_step}")
            self._reasons.append(reason(refusal, warning=False))
        self._begin_import(undo)

    def open_disk(self, number: int) -> DiskSink:
        with self._lock:
            sink = self._open.get(number)
            if sink is None:
                assert self._imported is not None
                disk = self._plan.disks[number]
                with vsphere_calls(self._tools.host, self._context.cancel):
                    writer = self._imported.disk(disk.lease_address, disk.captured.capacity_bytes)
                sink = self._sink(writer, number)
        return sink

    def finish(self) -> str:
        if self._open:
            raise TargetError(f"{self._request.name}: a disk was not written to its end")
        with vsphere_calls(self._tools.host, self._context.cancel):
            self._patience.check()
            if self._imported is not None:
                self._imported.finish()
            vm = read_vm(self._session, self._moref)
            nvram_name = self._put_nvram(vm)
            captured = self._plan.captured
            self._reasons += reasons(
                give_labels(self._session, self._moref, captured.attributes, captured.tags)
            )
            self._take_off_mark(nvram_name)
        self._check_addresses()
        return self._moref

    # Hot-add

    def _hot_add_refusal(self) -> Refusal | None:
        """What is known against it before the VM is made."""
        appliance = find_appliance_vm(self._session, self._tools.product_uuid)
        if isinstance(appliance, Whereabouts):
            return Refusal(
                code="transport.appliance-not-here",
                text=appliance.value,
                next_step="run the appliance as a VM of this vCenter to write its disks directly",
            )
        ide = [d.captured.label for d in self._plan.disks.values() if d.address.startswith("ide")]
        if ide:
            return Refusal(
                code="transport.ide-disk",
                text=f"{', '.join(ide)}: disks on an IDE controller cannot be hot-added",
                next_step="none: the VM is imported instead",
            )
        return None

    def _begin_hot_add(self, undo: ExitStack) -> Refusal | None:
        """None: the VM is there and its disks are open."""
        place = self._plan.placement
        with ExitStack() as attempt:
            intent = self._record()
            try:
                self._moref = create_vm(
                    self._session,
                    self._plan.planned.spec,
                    folder_moref=place.folder_moref,
                    pool_moref=place.pool_moref,
                    host_moref=place.host_moref,
                    patience=self._patience,
                )
            except VsphereError as error:
                self._close_unless_left(intent, error)
                raise
            attempt.callback(self._destroy, intent)
            self._tools.intents.complete(intent, self._moref)
            try:
                vm = read_vm(self._session, self._moref)
                disks = {disk.address: disk for disk in vm.disks}
                for number, planned in self._plan.disks.items():
                    self._patience.check()
                    writer = self._tools.hot_add.open_writer(
                        self._session, vm, _there(disks, planned.address), empty=True
                    )
                    self._open[number] = self._sink(writer, number)
                    attempt.callback(self._give_back, number)
            except VsphereCancelled:
                raise
            except VsphereError as error:
                self._log.warning("hot-add for writing failed", error=error)
                return of_error(error)  # and `attempt` takes it all away
            undo.push(attempt.pop_all())
        self.transport = HOT_ADD
        return None

    def _give_back(self, number: int) -> None:
        """Never raises: what hangs on is in the journal."""
        sink = self._open.pop(number, None)
        if sink is None:
            return
        try:
            sink.close()
        except ApplianceError as error:
            self._log.error("a disk was not given back", disk=number, error=error)
            self._leftovers.append(_not_given_back(self._plan.disks[number].captured.label, error))

    # Import

    def _begin_import(self, undo: ExitStack) -> None:
        place = self._plan.placement
        intent = self._record()
        try:
            imported = NfcImport.begin(
                self._session,
                vim.vm.VmImportSpec(configSpec=self._plan.planned.spec),
                pool_moref=place.pool_moref,
                folder_moref=place.folder_moref,
                host_moref=place.host_moref,
                cancelled=self._patience.cancelled,
            )
        except VsphereError as error:
            self._close_unless_left(intent, error)
            raise
        self._moref = imported.vm_moref
        self._imported = imported
        undo.callback(self._destroy, intent)
        undo.callback(imported.abandon)
        self._tools.intents.complete(intent, self._moref)
        self.transport = NFC_IMPORT

    # Finishing

    def _put_nvram(self, vm: VmInfo) -> str | None:
        """The file's name, if there is one; the VM was never on, so nobody has it open."""
        nvram = self._plan.captured.nvram
        if nvram is None:
            return None
        target = self._session.object(vim.VirtualMachine, vm.moref)
        path = "config.extraConfig"
        options = fetch_one(self._session, "look for the NVRAM", target, (path,)).values.get(path)
        vmx = DatastorePath.parse(vm.vmx_file_name)
        named = [str(option.value) for option in options or () if option.key == "nvram"]
        name = named[0] if named and named[0] else f"{vmx.name.removesuffix('.vmx')}.nvram"
        write_small_file(self._session, vm.datacenter_path, vmx.sibling(name), nvram)
        return name

    def _take_off_mark(self, nvram_name: str | None) -> None:
        target = self._session.object(vim.VirtualMachine, self._moref)
        path = "config.hardware.device"
        read = fetch_one(self._session, "look at the new VM", target, (path,)).values
        spec = last_spec(self._plan.captured, self._plan.choices, read.get(path) or (), nvram_name)
        mark = self._plan.marker.text
        self._patience.unstoppable().retry(
            lambda: finish_vm(self._session, self._moref, spec, mark), on=PASSING
        )
        self._finished = True

    def _check_addresses(self) -> None:
        """A server may give other addresses than it was asked for: say so, it is no failure."""
        wanted = [nic.mac.lower() for nic in self._plan.captured.nics if nic.mac]
        if self._plan.choices.mac != "keep" or not wanted:
            return
        path = "config.hardware.device"
        target = self._session.object(vim.VirtualMachine, self._moref)
        try:
            read = fetch_one(self._session, "look at the new VM", target, (path,)).values
        except VsphereError as error:
            self._log.warning("addresses not compared", error=error)
            return
        card = vim.vm.device.VirtualEthernetCard
        has = {str(one.macAddress).lower() for one in read.get(path) or () if isinstance(one, card)}
        lost = [mac for mac in wanted if mac not in has]
        if lost:
            self._reasons.append(
                Reason(
                    "restore.mac-changed",
                    f"vSphere gave other hardware addresses than {', '.join(lost)}",
                    "set them by hand if licences or DHCP reservations depend on them",
                )
            )

    # Undoing

    def _record(self) -> int:
        return self._tools.intents.record(
            Made.VM,
            self._request.run_id,
            self._plan.placement.folder_moref,
            self._request.name,
            self._plan.marker.text,
        )

    def _close_unless_left(self, intent: int, error: VsphereError) -> None:
        if not getattr(error, "__notes__", ()):  # else something of it is left
            self._tools.intents.close(intent)

    def _destroy(self, intent: int) -> None:
        """Unless it is finished. Never raises."""
        try:
            if not self._finished:
                with vsphere_calls(self._tools.host):
                    self._patience.unstoppable().retry(
                        lambda: destroy_unfinished_vm(
                            self._session, self._moref, self._plan.marker.text
                        ),
                        on=PASSING,
                    )
            self._tools.intents.close(intent)
        except ApplianceError as error:
            self._log.error("unfinished VM not removed", moref=self._moref, error=error)
            self._leftovers.append(_not_removed(self._request.name, error))

    def _sink(self, writer: DiskWriter, number: int) -> DiskSink:
        def closed() -> None:
            self._open.pop(number, None)

        return VsphereSink(writer, self._tools.host, self._context.cancel, closed)


def _there(disks: dict[str, DiskInfo], address: str) -> DiskInfo:
    disk = disks.get(address)
    if disk is None:
        raise UnsupportedError(f"the new VM has no disk at {address}")
    return disk


def _not_removed(name: str, error: ApplianceError) -> Reason:
    return Reason(
        "restore.vm-not-removed",
        f"the unfinished VM {name} could not be removed ([{error.code}] {error})",
        "none at once: the next run or clean-up removes it by its mark",
    )


def _not_given_back(label: str, error: ApplianceError) -> Reason:
    return Reason(
        "restore.disk-not-detached",
        f"{label} still hangs on the appliance ([{error.code}] {error})",
        "none at once: the next run or clean-up takes it off",
    )
