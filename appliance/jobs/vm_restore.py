"""Restore a recovery point as a new VM: `restore vm`.

Data path: the point's disks (`disk_restore`, every chunk proven against its digest) -> the empty
disks of a VM that a `VmTarget` builds. When all are written and closed, the target finishes the VM
(configuration, NVRAM, labels); before that, whatever ends the run takes the VM away again. The VM
that the point is of is not touched. A VM that cannot be powered on when it is finished stays, and a
reason says so.

The run has an id of its own and holds its run lock until the VM is finished or gone.

Thread model: `restore_vm` blocks; disks are written a few at a time on threads of its own, each in
ascending order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from appliance.base.bounded_map import bounded_map
from appliance.base.errors import ApplianceError, CancelledError, UsageError
from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import Progress, RunContext
from appliance.catalog.run_locks import RunLocks
from appliance.catalog.runs import RunOutcome, Runs
from appliance.jobs.disk_restore import DiskRestore, WriteOrder
from appliance.jobs.point_identity import known_state
from appliance.repository.format import SEGMENT_BYTES
from appliance.repository.image_tree import segment_count
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.targets.contract import (
    DiskSink,
    Keep,
    NewVm,
    NewVmRequest,
    VmTarget,
    WantedDisk,
    WantedVmPlace,
)

log = EventLog(__name__)

_DISKS_AT_ONCE = 4


class NotAVmPointError(UsageError):
    """This recovery point is not of a hypervisor's VM, so there is no VM to build from it; its
    disks come back with `restore image`."""

    code = "restore.not-a-vm-point"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRestoreOptions:
    name: str = ""  # empty: as the original
    place: WantedVmPlace = field(default_factory=WantedVmPlace)
    networks: tuple[tuple[str, str], ...] = ()
    unconnected: frozenset[str] = frozenset()
    mac: Keep = Keep.AUTO
    identity: Keep = Keep.AUTO
    power_on: bool = False
    transports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredDisk:
    number: int
    label: str
    size_bytes: int
    written_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VmRestoreResult:
    run_id: RunId
    vm: str  # name of the new VM
    key: str
    transport: str
    disks: tuple[RestoredDisk, ...]
    powered_on: bool
    seconds: float
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRoom:
    """What restores work with."""

    repository: Repository
    runs: Runs
    run_locks: RunLocks
    run_id: RunId | None = None  # of a run that goes on already and is ended by who began it


DiskBegins = Callable[[int, str, Progress], None]
"""Told of each disk that is begun: number, label, its progress. On the disk's thread."""


def restore_vm(
    room: RestoreRoom,
    target: VmTarget,
    manifest: Manifest,
    options: VmRestoreOptions,
    context: RunContext,
    disk_begins: DiskBegins = lambda number, label, progress: None,
) -> VmRestoreResult:
    """Make a VM of the point.

    Raises:
        NotAVmPointError, UsageError (NoSuchPlaceError, …): nothing was begun.
        CorruptError: the point's own data; TargetError, SourceError: the hypervisor;
        CancelledError. Nothing is left, or the error's notes name what is.
    """
    started_s = time.perf_counter()
    name = options.name or _original_name(manifest)
    with restore_run(room, target.name, name) as run_id:
        request = NewVmRequest(
            run_id=run_id,
            name=name,
            hardware=manifest.hardware,
            disks=wanted_disks(room.repository, manifest),
            place=options.place,
            networks=options.networks,
            unconnected=options.unconnected,
            mac=options.mac,
            identity=options.identity,
            transports=options.transports,
        )
        try:
            with target.build(request, context) as vm:
                disks = _fill(room.repository, manifest, request, vm, context, disk_begins)
                key = vm.finish()
        except ApplianceError as error:
            for left in target.leftovers(run_id):
                error.add_note(f"[{left.code}] {left.text}; next step: {left.next_step}")
            raise
        reasons = [*vm.reasons, *target.leftovers(run_id)]
        powered_on = options.power_on and _powered_on(target, key, vm, context, reasons)
        return VmRestoreResult(
            run_id=run_id,
            vm=name,
            key=key,
            transport=vm.transport,
            disks=disks,
            powered_on=powered_on,
            seconds=time.perf_counter() - started_s,
            reasons=tuple(dict.fromkeys(reasons)),
        )


