"""One guest of a verification on a hypervisor: an instant recovery that is always discarded.

    point -> session, shown to hosts -> VM on an isolated network -> heartbeat -> screenshot -> gone

The network has no uplink and the appliance is not on it, so probes do not reach the guest: what
says that it works is the heartbeat of the tools (on Hyper-V: integration services) inside it. One
without tools never passes by waiting (`verdict_of`). The session carries the run that made it; one
whose run is dead is debris, and removed by `discard_debris`.

The guests of a group boot in order, on one network and one machine: those of the first.
Thread model: one thread per guest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.base.atomic import make_folders, replace_file
from appliance.base.errors import ApplianceError, CancelledError
from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.exports.datastore.session import SessionNotFoundError
from appliance.jobs.boot_stages import judge_shown
from appliance.jobs.guest_stages import StagedGuest, reason_of
from appliance.jobs.instant_recovery import StartOptions, start, wanted_disks
from appliance.jobs.recovery_end import discard_session
from appliance.jobs.recovery_room import RecoveryRoom
from appliance.jobs.verification_plan import GuestPlan
from appliance.jobs.verification_stages import (
    StageName,
    failed,
    passed,
    skipped,
)
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.sandbox.network import IsolatedNetwork
from appliance.sources.listed_vm import VERIFICATION_PREFIX
from appliance.targets.contract import Keep, WantedVmPlace
from appliance.targets.recovery import (
    Breadth,
    GuestLife,
    Life,
    RecoveryRequest,
    TargetState,
    WitnessedTarget,
)

log = EventLog(__name__)

NO_TOOLS = Reason(
    "verify.no-tools",
    "nothing in the guest reports a heartbeat, so it cannot be told whether it works",
    "look at the screenshot; install VMware Tools or Hyper-V's services in the guest, or boot it in"
    " the sandbox with a probe",
)
NETWORK_ISOLATED = Reason(
    "verify.network-isolated",
    "on the hypervisor the guest's network leads nowhere, so nothing of it was probed",
    "none: the heartbeat decides; probes are for the sandbox",
    warning=False,
)
NO_GUEST_ACCOUNT = Reason(
    "verify.no-guest-account",
    "scripts inside the guest need an account of the guest, and none is known",
    "none: scripts are for the sandbox",
    warning=False,
)
SCREEN_UNAVAILABLE = Reason(
    "verify.screen-unavailable",
    "the hypervisor gave no screenshot",
    "see the detail; on vSphere the account needs VirtualMachine.Interact.CreateScreenshot",
)

_STEPS: tuple[tuple[StageName, tuple[str, ...]], ...] = (
    (StageName.PUBLISHED, ("plan", "publish", "serve")),
    (StageName.REGISTERED, ("mount", "register")),
    (StageName.POWERED_ON, ("power on",)),
    (StageName.READY, ("heartbeat",)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypervisor:
    """A registered host, logged in to, and what sessions need of this appliance."""

    room: RecoveryRoom
    target: WitnessedTarget
    run_id: RunId  # that owns the sessions
    address: str = ""  # where hosts reach this machine's NFS or iSCSI server; empty: found out
    reserve_bytes: int = 0


@dataclass(slots=True, kw_only=True)
class GroupNetwork:
    """What the guests of one plan share. Belongs to the plan's thread."""

    name: str
    machine: str = ""  # that has it, once a guest was placed
    guests: int = 0  # that are, or may be, on it

    @classmethod
    def for_guests(cls, hypervisor: Hypervisor, count: int) -> GroupNetwork | None:
        """None: a guest by itself has the network of its session."""
        if count < 2:
            return None
        return cls(name=f"holdfast-{hypervisor.room.store.new_id()}")


