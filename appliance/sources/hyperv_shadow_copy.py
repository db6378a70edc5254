"""A moment of a VM by a shadow copy of its host's volumes: where there are no reference points.

    shadow copy -> [the run reads] -> shadow copy removed

Invariants: it is in the intent journal before it is asked for and carries our marker; it is gone
when the freeze ends, or its intent stays open. Nothing of anybody else's is ever removed.

Thread model: that of its freeze.
Source: design notes sections 3 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from appliance.base.consistency import Consistency, GuestLogs
from appliance.base.errors import ApplianceError
from appliance.base.reasons import Reason
from appliance.sources.hyperv_errors import hyperv_calls
from appliance.sources.hyperv_freeze_run import FreezeRun, Moment, consistency_of, not_removed
from appliance.sources.intents import Made
from hyperv.checkpoints import Level
from hyperv.errors import HypervError
from hyperv.inventory import RUNNING
from hyperv.script_types import Vm, VmDisk
from hyperv.shadows import make_shadow, read_shadow_disks, remove_shadow

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


class ShadowCopy:
    def __init__(self, run: FreezeRun) -> None:
        self._run = run

    def take(self, vm: Vm, covered: Sequence[VmDisk], stack: ExitStack) -> Moment:
        """The moment; `stack` ends it. Raises: ApplianceError, HypervError."""
        if not covered:
            return Moment(
                at=self._run.tools.clock.now(),
                consistency=Consistency.CRASH,
                disks=(),
                is_tracked=False,
            )
        intents = self._run.tools.intents
        intent = intents.record(
            Made.SNAPSHOT, self._run.request.run_id, vm.id, self._run.marker.text
        )
        try:
            shadow = make_shadow(
                self._run.session, vm.id, self._run.marker, covered, self._run.patience
            )
        except HypervError as error:
            if not getattr(error, "__notes__", ()):
                intents.close(intent)
            raise
        at = self._run.tools.clock.now()
        intents.complete(intent, self._run.marker.text)
        stack.callback(self._end, intent)
        self._run.reasons.append(NO_TRACKING)
        disks = read_shadow_disks(self._run.session, shadow, covered, self._run.patience)
        if vm.state == RUNNING and self._run.request.guest_logs is GuestLogs.KEEP:
            self._run.reasons.append(LOGS_TRUNCATED)
        is_rested = vm.state == RUNNING  # vm_obstacle has seen to the guest's VSS service
        return Moment(
            at=at,
            consistency=consistency_of(vm, Level.APPLICATION if is_rested else Level.CRASH),
            disks=disks,
            is_tracked=False,
        )

    def _end(self, intent: int) -> None:
        """Never raises."""
        try:
            with hyperv_calls(self._run.tools.host.name):
                remove_shadow(
                    self._run.session, self._run.marker.text, self._run.patience.unstoppable()
                )
            self._run.tools.intents.close(intent)
        except ApplianceError as error:
            self._run.log.error(
                "shadow copy not removed", marker=self._run.marker.text, error=error
            )
            self._run.leftovers.append(not_removed("shadow copy", error))
