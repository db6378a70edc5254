"""What killed runs left on a Hyper-V host: found by journal and marker, removed, struck off.

Checkpoints, shadow copies, shares and unfinished VMs with their disk files carry our marker.
Reference points carry none: the journal names them, and they stay, because the next backup asks
them; only the entries of those that are gone are struck off. A checkpoint that a killed run had no
time to name is pointed out, not removed: it might be another product's.

In a cluster, all of it may have moved to another node.

Thread model: one at a time per appliance (`RunLocks.cleaning`). Source: `hyperv.orphans`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from appliance.base.log import EventLog
from appliance.sources.contract import Orphan
from appliance.sources.intents import Intents, Made, OpenIntent
from hyperv.checkpoints import list_checkpoints, wait_until_idle
from hyperv.errors import HypervError
from hyperv.host_session import HostSession
from hyperv.orphans import Outcome, look, remove
from hyperv.patience import Patience
from hyperv.reference_points import list_reference_points
from hyperv.script_types import Checkpoint

log = EventLog(__name__)

_BEFORE = "checkpoints before:"


def checkpoints_before(there: Sequence[Checkpoint]) -> str:
    """What the intent of a checkpoint says of those that the VM had already."""
    return "\n".join([_BEFORE, *(found.id for found in there if found.kind == "recovery")])


def remove_orphans(
    sessions: Sequence[HostSession],
    appliance_id: str,
    intents: Intents,
    alive: Callable[[], Collection[str]],
    patience: Patience,
    *,
    has_reference_points: bool,
    is_everybody: bool = True,
) -> list[Orphan]:
    """See `VmSource.remove_orphans`.

    Args:
        sessions: of the nodes that can be asked; the VMs may be on any.
        is_everybody: no node is missing, so what is on none of them is nowhere.

    Raises: HypervError, StorageError.
    """
    abandoned = intents.abandoned()
    made = [intent for intent in abandoned if intent.kind == Made.SNAPSHOT]
    unfinished = [intent for intent in abandoned if intent.kind == Made.VM]
    _wait_for_tasks(sessions, made, patience)
    found = [(session, look(session, appliance_id, patience)) for session in sessions]
    living = frozenset(alive())
    outcomes = [
        outcome
        for session, there in found
        for outcome in remove(session, there, lambda run: run not in living, patience)
    ]
    orphans = [_orphan(outcome) for outcome in outcomes]
    failed = {outcome.found.marker.run_id for outcome in outcomes if outcome.failure}
    for intent in made:
        unnamed = _unnamed(sessions, intent, patience) if intent.made is None else []
        orphans += unnamed
        if intent.run_id not in failed and not unnamed and is_everybody:
            intents.close(intent.id)
    for intent in unfinished:
        if intent.run_id not in failed and is_everybody:
            intents.close(intent.id)
    if has_reference_points and is_everybody:
        _strike_off_points(sessions, abandoned, intents, patience)
    for orphan in orphans:
        log.info("orphan", what=orphan.what, failure=orphan.failure)
    return orphans


def _wait_for_tasks(
    sessions: Sequence[HostSession], made: Sequence[OpenIntent], patience: Patience
) -> None:
    for vm_id in dict.fromkeys(intent.target for intent in made):
        for session in sessions:
            try:
                wait_until_idle(session, vm_id, patience)
            except HypervError as error:  # it is not there (any more): then the marks decide
                log.warning("a dead run's task was not waited for", vm=vm_id, error=error)


def _unnamed(
    sessions: Sequence[HostSession], intent: OpenIntent, patience: Patience
) -> list[Orphan]:
    """Recovery checkpoints of the VM without any marker, younger than the intent."""
    header, *seen = intent.detail.split("\n")
    if header != _BEFORE:
        return []
    return [
        Orphan(
            vm=intent.target,
            what=f"recovery checkpoint {found.id}",
            run_id=intent.run_id,
            failure="it carries no name of ours: remove it by hand unless another product made it",
        )
        for session in sessions
        for found in list_checkpoints(session, intent.target, patience)
        if found.kind == "recovery" and found.id not in seen
    ]


def _strike_off_points(
    sessions: Sequence[HostSession],
    abandoned: Sequence[OpenIntent],
    intents: Intents,
    patience: Patience,
) -> None:
    entries = [intent for intent in abandoned if intent.kind == Made.REFERENCE_POINT]
    if not entries:
        return
    there = {point.id for each in sessions for point in list_reference_points(each, "", patience)}
    for intent in entries:
        if intent.made is None or intent.made not in there:
            intents.close(intent.id)


def _orphan(outcome: Outcome) -> Orphan:
    found = outcome.found
    return Orphan(
        vm=found.vm_id or "the host",
        what=f"{found.kind} {found.id}",
        run_id=found.marker.run_id,
        failure=outcome.failure,
    )
