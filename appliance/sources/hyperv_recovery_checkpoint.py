"""A moment of a VM by a recovery checkpoint, which becomes the reference point of the next run.

    recovery checkpoint, named -> [the run reads] -> reference point, older ones removed

Invariants: what is made is in the intent journal before it is asked for and carries our marker; the
checkpoint is gone when the freeze ends, or its intent stays open. A reference point stays, with an
open intent, until a newer one of a run that has ended well takes its place. Nothing of anybody
else's is ever removed.

Thread model: that of its freeze.
Source: design notes sections 3 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from appliance.base.consistency import Consistency, GuestLogs
from appliance.base.errors import ApplianceError
from appliance.base.reasons import Reason
from appliance.sources.contract import ConsistencyPolicy
from appliance.sources.hyperv_disks import frozen_names, journaled_points
from appliance.sources.hyperv_errors import hyperv_calls
from appliance.sources.hyperv_freeze_run import FreezeRun, Moment, consistency_of, not_removed
from appliance.sources.hyperv_orphans import checkpoints_before
from appliance.sources.hyperv_reasons import reasons
from appliance.sources.intents import Made
from hyperv.checkpoints import (
    BackupType,
    Level,
    list_checkpoints,
    read_disks,
    remove_checkpoint,
    take_checkpoint,
    wait_until_idle,
)
from hyperv.errors import HypervError
from hyperv.reference_points import convert, remove_reference_point
from hyperv.script_types import Checkpoint, CheckpointDisk, Vm

_MOVES_MOST = 4  # of a VM during one step
_BACKUP_TYPES = {GuestLogs.KEEP: BackupType.COPY, GuestLogs.TRUNCATE: BackupType.FULL}


class RecoveryCheckpoint:
    def __init__(self, run: FreezeRun) -> None:
        self._run = run

    def take(self, vm: Vm, stack: ExitStack) -> Moment:
        """The moment; `stack` ends it. Raises: ApplianceError, HypervError."""
        if self._run.request.parent is not None:
            kept = {self._run.request.parent.run_id}
            kept |= {self._run.request.broken.run_id} if self._run.request.broken else set()
            self._remove_points(vm.id, kept)
        wait_until_idle(self._run.session, vm.id, self._run.patience)
        intents = self._run.tools.intents
        before = list_checkpoints(self._run.session, vm.id, self._run.patience)
        intent = intents.record(
            Made.SNAPSHOT,
            self._run.request.run_id,
            vm.id,
            self._run.marker.text,
            checkpoints_before(before),
        )
        made: list[str] = []
        try:
            taken = take_checkpoint(
                self._run.session,
                vm.id,
                self._run.marker,
                levels=_levels(self._run.request.consistency),
                backup_type=_BACKUP_TYPES[self._run.request.guest_logs],
                patience=self._run.patience,
                on_made=made.append,
            )
        except HypervError as error:
            if self._is_gone(vm.id, made, before, error):
                intents.close(intent)
            raise
        at = self._run.tools.clock.now()
        intents.complete(intent, taken.id)
        disks: list[CheckpointDisk] = []

        def end(
            _kind: type[BaseException] | None,
            error: BaseException | None,
            _trace: TracebackType | None,
        ) -> None:
            self._end_checkpoint(vm.id, taken.id, intent, disks, is_committed=error is None)

        stack.push(end)
        self._run.reasons += reasons(taken.findings)
        disks += read_disks(self._run.session, taken.id, self._run.patience).disks
        return Moment(
            at=at, consistency=consistency_of(vm, taken.level), disks=disks, is_tracked=True
        )

    def _is_gone(
        self, vm_id: str, made: Sequence[str], before: Sequence[Checkpoint], error: HypervError
    ) -> bool:
        """Whether nothing is left of a checkpoint that could not be taken.

        One that moved away with its VM before it was named is removed where it is now; one that
        nobody told us of is left to the clean-up, because it might be another product's.
        """
        if self._run.is_at(self._run.tools.host):
            return not getattr(error, "__notes__", ())
        try:
            for checkpoint_id in made:
                self._remove(vm_id, checkpoint_id)
            there = list_checkpoints(
                self._run.owner().session, vm_id, self._run.patience.unstoppable()
            )
        except (ApplianceError, HypervError) as second:
            self._run.log.error("checkpoint not removed", checkpoint=made, error=second)
            return False
        known = {found.id for found in before}
        return not [each for each in there if each.kind == "recovery" and each.id not in known]

    def _remove(self, vm_id: str, checkpoint_id: str) -> None:
        """Where the VM is, wherever it goes meanwhile. Raises: ApplianceError, HypervError."""
        for _ in range(_MOVES_MOST):
            host = self._run.owner()
            try:
                remove_checkpoint(
                    host.session, vm_id, checkpoint_id, self._run.patience.unstoppable()
                )
            except HypervError:
                if self._run.is_at(host):
                    raise
                continue
            if self._run.is_at(host):
                return
        raise self._run.moved()

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
            with hyperv_calls(self._run.tools.host.name):
                if not self._run.is_frozen or not self._converted(vm_id, checkpoint_id, disks):
                    self._remove(vm_id, checkpoint_id)
                elif is_committed:
                    self._remove_points(vm_id, {self._run.request.run_id})
            self._run.tools.intents.close(intent)
        except ApplianceError as error:
            self._run.log.error("checkpoint not removed", checkpoint=checkpoint_id, error=error)
            self._run.leftovers.append(not_removed("recovery checkpoint", error))

    def _converted(
        self,
        vm_id: str,
        checkpoint_id: str,
        disks: Sequence[CheckpointDisk],
        *,
        tries: int = _MOVES_MOST,
    ) -> bool:
        """Whether the checkpoint went that way; if not, it is still there."""
        intents, host = self._run.tools.intents, self._run.owner()
        intent = intents.record(
            Made.REFERENCE_POINT,
            self._run.request.run_id,
            vm_id,
            self._run.marker.text,
            frozen_names(disks),
        )
        try:
            made = convert(host.session, vm_id, checkpoint_id, self._run.patience.unstoppable())
        except HypervError as error:
            intents.close(intent)
            if tries > 1 and not self._run.is_at(host):
                return self._converted(vm_id, checkpoint_id, disks, tries=tries - 1)
            self._run.log.warning("checkpoint not converted", checkpoint=checkpoint_id, error=error)
            self._run.leftovers.append(_not_converted(error))
            return False
        self._run.leftovers += reasons(made.findings)
        if made.point is None:
            intents.close(intent)
        else:
            intents.complete(intent, made.point.id)
        return True

    def _remove_points(self, vm_id: str, kept: set[str]) -> None:
        """Remove our reference points of other runs. One that resists is taken the next time."""
        session = self._run.owner().session
        for intent in journaled_points(self._run.tools.intents, vm_id):
            if intent.run_id in kept:
                continue
            try:
                if intent.made is not None:
                    remove_reference_point(session, intent.made, self._run.patience.unstoppable())
                self._run.tools.intents.close(intent.id)
            except HypervError as error:
                self._run.log.warning("reference point not removed", point=intent.made, error=error)


def _levels(policy: ConsistencyPolicy) -> list[Level]:
    """Hyper-V knows two: what it calls application is frozen file systems in a Linux guest."""
    if policy.wanted is Consistency.CRASH:
        return [Level.CRASH]
    return [Level.APPLICATION, *([Level.CRASH] if policy.least is Consistency.CRASH else [])]


def _not_converted(error: HypervError) -> Reason:
    return Reason(
        "rct.not-converted",
        f"the checkpoint was not turned into a reference point ([{error.code}] {error}), so the "
        "next backup reads whole disks",
        "look at the host's VMMS log if this comes back",
    )
