"""A verification as a command does it: verify, certify, remember, with a state folder or without.

Jobs do the same by `jobs/runners/verification_runner.py`; what is signed and recorded is one
function, `jobs/certified_run.py`.
"""

from __future__ import annotations

from pathlib import Path

from appliance.base.errors import ApplianceError
from appliance.base.ids import RunId
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.jobs.certified_run import CertifiedRun, certify, not_recorded
from appliance.jobs.verification import run_verification
from appliance.jobs.verification_outcome import VerificationOutcome
from appliance.jobs.verification_plan import VerificationPlan
from appliance.repository.repository import Repository
from appliance.service.home import Home


def certified_verification(
    home: Home,
    repository: Repository,
    plan: VerificationPlan,
    context: RunContext,
    *,
    run_id: RunId,
    artifact_folder: Path,
) -> CertifiedRun:
    """Raises: PointNotFoundError, CancelledError: there is no certificate then."""
    outcome = run_verification(
        repository, plan, context, run_id=run_id, artifact_folder=artifact_folder
    )
    try:
        home.prepare()
        with home.open_catalog() as catalog:
            return certify(home.path, catalog, repository.id, outcome)
    except ApplianceError as error:
        return _uncertified(outcome, (not_recorded(error),))


def uncertified_verification(
    repository: Repository,
    plan: VerificationPlan,
    context: RunContext,
    *,
    run_id: RunId,
    artifact_folder: Path,
) -> CertifiedRun:
    """The same, but neither signed nor recorded."""
    outcome = run_verification(
        repository, plan, context, run_id=run_id, artifact_folder=artifact_folder
    )
    return _uncertified(outcome)


def _uncertified(outcome: VerificationOutcome, more: tuple[Reason, ...] = ()) -> CertifiedRun:
    return CertifiedRun(
        outcome=outcome, certificate=None, trends={}, reasons=(*outcome.reasons, *more)
    )
