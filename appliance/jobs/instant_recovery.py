"""Instant recovery: a VM that runs from the repository within seconds. `instant start`.

    plan -> publish -> serve -> mount -> register -> power on -> heartbeat
            (folder)   (daemon) `------- the hypervisor, by a `RecoveryTarget` -------'

The session's folder exists before anything else does, and names all that may come to be; so a start
that was killed anywhere goes on with `resume`, and each step may be done twice. A start that is
cancelled before the VM runs takes everything away again.
Thread model: blocks; one thread per session.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from appliance.base.errors import ApplianceError, CancelledError, UsageError
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken, RunContext
from appliance.exports.datastore.session import Phase, SessionDisk, SessionRecord
from appliance.jobs.point_identity import known_state
from appliance.jobs.recovery_end import discard
from appliance.jobs.recovery_room import RecoveryRoom, SessionSteps
from appliance.jobs.session_space import refuse_without_room, space_reasons
from appliance.jobs.vm_restore import NotAVmPointError
from appliance.repository.manifest import Manifest
from appliance.targets.contract import WantedDisk
from appliance.targets.recovery import (
    GuestLife,
    Life,
    RecoveryPlan,
    RecoveryRequest,
    RecoveryTarget,
    TargetState,
)

HEARTBEAT_WITHIN_S = 600.0
_STARTING = (Phase.PUBLISHED, Phase.MOUNTED, Phase.REGISTERED, Phase.RUNNING)


class CannotResumeError(UsageError):
    """This session is past its start: it is being finalised or discarded, so do that again."""

    code = "instant.cannot-resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    power_on: bool
    heartbeat_within_s: float = HEARTBEAT_WITHIN_S
    reserve_bytes: int = 0  # kept free where guests' writes go
    owner_run: str = ""  # the verification that will discard it; empty: a person does


@dataclass(frozen=True, slots=True, kw_only=True)
class StartResult:
    record: SessionRecord
    life: GuestLife | None  # None: not powered on, or not waited for
    reasons: tuple[Reason, ...]


def start(
    room: RecoveryRoom,
    target: RecoveryTarget,
    manifest: Manifest,
    request: RecoveryRequest,
    options: StartOptions,
    context: RunContext,
) -> StartResult:
    """Make a session of the point and a VM of the session.

    A request that names no address of ours takes the one that the server is bound to; where it
    listens on all, the target finds out by which its hosts reach us.

    Raises:
        UsageError, NotAVmPointError, NoRoomForSessionsError, DaemonUnreachableError: nothing was
            made.
        SourceError, TargetError, DaemonRefusedError: the session stays; resume or discard it.
        CancelledError: nothing is left, unless the error's notes say so.
    """
    refuse_without_room(room.folder, options.reserve_bytes)
    began_s = room.clock.monotonic_s()
    plan = target.plan(replace(request, address=request.address or room.server.address))
    context.cancel.check()
    planned_s = room.clock.monotonic_s() - began_s
    room.step_ends("plan", planned_s)
    record = _record(room, target, manifest, request, options, plan)
    began_s = room.clock.monotonic_s()
    room.store.create(record, plan.files, room.open_image)
    steps = SessionSteps(room, record)
    with room.store.working_on(record.session_id):
        published_s = room.clock.monotonic_s() - began_s
        steps.note("plan", planned_s)
        steps.note("publish", published_s)
        room.step_ends("publish", published_s)
        return _go_on(room, target, steps, manifest, options, context, plan.reasons)


def resume(
    room: RecoveryRoom,
    target: RecoveryTarget,
    session_id: str,
    options: StartOptions,
    context: RunContext,
) -> StartResult:
    """Go on with a start that ended before its end. Raises: CannotResumeError, and as `start`."""
    with room.store.working_on(session_id):
        record = room.store.get(session_id)
        if record.phase not in _STARTING:
            raise CannotResumeError(f"session {session_id} is {record.phase}")
        manifest = room.repository.points.find(record.point_id)
        steps = SessionSteps(room, record)
        if options.power_on and not record.power_on:
            steps.save(power_on=True)
        return _go_on(room, target, steps, manifest, options, context, ())


def wanted_disks(manifest: Manifest) -> tuple[WantedDisk, ...]:
    """The point's disks with their places in the captured configuration.

    Raises: NotAVmPointError.
    """
    state = known_state(manifest)
    if state is None or manifest.source == "image":
        raise NotAVmPointError(f"{manifest.point_id} holds no configuration of a VM")
    found = []
    for entry in manifest.disks:
        known = state.disk(entry.number)
        found.append(
            WantedDisk(
                number=entry.number,
                label=entry.label,
                place=known.identity.place if known and known.identity else "",
                size_bytes=entry.size_bytes,
                data_bytes=entry.size_bytes,
            )
        )
    return tuple(found)


def _record(
    room: RecoveryRoom,
    target: RecoveryTarget,
    manifest: Manifest,
    request: RecoveryRequest,
    options: StartOptions,
    plan: RecoveryPlan,
) -> SessionRecord:
    return SessionRecord(
        session_id=request.session_id,
        created_at=room.clock.now(),
        point_id=manifest.point_id,
        vm=plan.vm_name,
        folder=plan.folder,
        disks=tuple(
            SessionDisk(number=disk.number, size_bytes=disk.size_bytes, file=disk.file)
            for disk in plan.disks
        ),
        tree_id=secrets.randbits(63) | 1,
        clients=plan.clients,
        host=target.name,
        presentation=plan.presentation,
        target_state=plan.state,
        power_on=options.power_on,
        owner_run=options.owner_run,
    )


def _go_on(
    room: RecoveryRoom,
    target: RecoveryTarget,
    steps: SessionSteps,
    manifest: Manifest,
    options: StartOptions,
    context: RunContext,
    told: Sequence[Reason],
) -> StartResult:
    reasons = [*told, *space_reasons(room.folder)]
    life: GuestLife | None = None
    try:
        life = _steps(room, target, steps, manifest, options, context, reasons)
    except CancelledError as error:
        if steps.record.phase is not Phase.RUNNING:
            _undo(room, target, steps, error)
            raise
        reasons.append(_NOT_AWAITED)
    return StartResult(record=steps.record, life=life, reasons=tuple(dict.fromkeys(reasons)))


def _steps(
    room: RecoveryRoom,
    target: RecoveryTarget,
    steps: SessionSteps,
    manifest: Manifest,
    options: StartOptions,
    context: RunContext,
    reasons: list[Reason],
) -> GuestLife | None:
    session_id, cancel = steps.record.session_id, context.cancel
    state = TargetState(steps.record.target_state)
    room.journal.begin(session_id, target.name, state)
    steps.run("serve", lambda: room.server.serve(session_id))
    cancel.check()
    if steps.record.phase is Phase.PUBLISHED:
        steps.run("mount", lambda: target.mount(state, cancel), lambda _: {"phase": Phase.MOUNTED})
        cancel.check()
    if steps.record.phase is Phase.MOUNTED:
        made = steps.run(
            "register",
            lambda: target.register(state, manifest.hardware, cancel),
            lambda vm: {"phase": Phase.REGISTERED, "vm_key": vm.key},
        )
        room.journal.made(session_id, made.key)
        reasons += made.reasons
        cancel.check()
    key = steps.record.vm_key
    if not steps.record.power_on or key is None:
        return None
    if steps.record.phase is Phase.REGISTERED:
        steps.run(
            "power on",
            lambda: target.power_on(state, key, cancel),
            lambda _: {"phase": Phase.RUNNING},
        )
    life = steps.run(
        "heartbeat",
        lambda: target.wait_alive(key, within_s=options.heartbeat_within_s, cancel=cancel),
    )
    if life.life is Life.NO_TOOLS:
        reasons.append(_NO_TOOLS)
    return life


def _undo(
    room: RecoveryRoom, target: RecoveryTarget, steps: SessionSteps, error: CancelledError
) -> None:
    try:
        discard(room, target, steps, RunContext(CancelToken(), RunContext.quiet().progress))
    except ApplianceError as second:
        error.add_note(
            f"session {steps.record.session_id} is left, discard it: [{second.code}] {second}"
        )


_NOT_AWAITED = Reason(
    "instant.not-awaited",
    "the VM runs; the wait for its heartbeat was cancelled",
    "none, or `instant discard` if the VM is not wanted",
)
_NO_TOOLS = Reason(
    "instant.no-tools",
    "the VM runs, but nothing in its guest reports a heartbeat",
    "look at its console; a guest without VMware Tools, or Hyper-V's services, never reports",
)
