"""Freeze one vSphere VM for one run: from the look at it to its snapshot being gone again.

    look, pre-checks -> tracking on (or reset) -> snapshot -> captured configuration, change lists
    -> [the run reads] -> readers closed -> snapshot removed, consolidation checked

Invariants: every snapshot is in the intent journal before it is asked for, carries our marker, and
is removed however the block ends, also by a cancel. One that cannot be removed keeps its intent
open, so that the next clean-up takes it. Nothing of anybody else's is ever removed.

Thread model: a freeze belongs to one thread; what it yields may be read by many.
Source: design notes sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from appliance.base.backoff import Backoff
from appliance.base.consistency import Consistency, GuestLogs
from appliance.base.errors import ApplianceError
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.blocks.extents import Extent
from appliance.sources.allocated_reader import AllocatedReader
from appliance.sources.changes import is_mistrusted
from appliance.sources.contract import (
    ConsistencyPolicy,
    FreezeRequest,
    SourceVm,
    VmNotProtectableError,
)
from appliance.sources.freeze_reasons import no_disks
from appliance.sources.frozen import FrozenDisk, FrozenVm, SkippedDisk
from appliance.sources.intents import Intents, Made
from appliance.sources.reopening_reader import ReopeningReader
from appliance.sources.vm_identity import IDENTITY
from appliance.sources.vsphere_disks import (
    DiskOpener,
    FrozenAt,
    changes_since,
    identity_of_disk,
    numbers,
    snapshot_disks,
)
from appliance.sources.vsphere_reasons import reason, reasons, vsphere_calls
from vmware import config_capture
from vmware.change_tracking import Tracking, enable_tracking, reset_tracking
from vmware.changed_blocks import allocated_areas
from vmware.consolidation import consolidate
from vmware.disks import DiskInfo, disk_obstacle
from vmware.errors import CancelledError as VsphereCancelled
from vmware.errors import ObjectGoneError, VsphereError
from vmware.findings import Weight
from vmware.inventory import Power, VmInfo, read_vm, vm_obstacle
from vmware.marker import Marker, Purpose
from vmware.patience import Patience
from vmware.prechecks import check_vm
from vmware.quiesce import Ladder, Rung
from vmware.session import Session
from vmware.snapshots import REMOVE_DEADLINE_S, TakenSnapshot, create_snapshot, remove_snapshot
from vmware.transports.contract import Transport

log = EventLog(__name__)

LOGS_KEPT = Reason(
    "guest-logs.kept",
    "vSphere tells writers in the guest of a copy, so they keep their logs",
    "truncate logs within the guest, or with the application's own backup",
)

_NEVER_CAPTURED = ("storage_policies",)
_RUNGS = {
    Consistency.CRASH: Rung.CRASH,
    Consistency.FILE_SYSTEM: Rung.FILE_SYSTEM,
    Consistency.APPLICATION: Rung.APPLICATION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeTools:
    """What a freeze works with; the same for all runs of a host."""

    host: str
    session: Session
    appliance_id: str
    intents: Intents
    reopening: Backoff
    wait: Callable[[float], None]


@contextmanager
def frozen_vm(
    tools: FreezeTools,
    vm: SourceVm,
    request: FreezeRequest,
    ways: Sequence[Transport],
    context: RunContext,
    leftovers: list[Reason],
) -> Iterator[FrozenVm]:
    """See `VmSource.freeze`; what the end has to say goes to `leftovers`."""
    freeze = _Freeze(tools, vm, request, ways, context, leftovers)
    with ExitStack() as stack:
        with vsphere_calls(tools.host, context.cancel):
            frozen = freeze.begin(stack)
        yield frozen


class _Freeze:
    def __init__(
        self,
        tools: FreezeTools,
        vm: SourceVm,
        request: FreezeRequest,
        ways: Sequence[Transport],
        context: RunContext,
        leftovers: list[Reason],
    ) -> None:
        self._tools = tools
        self._session = tools.session
        self._vm = vm
        self._request = request
        self._ways = ways
        self._context = context
        self._leftovers = leftovers
        self._marker = Marker(appliance_id=tools.appliance_id, run_id=request.run_id)
        self._patience = Patience(cancelled=lambda: context.cancel.cancelled, wait=tools.wait)
        self._reasons: list[Reason] = []
        self._started = False  # tracking, anew, in this run and without snapshots: it is sound
        self._log = log.bind(host=tools.host, vm=vm.name, run=request.run_id)

    def begin(self, stack: ExitStack) -> FrozenVm:
        """Freeze; `stack` undoes it. Raises: as `VmSource.freeze`, and VsphereErrors."""
        vm = self._look()
        if self._request.guest_logs is GuestLogs.TRUNCATE:
            self._reasons.append(LOGS_KEPT)
        self._prepare_tracking(vm)
        taken = self._take_snapshot(stack)
        self._reasons += reasons(taken.findings)
        at = FrozenAt(
            session=self._session,
            vm=vm,
            snapshot_moref=taken.moref,
            instance=self._vm.identity.key,
        )
        disks, skipped = self._disks(at, stack)
        if not disks:
            raise VmNotProtectableError(vm.name, no_disks("a snapshot", skipped))
        hardware = config_capture.capture(self._session, vm.moref, taken.moref)
        self._reasons += _not_captured(hardware)
        return FrozenVm(
            name=self._request.point_name,
            created_at=taken.created_at,
            consistency=Consistency(taken.consistency.value),
            source="vsphere",
            disks=disks,
            hardware={**hardware, IDENTITY: self._vm.identity.as_json()},
            instance=self._vm.identity.key,
            skipped=tuple(skipped),
            reasons=tuple(dict.fromkeys(self._reasons)),
        )

    # Before the snapshot

    def _look(self) -> VmInfo:
        vm = read_vm(self._session, self._vm.key)
        uuid = self._vm.identity.instance_uuid
        if uuid is not None and vm.instance_uuid not in ("", uuid):  # an ESXi host reuses ids
            raise ObjectGoneError(f"{self._vm.name} is gone; {vm.name} has its id {vm.moref} now")
        obstacle = vm_obstacle(vm)
        if obstacle is not None:
            raise VmNotProtectableError(vm.name, reason(obstacle))
        findings = check_vm(self._session, vm)
        blocking = [found for found in findings if found.weight is Weight.BLOCKING]
        if blocking:
            raise VmNotProtectableError(vm.name, reason(blocking[0]))
        # disks that cannot be covered are skipped one by one, each with its reason
        self._reasons += reasons(found for found in findings if not found.code.startswith("disk."))
        if vm.consolidation_needed:
            outcome = consolidate(
                self._session, vm.moref, patience=self._patience, deadline_s=REMOVE_DEADLINE_S
            )
            self._reasons += reasons(outcome.findings)
        return vm

    def _prepare_tracking(self, vm: VmInfo) -> None:
        """Tracking that cannot be had costs reading, never the backup."""
        parent = self._request.parent
        mistrusted = self._request.reset_due or (
            parent is not None and any(is_mistrusted(disk) for disk in parent.disks)
        )
        if vm.cbt_enabled and not mistrusted:
            return
        intent = self._record(replace(self._marker, purpose=Purpose.TRACKING))
        switch = reset_tracking if mistrusted else enable_tracking
        try:
            outcome = switch(self._session, vm.moref, self._marker, patience=self._patience)
        except VsphereCancelled:
            raise
        except VsphereError as error:  # the intent stays, in case a snapshot does
            self._reasons.append(_tracking_failed(error))
            return
        self._tools.intents.close(intent)
        self._started = outcome.tracking is Tracking.STARTED
        self._reasons += reasons(outcome.findings)

    # The snapshot

    def _record(self, marker: Marker) -> int:
        return self._tools.intents.record(
            Made.SNAPSHOT, self._request.run_id, self._vm.key, marker.snapshot_name
        )

    def _take_snapshot(self, stack: ExitStack) -> TakenSnapshot:
        intent = self._record(self._marker)
        try:
            taken = create_snapshot(
                self._session,
                self._vm.key,
                self._marker,
                ladder=_ladder(self._request.consistency),
                patience=self._patience,
            )
        except VsphereError as error:
            if not getattr(error, "__notes__", ()):  # else something of it is left
                self._tools.intents.close(intent)
            raise
        stack.callback(self._remove_snapshot, taken.moref, intent)
        self._tools.intents.complete(intent, taken.moref)
        return taken

    def _remove_snapshot(self, moref: str, intent: int) -> None:
        """Never raises: what is left is said, and found again by its marker."""
        try:
            with vsphere_calls(self._tools.host):
                outcome = remove_snapshot(
                    self._session,
                    self._vm.key,
                    moref,
                    appliance_id=self._tools.appliance_id,
                    patience=self._patience.unstoppable(),
                )
            self._leftovers += reasons(outcome.findings)
            self._tools.intents.close(intent)
        except ApplianceError as error:
            self._log.error("snapshot not removed", snapshot=moref, error=error)
            self._leftovers.append(_not_removed(error))

    # The disks

    def _disks(self, at: FrozenAt, stack: ExitStack) -> tuple[list[FrozenDisk], list[SkippedDisk]]:
        frozen: list[FrozenDisk] = []
        skipped: list[SkippedDisk] = []
        present = snapshot_disks(self._session, at.snapshot_moref)
        number_of = numbers(present, self._request.parent or self._request.broken)
        for disk in present:
            obstacle = disk_obstacle(disk, vm_off=at.vm.power is Power.OFF)
            if obstacle is not None:
                skipped.append(SkippedDisk(label=disk.label, reason=reason(obstacle)))
            else:
                frozen.append(self._disk(at, disk, number_of[disk.key], stack))
        return sorted(frozen, key=lambda disk: disk.number), skipped

    def _disk(self, at: FrozenAt, disk: DiskInfo, number: int, stack: ExitStack) -> FrozenDisk:
        request, cancel = self._request, self._context.cancel
        opener = DiskOpener(at, disk, self._ways, self._tools.host, cancel)
        reopening = ReopeningReader(
            disk.label, disk.capacity_bytes, opener, cancel, backoff=self._tools.reopening
        )
        stack.callback(reopening.close)
        changes = changes_since(at, disk, number, request.parent, self._patience)
        since_broken = changes_since(at, disk, number, request.broken, self._patience)
        old = request.parent.disk(number) if request.parent else None
        reader = reopening if old else self._without_holes(at, disk, reopening)
        mistrusted = request.reset_due if old is None else is_mistrusted(old)
        believed = self._started or not mistrusted
        return FrozenDisk(
            number=number,
            label=disk.label,
            reader=reader,
            transfer=reader,
            changed=changes.extents,
            changed_since_broken=since_broken.extents,
            change_id=(disk.change_id or None) if believed else None,
            reasons=changes.reasons,
            identity=identity_of_disk(disk),
            datastore=disk.datastore_name,
        )

    def _without_holes(
        self, at: FrozenAt, disk: DiskInfo, reader: ReopeningReader
    ) -> ReopeningReader | AllocatedReader:
        """For a first full read. Who started tracking while the VM had snapshots may have missed
        writes, so what is allocated is believed only where this run has started it."""
        if not self._started:
            return reader
        found = allocated_areas(
            self._session, at.vm.moref, at.snapshot_moref, disk, patience=self._patience
        )
        if found is None:
            return reader
        return AllocatedReader(reader, [Extent(*area) for area in found.areas])


def _ladder(policy: ConsistencyPolicy) -> Ladder:
    return Ladder(top=_RUNGS[policy.wanted], bottom=_RUNGS[policy.least])


def _not_captured(hardware: Mapping[str, Any]) -> list[Reason]:
    """What of the configuration a restore will lack; what never is captured goes without saying."""
    return [
        Reason(
            "capture.incomplete",
            f"{lost['part']} could not be captured ([{lost['code']}] {lost['text']})",
            "look at what failed; a restore does without it",
            # the configuration itself stands beside it, and hosts may lock the file of a running VM
            warning=lost["part"] != "vmx",
        )
        for lost in hardware["not_captured"]
        if lost["part"] not in _NEVER_CAPTURED
    ]


def _tracking_failed(error: VsphereError) -> Reason:
    return Reason(
        "cbt.not-started",
        f"changed block tracking could not be turned on ({error}), so whole disks are read",
        "look at what failed; the next backup tries again",
    )


def _not_removed(error: ApplianceError) -> Reason:
    return Reason(
        "snapshot.not-removed",
        f"the snapshot of this run could not be removed ([{error.code}] {error})",
        "none at once: the next backup or clean-up removes it by its marker",
    )
