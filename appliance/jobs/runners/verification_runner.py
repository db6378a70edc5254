"""Runs of verification jobs: the newest point of every VM, proven; one certificate for the run.

VMs and groups are verified side by side, at most as many as the policy says (one, if it says
nothing), and never stand in the way of a backup: they hold no lock that a backup needs, and take no
place in its queue. At the end of the policy's window nothing further is begun. A repetition leaves
out what an earlier attempt of the same run has proven. What was found before a run was cancelled
is certified all the same.

Thread model: a runner serves several runs; each belongs to its own thread and a bounded pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from appliance.base.errors import ApplianceError, CancelledError, StorageError
from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import Progress, RunContext
from appliance.catalog.catalog import Catalog
from appliance.catalog.job import VerificationJob
from appliance.catalog.job_runs import JobRun, RunCause
from appliance.catalog.policy import Policy
from appliance.jobs.calendar import is_open
from appliance.jobs.certified_run import CertifiedRun, certify, not_recorded, write_report
from appliance.jobs.engine import RunOrder, RunReport
from appliance.jobs.evidence import remove_old_evidence
from appliance.jobs.hypervisor_verification import Hypervisor
from appliance.jobs.live_run import LiveRun
from appliance.jobs.runners.verification_results import UnitResult, proven_vms, report_of_units
from appliance.jobs.verification import run_verification
from appliance.jobs.verification_job import JobPlan, Unit, plan_job
from appliance.jobs.verification_outcome import VerificationOutcome
from appliance.jobs.verification_plan import Place
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository

log = EventLog(__name__)

OpenHypervisor = Callable[[str | None, RunId, str], AbstractContextManager[Hypervisor]]
"""Log in to the registered host of this name, or to the only one, for a run; the last one is where
hosts reach this machine. Raises ApplianceError."""

_ATTEMPTS_LOOKED_AT = 100


class TurnMissedError(ApplianceError):
    """The policy's window had closed before the turn of this VM or group came.

    Begin earlier, widen the window, or let more VMs go at a time.
    """

    code = "verify.window-closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationRoom:
    """What the runner works with."""

    home: Path
    catalog: Catalog
    repository: Repository
    open_hypervisor: OpenHypervisor


class VerificationRunner:
    def __init__(self, room: VerificationRoom) -> None:
        self._room = room

    def run(self, order: RunOrder, live: LiveRun) -> RunReport:
        job, policy = order.saved.job, order.saved.policy
        assert isinstance(job, VerificationJob)
        live.begins("choosing recovery points")
        started_at = self._room.catalog.clock.now()
        manifests, damaged = self._room.repository.points.readable()
        plan = plan_job(job, policy, _newest(manifests), self._proven_before(order.run))
        live.expects_vms(plan.guest_count)
        results = self._verify(order, live, plan)
        outcome = VerificationOutcome(
            run_id=order.run.run_id,
            started_at=started_at,
            ended_at=self._room.catalog.clock.now(),
            guests=tuple(guest for result in results for guest in result.guests),
        )
        certified, reasons = self._certified(outcome) if outcome.guests else (None, ())
        if damaged:
            reasons = (*reasons, _unreadable(len(damaged)))
        return report_of_units(
            plan, results, certified, reasons, cancelled=live.cancel_cause is not None
        )

    # The units

    def _verify(self, order: RunOrder, live: LiveRun, plan: JobPlan) -> list[UnitResult]:
        job = order.saved.job
        assert isinstance(job, VerificationJob)
        with ExitStack() as stack:
            hypervisor: Hypervisor | ApplianceError | None = None
            if any(unit.place is Place.HYPERVISOR for unit in plan.units):
                live.begins("logging in to the hypervisor")
                hypervisor = self._opened(stack, order, job)
            live.begins("verifying")
            folder = self._folder(order.run.run_id)
            turn = self._turn(order)

            def verify(number: int, unit: Unit) -> UnitResult:
                try:
                    live.context.cancel.check()
                    turn()
                    if unit.place is Place.HYPERVISOR and isinstance(hypervisor, ApplianceError):
                        raise hypervisor
                    outcome = run_verification(
                        self._room.repository,
                        unit.plan,
                        RunContext(live.context.cancel, Progress()),
                        run_id=order.run.run_id,
                        artifact_folder=folder / f"{number:04d}",
                        clock=self._room.catalog.clock,
                        hypervisor=hypervisor if isinstance(hypervisor, Hypervisor) else None,
                    )
                    return UnitResult(unit=unit, guests=outcome.guests)
                except ApplianceError as error:
                    return UnitResult(unit=unit, error=error)
                finally:
                    for guest in unit.plan.guests:
                        live.vm_ends(guest.name)

            at_once = order.saved.policy.vms_at_once or 1
            with ThreadPoolExecutor(at_once, thread_name_prefix="verify") as pool:
                return list(pool.map(verify, range(len(plan.units)), plan.units))

    def _opened(
        self, stack: ExitStack, order: RunOrder, job: VerificationJob
    ) -> Hypervisor | ApplianceError:
        try:
            opening = self._room.open_hypervisor(job.host, order.run.run_id, job.address)
            return stack.enter_context(opening)
        except CancelledError:
            raise
        except ApplianceError as error:
            log.warning("no hypervisor to verify on", run=order.run.run_id, error=error)
            return error

    def _turn(self, order: RunOrder) -> Callable[[], None]:
        policy: Policy = order.saved.policy

        def check() -> None:
            now = self._room.catalog.clock.now()
            if not is_open(policy.windows, policy.zone, now):
                raise TurnMissedError("the window closed before its turn")

        return check if order.run.cause is not RunCause.MANUAL else lambda: None

    # Before and after

    def _proven_before(self, run: JobRun) -> frozenset[str]:
        """VMs that passed in every place in an earlier attempt of this run."""
        if run.attempt == 1:
            return frozenset()
        job_runs = self._room.catalog.job_runs
        earlier = [
            job_runs.get(each.run_id)
            for each in job_runs.list(job=run.job, limit=_ATTEMPTS_LOOKED_AT)
            if each.first_run == run.first_run and each.run_id != run.run_id
        ]
        return frozenset(vm for each in earlier for vm in proven_vms(each.result))

    def _certified(self, outcome: VerificationOutcome) -> tuple[CertifiedRun, tuple[Reason, ...]]:
        """The certificate, and what could not be written."""
        room = self._room
        certified = certify(room.home, room.catalog, room.repository.id, outcome)
        reasons = certified.reasons[len(outcome.reasons) :]
        try:
            write_report(certified, self._folder(RunId(outcome.run_id)))
            remove_old_evidence(room.catalog, room.home / "verify", outcome.ended_at)
        except StorageError as error:
            reasons = (*reasons, not_recorded(error))
        return certified, reasons

    def _folder(self, run_id: RunId) -> Path:
        return self._room.home / "verify" / run_id


def _newest(manifests: Sequence[Manifest]) -> dict[str, Manifest]:
    """By VM; the list is oldest first."""
    return {manifest.vm: manifest for manifest in manifests}


def _unreadable(count: int) -> Reason:
    return Reason(
        "verify.points-unreadable",
        f"{count} recovery points cannot be read, so they were not considered",
        "run `holdfast repo check`",
    )