@contextmanager
def restore_run(room: RestoreRoom, host: str, vm: str) -> Iterator[RunId]:
    """A run in the catalog, alive for the block and ended as the block ends; or the room's."""
    if room.run_id is not None:
        yield room.run_id
        return
    run_id = room.repository.new_run_id()
    with room.run_locks.hold(run_id):
        room.runs.begin(run_id, kind="restore", vm=vm, host=host)
        outcome, code = RunOutcome.FAILED, "run.unexpected"
        try:
            yield run_id
            outcome, code = RunOutcome.SUCCESS, ""
        except ApplianceError as error:
            cancelled = isinstance(error, CancelledError)
            outcome = RunOutcome.CANCELLED if cancelled else RunOutcome.FAILED
            code = error.code
            raise
        finally:
            room.runs.end(run_id, outcome, error_code=code or None)


def wanted_disks(repository: Repository, manifest: Manifest) -> tuple[WantedDisk, ...]:
    """The point's disks with their places in the captured configuration.

    Raises: NotAVmPointError.
    """
    state = known_state(manifest)
    if state is None or manifest.source == "image":
        raise NotAVmPointError(f"{manifest.point_id} holds no configuration of a VM")
    disks = []
    for entry in manifest.disks:
        known = state.disk(entry.number)
        with closing(repository.open_image(manifest, entry.number)) as image:
            segments = sum(1 for _ in image.tree.leaves(0, segment_count(entry.size_bytes)))
        disks.append(
            WantedDisk(
                number=entry.number,
                label=entry.label,
                place=known.identity.place if known and known.identity else "",
                size_bytes=entry.size_bytes,
                data_bytes=min(segments * SEGMENT_BYTES, entry.size_bytes),
            )
        )
    return tuple(disks)


def _original_name(manifest: Manifest) -> str:
    vm = manifest.hardware.get("vm")
    name = vm.get("name") if isinstance(vm, dict) else None
    return name if isinstance(name, str) and name else manifest.vm


def _fill(
    repository: Repository,
    manifest: Manifest,
    request: NewVmRequest,
    vm: NewVm,
    context: RunContext,
    disk_begins: DiskBegins,
) -> tuple[RestoredDisk, ...]:
    """Write all disks. The first failure stops the others, and is the one that is raised."""
    stop = context.cancel.child()
    failures: list[BaseException] = []

    def one(disk: WantedDisk) -> RestoredDisk:
        progress = context.progress.part()
        disk_begins(disk.number, disk.label, progress)
        try:
            return _fill_disk(repository, manifest, disk, vm, RunContext(stop, progress))
        except BaseException as error:
            failures.append(error)
            stop.cancel()
            raise

    workers = min(len(request.disks), _DISKS_AT_ONCE)
    try:
        with closing(bounded_map(one, request.disks, workers=workers, name="disk")) as filled:
            return tuple(filled)
    except CancelledError:
        context.cancel.check()
        raise failures[0] from None


def _fill_disk(
    repository: Repository,
    manifest: Manifest,
    disk: WantedDisk,
    vm: NewVm,
    context: RunContext,
) -> RestoredDisk:
    started_s = time.perf_counter()
    with closing(repository.open_image(manifest, disk.number)) as image:
        sink = vm.open_disk(disk.number)
        restore = DiskRestore(
            repository.chunks,
            image.tree,
            disk.size_bytes,
            _NewDisk(sink),
            repository.options.workers,
            context,
            WriteOrder.ASCENDING,
        )
        restore.run()
        sink.close()
    return RestoredDisk(
        number=disk.number,
        label=disk.label,
        size_bytes=disk.size_bytes,
        written_bytes=restore.written_bytes,
        seconds=time.perf_counter() - started_s,
    )


class _NewDisk:
    """A sink as `DiskRestore` writes to it: what is left out is zeros already."""

    holds_old_content = False

    def __init__(self, sink: DiskSink) -> None:
        self._sink = sink

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        for buffer in buffers:
            self._sink.write_at(offset, buffer)
            offset += len(buffer)

    def zero(self, offset: int, length: int) -> None:
        self._sink.zero_at(offset, length)


def _powered_on(
    target: VmTarget,
    key: str,
    vm: NewVm,
    context: RunContext,
    reasons: list[Reason],
) -> bool:
    try:
        target.power_on(key, same_vm=vm.same_vm, cancel=context.cancel)
    except ApplianceError as error:
        log.warning("the restored VM was not powered on", vm=key, error=error)
        reasons.append(not_started(error))
        return False
    return True


def not_started(error: ApplianceError) -> Reason:
    return Reason(
        "restore.not-started",
        f"the VM is restored, but could not be powered on ([{error.code}] {error})",
        "look at the VM in its hypervisor's client and power it on there",
    )
