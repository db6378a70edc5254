"""Runs of garbage collection and check, as jobs.

Neither stands in the way of a backup: `repository/locks.py` says why.

Thread model: as the engine's; a run belongs to one thread.
"""

from __future__ import annotations

from appliance.base.errors import ApplianceError
from appliance.base.reasons import Reason
from appliance.catalog.job import CheckJob, GcJob
from appliance.catalog.runs import RunOutcome
from appliance.jobs.engine import RunOrder, RunReport, judged
from appliance.jobs.live_run import LiveRun
from appliance.repository.gc import GcOptions, collect_garbage
from appliance.repository.repository import Repository
from appliance.repository.verify import CheckReport, check


class DamageFoundError(ApplianceError):
    """The check found damage that it could not repair; the result names the points it touches.

    Back up the VMs it names again while their disks exist: what was damaged is stored anew. Then
    look at the storage.
    """

    code = "check.damage-found"


class GcRunner:
    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def run(self, order: RunOrder, live: LiveRun) -> RunReport:
        job = order.saved.job
        assert isinstance(job, GcJob)
        live.begins("collecting garbage")
        options = GcOptions(wait_s=job.wait_minutes * 60.0)
        outcome = collect_garbage(self._repository, options, live.context)
        result = outcome.as_json()
        del result["plan"]  # a line per pack
        return RunReport(outcome=judged(outcome.reasons), reasons=outcome.reasons, result=result)


class CheckRunner:
    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def run(self, order: RunOrder, live: LiveRun) -> RunReport:
        job = order.saved.job
        assert isinstance(job, CheckJob)
        live.begins("reading every byte" if job.read_data else "checking the structure")
        report = check(self._repository, read_data=job.read_data, context=live.context)
        if report.clean:
            return RunReport(outcome=RunOutcome.SUCCESS, result=report.as_json())
        if not report.affected and all(damage.repaired for damage in report.damages):
            reasons = (_repaired(report),)
            return RunReport(outcome=judged(reasons), reasons=reasons, result=report.as_json())
        return RunReport(
            outcome=RunOutcome.FAILED,
            error=DamageFoundError(
                f"{len(report.damages)} damages; {len(report.affected_points)} recovery points "
                "are affected"
            ),
            result=report.as_json(),
        )


def _repaired(report: CheckReport) -> Reason:
    return Reason(
        "check.repaired",
        f"{len(report.damages)} damages were found and repaired; no recovery point is affected",
        "look at the storage: it does not keep what is written to it",
    )
