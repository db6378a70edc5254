"""Freeze one Hyper-V VM for one run: from the look at it to its checkpoint being gone again.

    look -> a moment: hyperv_recovery_checkpoint, or hyperv_shadow_copy without reference points
    -> hyperv_frozen_disks -> captured configuration -> [the run reads over SMB]
    -> every handle closed -> what made the moment removed, or kept as a reference point

Invariants: what is made is in the intent journal before it is asked for, carries our marker, and is
gone when the block has ended, however it ended; what is not keeps its intent open. In a cluster,
what ends a freeze is done on the node that has the VM by then (`hyperv_freeze_run`). Nothing of
anybody else's is ever removed.

Thread model: a freeze belongs to one thread; what it yields may be read by many.
Source: design notes sections 3 to 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.sources.contract import FreezeRequest, SourceVm, VmNotProtectableError
from appliance.sources.freeze_reasons import no_disks
from appliance.sources.frozen import FrozenVm
from appliance.sources.hyperv_errors import hyperv_calls
from appliance.sources.hyperv_freeze_run import FreezeRun, FreezeTools
from appliance.sources.hyperv_frozen_disks import (
    FrozenDisks,
    captured_disk,
    covered_disks,
    readable_disks,
)
from appliance.sources.hyperv_listing import vm_obstacles
from appliance.sources.hyperv_reasons import reasons
from appliance.sources.hyperv_recovery_checkpoint import RecoveryCheckpoint
from appliance.sources.hyperv_shadow_copy import ShadowCopy
from appliance.sources.vm_identity import IDENTITY
from hyperv import config_capture
from hyperv.config_capture import Capture, capture_vm
from hyperv.inventory import Way, read_vm, way_to_freeze
from hyperv.script_types import Vm


@contextmanager
def frozen_vm(
    tools: FreezeTools,
    vm: SourceVm,
    request: FreezeRequest,
    context: RunContext,
    leftovers: list[Reason],
) -> Iterator[FrozenVm]:
    """See `VmSource.freeze`; what the end has to say goes to `leftovers`."""
    run = FreezeRun(tools, vm, request, context, leftovers)
    with ExitStack() as stack:
        with hyperv_calls(tools.host.name, context.cancel), run.staying():
            frozen = _begin(run, stack)
        yield frozen


def _begin(run: FreezeRun, stack: ExitStack) -> FrozenVm:
    """Freeze; `stack` undoes it. Raises: as `VmSource.freeze`, HypervErrors, DiskFileErrors."""
    vm = _look(run)
    covered, skipped = covered_disks(vm)
    if way_to_freeze(run.tools.host.facts, vm) is Way.RECOVERY_CHECKPOINT:
        moment = RecoveryCheckpoint(run).take(vm, stack)
    else:
        moment = ShadowCopy(run).take(vm, covered, stack)
    readable, unreadable = readable_disks(moment.disks, vm)
    skipped += unreadable
    if not readable:
        raise VmNotProtectableError(vm.name, no_disks("a checkpoint", skipped))
    disks = FrozenDisks(run).open(readable, moment, stack)
    captured = capture_vm(run.session, vm.id, run.patience)
    run.reasons += reasons(config_capture.findings(captured))
    capture = Capture(
        host=run.tools.host.facts.computer_name,
        os_version=run.tools.host.facts.os_version,
        vm=captured,
        disks=[captured_disk(disk.number, of) for disk, of in disks],
    )
    run.is_frozen = True
    return FrozenVm(
        name=run.request.point_name,
        created_at=moment.at,
        consistency=moment.consistency,
        source="hyperv",
        disks=sorted((disk for disk, _ in disks), key=lambda disk: disk.number),
        hardware={
            **capture.model_dump(mode="json"),
            IDENTITY: run.vm.identity.as_json(),
        },
        instance=run.vm.identity.key,
        skipped=tuple(skipped),
        reasons=tuple(dict.fromkeys(run.reasons)),
    )


def _look(run: FreezeRun) -> Vm:
    vm = read_vm(run.session, run.vm.key, run.patience)
    obstacles = vm_obstacles(run.tools.host.facts, vm)
    if obstacles:
        raise VmNotProtectableError(vm.name, obstacles[0])
    return vm
