"""What killed runs left on a vSphere host: found by journal and marker, removed, struck off.

The journal names what may be there; the marks say what is. Both are needed: a journal can be lost,
and a disk on the appliance carries no mark. Where a killed run had asked for a snapshot or a disk,
its task may still be at work: that is waited for first, else the thing would appear behind our
back.

Thread model: one at a time per appliance (`RunLocks.cleaning`).
Source: `vmware.orphans`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from appliance.base.log import EventLog
from appliance.sources.contract import Orphan
from appliance.sources.intents import Intents, Made, OpenIntent
from appliance.sources.vsphere_transports import SourceTools
from vmware.errors import VsphereError
from vmware.orphans import OrphanOutcome, SeenSnapshot, SeenVm, look, plan_orphans
from vmware.orphans import remove_orphans as remove_planned
from vmware.patience import Patience
from vmware.running_tasks import TaskKind, settle
from vmware.session import Session
from vmware.transports.attach_intent import AttachIntent, parse_intent

log = EventLog(__name__)

_SETTLE_DEADLINE_S = 600.0
_TASKS: dict[str, TaskKind] = {
    Made.SNAPSHOT: TaskKind.SNAPSHOT,
    Made.HOT_ADDED_DISK: TaskKind.RECONFIGURE,
}


def remove_orphans(
    session: Session,
    appliance_id: str,
    tools: SourceTools,
    intents: Intents,
    alive: Callable[[], Collection[str]],
) -> list[Orphan]:
    """See `VmSource.remove_orphans`. Raises VsphereError, StorageError."""
    patience = Patience(wait=tools.wait)
    abandoned = intents.abandoned()
    _wait_for_tasks(session, abandoned, patience)
    sight = look(session, appliance_id, tools.appliance_disks)
    living = frozenset(alive())
    attached = [intent for intent in map(_attach_intent, abandoned) if intent is not None]
    plan = plan_orphans(sight, attached, lambda run: run in living)
    outcomes = remove_planned(session, plan, appliance_id, tools.appliance_disks, patience=patience)
    _strike_off(intents, abandoned, outcomes)
    for outcome in outcomes:
        log.info("orphan", what=_what(outcome), failure=outcome.failure)
    return [
        Orphan(
            vm=_vm(outcome),
            what=_what(outcome),
            run_id=_run(outcome),
            failure=outcome.failure,
        )
        for outcome in outcomes
    ]


def _wait_for_tasks(session: Session, abandoned: Sequence[OpenIntent], patience: Patience) -> None:
    asked = [(intent.target, _TASKS[intent.kind]) for intent in abandoned if intent.kind in _TASKS]
    for moref, kind in dict.fromkeys(asked):
        try:
            settle(session, moref, kind, patience, deadline_s=_SETTLE_DEADLINE_S)
        except VsphereError as error:  # the VM is gone, or the task hangs: then the marks decide
            log.warning("a dead run's task was not waited for", vm=moref, error=error)


def _attach_intent(intent: OpenIntent) -> AttachIntent | None:
    return parse_intent(intent.detail) if intent.kind == Made.HOT_ADDED_DISK else None


def _strike_off(
    intents: Intents, abandoned: Sequence[OpenIntent], outcomes: Sequence[OrphanOutcome]
) -> None:
    """Close what is gone, or never was; what could not be removed stays."""
    failed = {_run(outcome) for outcome in outcomes if outcome.failure}
    for intent in abandoned:
        if intent.run_id not in failed and intent.kind in tuple(Made):
            intents.close(intent.id)


def _vm(outcome: OrphanOutcome) -> str:
    thing = outcome.thing
    if isinstance(thing, SeenSnapshot):
        return thing.vm_name
    return thing.name if isinstance(thing, SeenVm) else "the appliance"


def _what(outcome: OrphanOutcome) -> str:
    thing = outcome.thing
    if isinstance(thing, SeenSnapshot):
        return f"snapshot {thing.moref}"
    if isinstance(thing, SeenVm):
        return "unfinished VM"
    return f"attached disk {thing.file_name}"


def _run(outcome: OrphanOutcome) -> str:
    thing = outcome.thing
    return thing.run_id if isinstance(thing, AttachIntent) else thing.marker.run_id
