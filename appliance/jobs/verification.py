"""Prove that recovery points work: re-hash them, check their file systems, boot them in isolation.

A boot in the appliance is an instant recovery in small: each disk as an overlay over the point,
served over NBD on a Unix socket in a private folder, booted in the sandbox, probed, switched off;
the overlays are discarded. The guests of one application boot in order on one isolated network;
scripts run when all are up. What a guest read is kept as the point's boot profile and fetched ahead
at the next start.
On a hypervisor each guest is an instant recovery that is discarded (`hypervisor_verification`).

The outcome is a value: `certified_run` signs and records it.
Thread model: one thread per run; several runs may go on at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from appliance.base.clock import Clock, SystemClock
from appliance.base.errors import UsageError
from appliance.base.run_context import RunContext
from appliance.jobs.guest_stages import StagedGuest
from appliance.jobs.guest_verification import GuestVerification
from appliance.jobs.hypervisor_verification import (
    GroupNetwork,
    Hypervisor,
    HypervisorVerification,
)
from appliance.jobs.verification_outcome import VerificationOutcome
from appliance.jobs.verification_plan import Place, VerificationPlan
from appliance.repository.repository import Repository
from appliance.sandbox.network import IsolatedNetwork


def run_verification(
    repository: Repository,
    plan: VerificationPlan,
    context: RunContext,
    *,
    run_id: str,
    artifact_folder: Path,
    clock: Clock | None = None,
    hypervisor: Hypervisor | None = None,
) -> VerificationOutcome:
    """Run every stage of every guest. A guest that fails is an outcome, not an exception.

    Evidence lies in `artifact_folder`; with several guests, in a folder for each, by point id.
    Crash guarantee: a killed run leaves private temporary folders and no process.

    Args:
        hypervisor: for guests that are to be booted on one.

    Raises: PointNotFoundError: before anything is started; CancelledError: all is cleaned up.
    """
    clock = clock or SystemClock()
    started_at = clock.now()
    manifests = [repository.points.find(guest.point) for guest in plan.guests]
    alone = len(plan.guests) == 1
    folders = [
        artifact_folder if alone else artifact_folder / manifest.point_id for manifest in manifests
    ]
    shared = GroupNetwork.for_guests(hypervisor, len(plan.guests)) if hypervisor else None
    guests: list[StagedGuest] = []
    for place, (wanted, manifest) in enumerate(zip(plan.guests, manifests, strict=True)):
        common = (repository, wanted, manifest, context)
        folder = folders[place]
        if wanted.boot is None or wanted.boot.place is Place.SANDBOX:
            guests.append(GuestVerification(*common, artifact_folder=folder, place=place))
        elif hypervisor is not None:
            guests.append(
                HypervisorVerification(
                    *common, artifact_folder=folder, hypervisor=hypervisor, network=shared
                )
            )
        else:
            raise UsageError(f"{manifest.vm} is to be booted on a hypervisor, and there is none")
    for guest in guests:
        guest.prepare()
    _boot_all(guests)
    return VerificationOutcome(
        run_id=run_id,
        started_at=started_at,
        ended_at=clock.now(),
        guests=tuple(guest.outcome(started_at) for guest in guests),
    )


def _boot_all(guests: Sequence[StagedGuest]) -> None:
    with ExitStack() as stack:
        network = None
        if sum(_in_sandbox(guest) for guest in guests) > 1:
            network = stack.enter_context(IsolatedNetwork())
        for guest in guests:
            stack.callback(guest.close)
        ready: set[str] = set()
        for guest in guests:
            missing = [name for name in guest.plan.after if name not in ready]
            if missing:
                guest.refuse(missing[0])
                continue
            guest.start(network)
            if guest.ready:
                ready.add(guest.plan.name)
        for guest in guests:
            guest.script()
        for guest in reversed(guests):
            guest.finish()


def _in_sandbox(guest: StagedGuest) -> bool:
    return guest.plan.boot is not None and guest.plan.boot.place is Place.SANDBOX
