"""How a recovery session ends: moved to production storage, or discarded.

    finalise: move -> on again, if it was shut down -> proof that nothing is left behind -> settle
                                                    -> unmount -> withdraw -> remove
    discard:          power off and unregister                    -> unmount -> withdraw -> remove

Invariants: what the guest wrote is removed only when the VM provably left, or was taken away on
purpose; the export ends after the last host has unmounted it, else hosts would keep a dead
datastore. Both may be killed anywhere and done again.
Thread model: blocks; one thread per session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken, RunContext
from appliance.exports.datastore.session import Phase, SessionRecord
from appliance.jobs.recovery_room import RecoveryRoom, SessionSteps
from appliance.targets.recovery import (
    DowntimeNeededError,
    MoveRequest,
    RecoveryTarget,
    StillThereError,
    TargetState,
)

_LEAVING = (Phase.REGISTERED, Phase.RUNNING, Phase.FINALISING, Phase.MOVED)


class NothingToFinaliseError(UsageError):
    """This session has no VM that could move to production storage; resume or discard it."""

    code = "instant.nothing-to-finalise"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndResult:
    record: SessionRecord
    reasons: tuple[Reason, ...]


class _Downtime:
    """`Downtime`, in `session.json`."""

    def __init__(self, steps: SessionSteps) -> None:
        self._steps = steps

    @property
    def has_begun(self) -> bool:
        return self._steps.record.restart

    def begins(self) -> None:
        self._steps.save(restart=True)

    def ends(self) -> None:
        self._steps.save(restart=False)


def finalise(
    room: RecoveryRoom,
    target: RecoveryTarget,
    session_id: str,
    request: MoveRequest,
    context: RunContext,
    on_progress: Callable[[int], None] = lambda percent: None,
) -> EndResult:
    """Move the VM off the session, then end the session.

    Raises:
        NothingToFinaliseError, DowntimeNeededError, UsageError: nothing has changed.
        SourceError, TargetError, CancelledError: the VM is where it was, or has moved; the session
        stays, and finalising may be done again.
    """
    with room.store.working_on(session_id):
        steps = SessionSteps(room, room.store.get(session_id))
        key = steps.record.vm_key
        if steps.record.phase not in _LEAVING or key is None:
            raise NothingToFinaliseError(f"session {session_id} is {steps.record.phase}")
        state = TargetState(steps.record.target_state)
        room.server.serve(session_id)  # the host reads from it while it moves
        reasons: tuple[Reason, ...] = ()
        if steps.record.phase is not Phase.MOVED:
            began = steps.record.phase
            steps.save(phase=Phase.FINALISING)
            try:
                reasons = steps.run(
                    "move",
                    lambda: target.move(
                        state, key, request, _Downtime(steps), context.cancel, on_progress
                    ),
                )
            except (UsageError, DowntimeNeededError):
                steps.save(phase=began)
                raise
            if steps.record.restart:
                steps.run(
                    "power on",
                    lambda: target.power_on(state, key, CancelToken()),
                    lambda _: {"restart": False},
                )
            steps.run(
                "proof",
                lambda: _prove_left(target, state, key),
                lambda _: {"phase": Phase.MOVED},
            )
        hardware: dict[str, Any] = room.repository.points.find(steps.record.point_id).hardware
        steps.run("settle", lambda: target.settle(key, hardware))
        return _end(room, target, steps, reasons)


def discard_session(
    room: RecoveryRoom, target: RecoveryTarget, session_id: str, context: RunContext
) -> EndResult:
    """Take the VM away and drop what its guest wrote. From any half-way state.

    Raises: StillThereError: the VM has left in part; SourceError. The session stays.
    """
    with room.store.working_on(session_id):
        return discard(room, target, SessionSteps(room, room.store.get(session_id)), context)


def discard(
    room: RecoveryRoom, target: RecoveryTarget, steps: SessionSteps, context: RunContext
) -> EndResult:
    """As `discard_session`; the caller works on the session."""
    context.cancel.check()
    if steps.record.phase is not Phase.MOVED:
        steps.save(phase=Phase.DISCARDING)
    state = TargetState(steps.record.target_state)
    reasons = steps.run("take away", lambda: target.take_away(state, steps.record.vm_key))
    return _end(room, target, steps, reasons)


def _prove_left(target: RecoveryTarget, state: TargetState, key: str) -> None:
    behind = target.left_behind(state, key)
    if behind:
        raise StillThereError(f"{target.name}: not moved: {', '.join(behind[:5])}")


def _end(
    room: RecoveryRoom,
    target: RecoveryTarget,
    steps: SessionSteps,
    reasons: tuple[Reason, ...],
) -> EndResult:
    session_id = steps.record.session_id
    state = TargetState(steps.record.target_state)
    told = steps.run("unmount", lambda: target.unmount(state))
    steps.run("withdraw", lambda: room.server.withdraw(session_id))
    room.journal.end(session_id)
    room.store.remove(session_id)
    return EndResult(record=steps.record, reasons=(*reasons, *told))