class HypervisorVerification(StagedGuest):
    def __init__(
        self,
        repository: Repository,
        plan: GuestPlan,
        manifest: Manifest,
        context: RunContext,
        *,
        artifact_folder: Path,
        hypervisor: Hypervisor,
        network: GroupNetwork | None = None,
    ) -> None:
        super().__init__(repository, plan, manifest, context, artifact_folder=artifact_folder)
        self._steps: dict[str, float] = {}
        self._hypervisor = hypervisor
        self._room = replace(hypervisor.room, step_ends=self._steps.__setitem__)
        self._network = network
        self._session_id = hypervisor.room.store.new_id()
        self._open = False  # there may be something to discard
        self._recovered_s: float | None = None

    @property
    def ready(self) -> bool:
        return self._recovered_s is not None

    @property
    def recovery_s(self) -> float | None:
        return self._recovered_s

    def start(self, network: IsolatedNetwork | None) -> None:
        if self.plan.boot is None:
            return
        if self._has_failed(StageName.HASHED):
            self._skip_rest()
            return
        self._context.cancel.check()
        began_s = time.perf_counter()
        options = StartOptions(
            power_on=True,
            heartbeat_within_s=self.plan.boot.deadline_s,
            reserve_bytes=self._hypervisor.reserve_bytes,
            owner_run=self._hypervisor.run_id,
        )
        self._open = True
        if self._network is not None:
            self._network.guests += 1
        try:
            started = start(
                self._room,
                self._hypervisor.target,
                self.manifest,
                self._request(),
                options,
                self._context,
            )
        except CancelledError:
            raise
        except ApplianceError as error:
            self._failed_at(error, time.perf_counter() - began_s)
            return
        if self._network is not None:
            state = TargetState(started.record.target_state)
            self._network.machine = self._hypervisor.target.machine_of(state)
        self._context.cancel.check()
        self._notes += [reason for reason in started.reasons if reason.code not in _SAID_HERE]
        self._judge(started.life, time.perf_counter() - began_s)

    def script(self) -> None:
        if self.plan.scripts and self.ready:
            self._put(skipped(StageName.SCRIPT, NO_GUEST_ACCOUNT))

    def finish(self) -> None:
        if self._was_on:
            with self._stage(StageName.SCREENSHOT):
                self._look()
        if self._open:
            began_s = time.perf_counter()
            with self._stage(StageName.CLEAN_UP):
                self._discard()
                self._put(passed(StageName.CLEAN_UP, time.perf_counter() - began_s))

    def close(self) -> None:
        """What cannot be discarded now is by the patrol, an hour later at most."""
        if not self._open:
            return
        try:
            self._discard()
        except ApplianceError as error:
            log.error("session not discarded", session=self._session_id, error=error)

    # Steps

    def _request(self) -> RecoveryRequest:
        return RecoveryRequest(
            session_id=self._session_id,
            name=f"{VERIFICATION_PREFIX}{self._session_id}",
            hardware=self.manifest.hardware,
            disks=wanted_disks(self.manifest),
            place=WantedVmPlace(machine=self._network.machine if self._network else ""),
            networks=(),
            isolated=frozenset(),
            isolate_all=True,
            unconnected=frozenset(),
            mac=Keep.AUTO,
            identity=Keep.NEW,
            address=self._hypervisor.address,
            breadth=Breadth.HOST,
            isolated_name=self._network.name if self._network else "",
        )

    def _judge(self, life: GuestLife | None, seconds: float) -> None:
        for stage, steps in _STEPS[:-1]:
            self._put(passed(stage, self._seconds(steps)))
        heartbeat_s = self._seconds(("heartbeat",))
        if life is not None and life.life is Life.BEATING:
            self._recovered_s = seconds
            self._put(passed(StageName.READY, heartbeat_s, "heartbeat"))
        else:
            self._put(skipped(StageName.READY, NO_TOOLS, f"waited {heartbeat_s:.0f} s"))
        if self.plan.probes:
            self._put(skipped(StageName.PROBED, NETWORK_ISOLATED))

    def _failed_at(self, error: ApplianceError, seconds: float) -> None:
        """The first stage whose steps have not all been done is the one that failed."""
        for stage, steps in _STEPS:
            if not all(step in self._steps for step in steps):
                spent_s = seconds - sum(self._steps.values())
                self._put(failed(stage, max(spent_s, 0.0), reason_of(error)))
                break
            self._put(passed(stage, self._seconds(steps)))
        self._skip_rest(but=(StageName.SCREENSHOT, StageName.CLEAN_UP))

    def _seconds(self, steps: tuple[str, ...]) -> float:
        return sum(self._steps.get(step, 0.0) for step in steps)

    def _look(self) -> None:
        record = self._room.store.get(self._session_id)
        began_s = time.perf_counter()
        try:
            png = self._hypervisor.target.screenshot(
                TargetState(record.target_state), record.vm_key or "", self._context.cancel
            )
        except CancelledError:
            raise
        except ApplianceError as error:
            self._put(skipped(StageName.SCREENSHOT, SCREEN_UNAVAILABLE, str(error)[:500]))
            return
        make_folders(self._folder)
        replace_file(self._folder / "screen.png", png)
        result, self._screen = judge_shown(png, time.perf_counter() - began_s)
        self._put(result)

    def _discard(self) -> None:
        """Even when the run was cancelled. Raises ApplianceError: the session stays."""
        context = RunContext(CancelToken(), Progress())
        with suppress(SessionNotFoundError):  # it never came to be, or is gone already
            ended = discard_session(self._room, self._hypervisor.target, self._session_id, context)
            self._notes += [reason for reason in ended.reasons if not self._expected(reason)]
        if self._network is not None:
            self._network.guests -= 1
        self._open = False

    def _expected(self, reason: Reason) -> bool:
        """The network of a group goes with the last of its guests."""
        shared = self._network is not None and self._network.guests > 1
        return shared and reason.code == "instant.network-stays"


_SAID_HERE = frozenset({"instant.no-tools"})


def discard_debris(
    room: RecoveryRoom,
    alive: Callable[[], frozenset[RunId]],
    open_target: Callable[[str], WitnessedTarget],
) -> Mapping[str, ApplianceError | None]:
    """Discard the sessions of verifications whose run is dead; by session, why one stays.

    `open_target` may raise ApplianceError; whoever gives it closes what it opened.
    Raises StorageError: it cannot be told what is debris.
    """
    owned = [record for record in room.store.list() if record.owner_run]
    if not owned:
        return {}
    living = alive()  # asked last: whoever made a session that is listed was alive then
    found: dict[str, ApplianceError | None] = {}
    for record in owned:
        if RunId(record.owner_run) in living or record.host is None:
            continue
        try:
            target = open_target(record.host)
            discard_session(room, target, record.session_id, RunContext.quiet())
            found[record.session_id] = None
        except SessionNotFoundError:
            continue  # its run has ended meanwhile, in order
        except ApplianceError as error:
            found[record.session_id] = error
    return found
