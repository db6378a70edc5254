"""Freeze one Hyper-V VM for one run: from the look at it to its checkpoint being gone again.

    look -> recovery checkpoint, named -> frozen files, change lists, captured configuration
    -> [the run reads over SMB] -> every handle closed -> reference point, older ones removed
    or, without reference points:  look -> shadow copy -> [read] -> shadow copy removed

Invariants: what is made is in the intent journal before it is asked for, carries our marker, and is
gone when the block has ended, however it ended; what is not keeps its intent open. In a cluster,
what ends a freeze is done on the node that has the VM by then. A reference
point stays, with an open intent, until a newer one of a run that has ended well takes its place.
Nothing of anybody else's is ever removed.

Thread model: a freeze belongs to one thread; what it yields may be read by many.
Source: design notes sections 3 to 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import TracebackType

from appliance.base.backoff import Backoff
from appliance.base.clock import Clock
from appliance.base.consistency import Consistency, GuestLogs
from appliance.base.errors import ApplianceError
from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.sources.contract import (
    ConsistencyPolicy,
    FreezeRequest,
    SourceVm,
    VmNotProtectableError,
)
from appliance.sources.frozen import FrozenDisk, FrozenVm, SkippedDisk
from appliance.sources.hyperv_disks import (
    ChangesAsked,
    change_id_of,
    frozen_names,
    identity_of_disk,
    journaled_points,
    numbers,
)
from appliance.sources.hyperv_errors import HypervMovedError, hyperv_calls
from appliance.sources.hyperv_host import HypervHost
from appliance.sources.hyperv_listing import (
    disk_label,
    relayed,
    vm_obstacles,
    volume_label,
)
from appliance.sources.hyperv_nodes import HypervNodes
from appliance.sources.hyperv_orphans import checkpoints_before
from appliance.sources.hyperv_reasons import reasons
from appliance.sources.hyperv_smb_reader import SmbDiskOpener
from appliance.sources.intents import Intents, Made
from appliance.sources.reopening_reader import ReopeningReader
from appliance.sources.vm_identity import IDENTITY
from hyperv import config_capture
from hyperv.checkpoints import (
    BackupType,
    Level,
    list_checkpoints,
    read_disks,
    remove_checkpoint,
    take_checkpoint,
    wait_until_idle,
)
from hyperv.config_capture import Capture, CapturedDisk, capture_vm
from hyperv.errors import HypervError
from hyperv.inventory import OFF, RUNNING, Way, disk_obstacle, read_vm, way_to_freeze
from hyperv.marker import Marker
from hyperv.patience import Patience
from hyperv.reference_points import convert, remove_reference_point
from hyperv.script_types import Checkpoint, CheckpointDisk, Vm, VmDisk
from hyperv.shadows import make_shadow, read_shadow_disks, remove_shadow
from hyperv.shares import share_drives, unshare
from hyperv.windows_path import drive_of

log = EventLog(__name__)

NO_TRACKING = Reason(
    "rct.not-supported",
    "this host or VM has no reference points, so whole disks are read and compared",
    "update the VM's configuration version to 8.0 or later on Windows Server 2016 or later",
    warning=False,
)


LOGS_TRUNCATED = Reason(
    "guest-logs.may-be-truncated",
    "diskshadow tells writers in the guest of a full backup, so they may truncate their logs",
    "where another backup needs the logs, update the VM's configuration version instead",
)
_MOVES_MOST = 4  # of a VM during one step
_BACKUP_TYPES = {GuestLogs.KEEP: BackupType.COPY, GuestLogs.TRUNCATE: BackupType.FULL}


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeTools:
    """What a freeze works with; the same for all runs of a host."""

    host: HypervHost  # that has the VM as the freeze begins
    nodes: HypervNodes
    appliance_id: str
    intents: Intents
    clock: Clock
    reopening: Backoff
    wait: Callable[[float], None]


@contextmanager
def frozen_vm(
    tools: FreezeTools,
    vm: SourceVm,
    request: FreezeRequest,
    context: RunContext,
    leftovers: list[Reason],
) -> Iterator[FrozenVm]:
    """See `VmSource.freeze`; what the end has to say goes to `leftovers`."""
    freeze = _Freeze(tools, vm, request, context, leftovers)
    with ExitStack() as stack:
        with hyperv_calls(tools.host.name, context.cancel), freeze.staying():
            frozen = freeze.begin(stack)
        yield frozen


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """A state of the VM that does not change."""

    at: datetime
    consistency: Consistency
    disks: Sequence[CheckpointDisk]
    is_tracked: bool


class _Freeze:
    def __init__(
        self,
        tools: FreezeTools,
        vm: SourceVm,
        request: FreezeRequest,
        context: RunContext,
        leftovers: list[Reason],
    ) -> None:
        self._tools = tools
        self._session = tools.host.session
        self._vm = vm
        self._request = request
        self._context = context
        self._leftovers = leftovers
        self._marker = Marker(appliance_id=tools.appliance_id, run_id=request.run_id)
        self._patience = Patience(is_cancelled=lambda: context.cancel.cancelled, wait=tools.wait)
        self._reasons: list[Reason] = []
        self._is_frozen = False  # the block has begun: what it read may be built upon
        self._log = log.bind(host=tools.host.name, vm=vm.name, run=request.run_id)

    def begin(self, stack: ExitStack) -> FrozenVm:
        """Freeze; `stack` undoes it. Raises: as `VmSource.freeze`, HypervErrors, DiskFileErrors."""
        vm = self._look()
        covered, skipped = _covered(vm)
        if way_to_freeze(self._tools.host.facts, vm) is Way.RECOVERY_CHECKPOINT:
            moment = self._checkpoint(vm, stack)
        else:
            moment = self._shadow(vm, covered, stack)
        readable, unreadable = _readable(moment.disks, vm)
        skipped += unreadable
        if not readable:
            raise VmNotProtectableError(vm.name, _no_disks(skipped))
        disks = self._disks(readable, moment, stack)
        captured = capture_vm(self._session, vm.id, self._patience)
        self._reasons += reasons(config_capture.findings(captured))
        capture = Capture(
            host=self._tools.host.facts.computer_name,
            os_version=self._tools.host.facts.os_version,
            vm=captured,
            disks=[_captured(disk.number, of) for disk, of in disks],
        )
        self._is_frozen = True
        return FrozenVm(
            name=self._request.point_name,
            created_at=moment.at,
            consistency=moment.consistency,
            source="hyperv",
            disks=sorted((disk for disk, _ in disks), key=lambda disk: disk.number),
            hardware={
                **capture.model_dump(mode="json"),
                IDENTITY: self._vm.identity.as_json(),
            },
            instance=self._vm.identity.key,
            skipped=tuple(skipped),
            reasons=tuple(dict.fromkeys(self._reasons)),
        )

    # Where the VM is

    @contextmanager
    def staying(self) -> Iterator[None]:
        """What fails in the block because the VM went to another node is that error."""
        try:
            yield
        except HypervError as error:
            if self._is_at(self._tools.host):
                raise
            raise self._moved() from error

    def _owner(self) -> HypervHost:
        return self._tools.nodes.owner(self._vm.key, self._vm.host)

    def _is_at(self, host: HypervHost) -> bool:
        """Never raises: nobody who says otherwise counts as yes."""
        try:
            name = self._tools.nodes.owner_name(self._vm.key, self._vm.host)
        except ApplianceError:
            return True
        return name.casefold() == host.facts.computer_name.casefold()

    def _moved(self) -> HypervMovedError:
        left = self._tools.host.facts.computer_name
        return HypervMovedError(
            f"{self._tools.host.name}: {self._vm.name} moved away from {left}", retryable=True
        )

    def _look(self) -> Vm:
        vm = read_vm(self._session, self._vm.key, self._patience)
        obstacles = vm_obstacles(self._tools.host.facts, vm)
        if obstacles:
            raise VmNotProtectableError(vm.name, obstacles[0])
        return vm

    # The moment, with a recovery checkpoint

    def _checkpoint(self, vm: Vm, stack: ExitStack) -> _Moment:
        if self._request.parent is not None:
            kept = {self._request.parent.run_id}
            kept |= {self._request.broken.run_id} if self._request.broken else set()
            self._remove_points(vm.id, kept)
        wait_until_idle(self._session, vm.id, self._patience)
        intents = self._tools.intents
        before = list_checkpoints(self._session, vm.id, self._patience)
        intent = intents.record(
            Made.SNAPSHOT,
            self._request.run_id,
            vm.id,
            self._marker.text,
            checkpoints_before(before),
        )
        made: list[str] = []
        try:
            taken = take_checkpoint(
                self._session,
                vm.id,
                self._marker,
                levels=_levels(self._request.consistency),
                backup_type=_BACKUP_TYPES[self._request.guest_logs],
                patience=self._patience,
                on_made=made.append,
            )
        except HypervError as error:
            if self._is_gone(vm.id, made, before, error):
                intents.close(intent)
            raise
        at = self._tools.clock.now()
        intents.complete(intent, taken.id)
        disks: list[CheckpointDisk] = []

        def end(
            _kind: type[BaseException] | None,
            error: BaseException | None,
            _trace: TracebackType | None,
        ) -> None:
            self._end_checkpoint(vm.id, taken.id, intent, disks, is_committed=error is None)

        stack.push(end)
        self._reasons += reasons(taken.findings)
        disks += read_disks(self._session, taken.id, self._patience).disks
        return _Moment(
            at=at, consistency=_consistency(vm, taken.level), disks=disks, is_tracked=True
        )

    def _is_gone(
        self, vm_id: str, made: Sequence[str], before: Sequence[Checkpoint], error: HypervError
    ) -> bool:
        """Whether nothing is left of a checkpoint that could not be taken.

        One that moved away with its VM before it was named is removed where it is now; one that
        nobody told us of is left to the clean-up, because it might be another product's.
        """
        if self._is_at(self._tools.host):
            return not getattr(error, "__notes__", ())
        try:
            for checkpoint_id in made:
                self._remove(vm_id, checkpoint_id)
            there = list_checkpoints(self._owner().session, vm_id, self._patience.unstoppable())
        except (ApplianceError, HypervError) as second:
            self._log.error("checkpoint not removed", checkpoint=made, error=second)
            return False
        known = {found.id for found in before}
        return not [each for each in there if each.kind == "recovery" and each.id not in known]

    def _remove(self, vm_id: str, checkpoint_id: str) -> None:
        """Where the VM is, wherever it goes meanwhile. Raises: ApplianceError, HypervError."""
        for _ in range(_MOVES_MOST):
            host = self._owner()
            try:
                remove_checkpoint(host.session, vm_id, checkpoint_id, self._patience.unstoppable())
            except HypervError:
                if self._is_at(host):
                    raise
                continue
            if self._is_at(host):
                return
        raise self._moved()

    def _end_checkpoint(
        self,
        vm_id: str,
        checkpoint_id: str,
        intent: int,
        disks: Sequence[CheckpointDisk],
        *,
        is_committed: bool,
    ) -> None:
        """Never raises: what is left is said, and found again by its marker."""
        try:
            with hyperv_calls(self._tools.host.name):
                if not self._is_frozen or not self._converted(vm_id, checkpoint_id, disks):
                    self._remove(vm_id, checkpoint_id)
                elif is_committed:
                    self._remove_points(vm_id, {self._request.run_id})
            self._tools.intents.close(intent)
        except ApplianceError as error:
            self._log.error("checkpoint not removed", checkpoint=checkpoint_id, error=error)
            self._leftovers.append(_not_removed("recovery checkpoint", error))

    def _converted(
        self,
        vm_id: str,
        checkpoint_id: str,
        disks: Sequence[CheckpointDisk],
        *,
        tries: int = _MOVES_MOST,
    ) -> bool:
        """Whether the checkpoint went that way; if not, it is still there."""
        intents, host = self._tools.intents, self._owner()
        intent = intents.record(
            Made.REFERENCE_POINT,
            self._request.run_id,
            vm_id,
            self._marker.text,
            frozen_names(disks),
        )
        try:
            made = convert(host.session, vm_id, checkpoint_id, self._patience.unstoppable())
        except HypervError as error:
            intents.close(intent)
            if tries > 1 and not self._is_at(host):
                return self._converted(vm_id, checkpoint_id, disks, tries=tries - 1)
            self._log.warning("checkpoint not converted", checkpoint=checkpoint_id, error=error)
            self._leftovers.append(_not_converted(error))
            return False
        self._leftovers += reasons(made.findings)
        if made.point is None:
            intents.close(intent)
        else:
            intents.complete(intent, made.point.id)
        return True

    def _remove_points(self, vm_id: str, kept: set[str]) -> None:
        """Remove our reference points of other runs. One that resists is taken the next time."""
        session = self._owner().session
        for intent in journaled_points(self._tools.intents, vm_id):
            if intent.run_id in kept:
                continue
            try:
                if intent.made is not None:
                    remove_reference_point(session, intent.made, self._patience.unstoppable())
                self._tools.intents.close(intent.id)
            except HypervError as error:
                self._log.warning("reference point not removed", point=intent.made, error=error)

    # The moment, with a shadow copy

    def _shadow(self, vm: Vm, covered: Sequence[VmDisk], stack: ExitStack) -> _Moment:
        if not covered:
            return _Moment(
                at=self._tools.clock.now(),
                consistency=Consistency.CRASH,
                disks=(),
                is_tracked=False,
            )
        intents = self._tools.intents
        intent = intents.record(Made.SNAPSHOT, self._request.run_id, vm.id, self._marker.text)
        try:
            shadow = make_shadow(self._session, vm.id, self._marker, covered, self._patience)
        except HypervError as error:
            if not getattr(error, "__notes__", ()):
                intents.close(intent)
            raise
        at = self._tools.clock.now()
        intents.complete(intent, self._marker.text)
        stack.callback(self._end_shadow, intent)
        self._reasons.append(NO_TRACKING)
        disks = read_shadow_disks(self._session, shadow, covered, self._patience)
        if vm.state == RUNNING and self._request.guest_logs is GuestLogs.KEEP:
            self._reasons.append(LOGS_TRUNCATED)
        is_rested = vm.state == RUNNING  # vm_obstacle has seen to the guest's VSS service
        return _Moment(
            at=at,
            consistency=_consistency(vm, Level.APPLICATION if is_rested else Level.CRASH),
            disks=disks,
            is_tracked=False,
        )

    def _end_shadow(self, intent: int) -> None:
        """Never raises."""
        try:
            with hyperv_calls(self._tools.host.name):
                remove_shadow(self._session, self._marker.text, self._patience.unstoppable())
            self._tools.intents.close(intent)
        except ApplianceError as error:
            self._log.error("shadow copy not removed", marker=self._marker.text, error=error)
            self._leftovers.append(_not_removed("shadow copy", error))

    # The disks

    def _disks(
        self, readable: Sequence[CheckpointDisk], moment: _Moment, stack: ExitStack
    ) -> list[tuple[FrozenDisk, CheckpointDisk]]:
        request = self._request
        shares = self._shares(readable, stack)
        asked = ChangesAsked(
            self._session, self._vm.key, self._vm.identity.key, self._tools.intents, self._patience
        )
        found = []
        for disk, number in zip(
            readable, numbers(readable, request.parent or request.broken), strict=True
        ):
            label = _label(disk)
            login = partial(
                self._tools.nodes.smb_login, [file.path for file in disk.chain], self._tools.host
            )
            opener = SmbDiskOpener(self._tools.host.name, login, disk.chain, shares)
            reader = ReopeningReader(
                label,
                disk.frozen.size_bytes,
                opener,
                self._context.cancel,
                backoff=self._tools.reopening,
            )
            stack.callback(reader.close)
            change_id = change_id_of(RunId(request.run_id)) if moment.is_tracked else None
            parent, broken = (request.parent, request.broken) if moment.is_tracked else (None, None)
            changes = asked.since(disk, number, parent)
            since_broken = asked.since(disk, number, broken)
            frozen = FrozenDisk(
                number=number,
                label=label,
                reader=reader,
                transfer=reader,
                changed=changes.extents,
                changed_since_broken=since_broken.extents,
                change_id=change_id,
                reasons=changes.reasons,
                identity=identity_of_disk(disk, change_id),
                datastore=volume_label(self._tools.host.name, disk.frozen.path),
            )
            found.append((frozen, disk))
        return found

    def _shares(
        self, disks: Sequence[CheckpointDisk], stack: ExitStack
    ) -> Mapping[str, str] | None:
        """Shares of ours where the host has no admin shares; None: it has."""
        if self._tools.host.facts.admin_shares:
            return None
        drives = sorted({drive_of(file.path) for disk in disks for file in disk.chain})
        stack.callback(self._unshare)
        return share_drives(self._session, drives, self._marker, self._patience)

    def _unshare(self) -> None:
        """Never raises."""
        try:
            unshare(self._session, self._marker.text, self._patience.unstoppable())
        except HypervError as error:
            self._log.warning("share not removed", marker=self._marker.text, error=error)


def _covered(vm: Vm) -> tuple[list[VmDisk], list[SkippedDisk]]:
    covered, skipped = [], []
    for disk in vm.disks:
        obstacle = disk_obstacle(disk)
        if obstacle is None:
            covered.append(disk)
        else:
            skipped.append(SkippedDisk(label=disk_label(disk), reason=relayed(obstacle)))
    return covered, skipped


def _readable(
    disks: Sequence[CheckpointDisk], vm: Vm
) -> tuple[list[CheckpointDisk], list[SkippedDisk]]:
    """Without those whose files nobody can look into, and those that were skipped already."""
    left_out = {disk.place for disk in vm.disks if disk_obstacle(disk) is not None}
    readable, skipped = [], []
    for disk in disks:
        if disk.place in left_out:
            continue
        broken = next((file for file in disk.chain if file.error), None)
        if broken is None:
            readable.append(disk)
        else:
            reason = Reason(
                "disk.unreadable",
                f"the host cannot look into {broken.path} ({broken.error})",
                "run `Test-VHD` on the host",
            )
            skipped.append(SkippedDisk(label=_label(disk), reason=reason))
    return readable, skipped


def _label(disk: CheckpointDisk) -> str:
    name = disk.chain[-1].path.rpartition("\\")[2]
    return f"{disk.controller.upper()} {disk.controller_number}:{disk.location} {name}"


def _captured(number: int, disk: CheckpointDisk) -> CapturedDisk:
    base, frozen = disk.chain[-1], disk.frozen
    return CapturedDisk(
        number=number,
        controller=disk.controller,
        controller_number=disk.controller_number,
        location=disk.location,
        path=base.path,
        format=base.format,
        type=base.type,
        virtual_disk_id=disk.virtual_disk_id,
        size_bytes=frozen.size_bytes,
        logical_sector_bytes=frozen.logical_sector_bytes,
        physical_sector_bytes=frozen.physical_sector_bytes,
        attachment=disk.attachment,
    )


def _levels(policy: ConsistencyPolicy) -> list[Level]:
    """Hyper-V knows two: what it calls application is frozen file systems in a Linux guest."""
    if policy.wanted is Consistency.CRASH:
        return [Level.CRASH]
    return [Level.APPLICATION, *([Level.CRASH] if policy.least is Consistency.CRASH else [])]


def _consistency(vm: Vm, level: Level) -> Consistency:
    if vm.state == OFF:
        return Consistency.OFFLINE
    return Consistency.APPLICATION if level is Level.APPLICATION else Consistency.CRASH


def _no_disks(skipped: Sequence[SkippedDisk]) -> Reason:
    words = "; ".join(f"[{disk.reason.code}] {disk.reason.text}" for disk in skipped)
    return Reason(
        "vm.no-disks",
        f"no disk can be covered by a checkpoint ({words or 'the VM has none'})",
        "see what is said of each disk",
    )


def _not_removed(what: str, error: ApplianceError) -> Reason:
    return Reason(
        "checkpoint.not-removed",
        f"the {what} of this run could not be removed ([{error.code}] {error})",
        "none at once: the next backup or clean-up removes it by its marker",
    )


def _not_converted(error: HypervError) -> Reason:
    return Reason(
        "rct.not-converted",
        f"the checkpoint was not turned into a reference point ([{error.code}] {error}), so the "
        "next backup reads whole disks",
        "look at the host's VMMS log if this comes back",
    )
