"""What the backups of several VMs make together: outcome, error, result document of a job's run.

The document says per VM and per disk what an administrator asks first; the rest stands with the
run of the VM (`run show`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.base.error_document import error_document
from appliance.base.errors import ApplianceError, CancelledError
from appliance.base.reasons import Reason
from appliance.base.run_context import Stage
from appliance.catalog.runs import RunOutcome
from appliance.jobs.engine import RunReport, judged, worst
from appliance.jobs.live_run import LiveRun
from appliance.jobs.vm_backup import VmResult
from appliance.jobs.vm_selection import HostFailure
from appliance.sources.contract import Orphan

_MOST_NAMED = 3


class VmsFailedError(ApplianceError):
    """Some VMs of the job have no new recovery point; the result of the run says which and why.

    The others have one. Retries of the policy repeat those that failed.
    """

    code = "job.vms-failed"
    retryable = True


def report_of(
    results: Sequence[VmResult],
    failures: Sequence[HostFailure],
    reasons: Sequence[Reason],
    limits: Mapping[str, Stage | None],
    live: LiveRun,
    more: Mapping[str, Any],
) -> RunReport:
    """`limits`: what limited each VM; `more`: what else belongs into the document."""
    outcome, error = _judge(results, failures, reasons, live)
    return RunReport(
        outcome=outcome,
        reasons=tuple(reasons),
        error=error,
        result={
            **_sums(results),
            "vms": [_vm_document(result, limits.get(result.vm)) for result in results],
            "hosts_failed": [
                {"host": failure.host, "error": error_document(failure.error)}
                for failure in failures
            ],
            **more,
        },
    )


def reasons_of_orphans(orphans: Sequence[Orphan]) -> list[Reason]:
    return [
        Reason(
            "cleanup.failed",
            f"{orphan.what} of {orphan.vm}, left by run {orphan.run_id}, is still there: "
            f"{orphan.failure}",
            "remove it by hand if it stays; its name and description carry the run id",
        )
        for orphan in orphans
        if orphan.failure
    ]


def _judge(
    results: Sequence[VmResult],
    failures: Sequence[HostFailure],
    reasons: Sequence[Reason],
    live: LiveRun,
) -> tuple[RunOutcome, ApplianceError | None]:
    ends = [result.status for result in results]
    if live.cancel_cause is not None and (RunOutcome.CANCELLED in ends or not ends):
        return RunOutcome.CANCELLED, CancelledError("cancelled")
    failed = [result for result in results if result.status is RunOutcome.FAILED]
    outcome = worst([*ends, judged(reasons), *(RunOutcome.FAILED for _ in failures)])
    if outcome is not RunOutcome.FAILED:
        return outcome, None
    named = [f"{failure.host}: [{failure.error.code}] {failure.error}" for failure in failures]
    named += [f"{r.vm}: [{r.error.code}] {r.error}" for r in failed if r.error is not None]
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    count = f"{len(failed)} of {len(results)} VMs failed"
    return outcome, VmsFailedError(f"{count}: {'; '.join(named[:_MOST_NAMED])}{more}")


def _sums(results: Sequence[VmResult]) -> dict[str, Any]:
    disks = [disk for result in results if result.backup for disk in result.backup.disks]
    return {
        "vm_count": len(results),
        "failed_vm_count": sum(result.backup is None for result in results),
        "size_bytes": sum(disk.image.size_bytes for disk in disks),
        "read_bytes": sum(disk.image.read_bytes for disk in disks),
        "new_bytes": sum(disk.image.new_bytes for disk in disks),
        "stored_bytes": sum(disk.image.stored_bytes for disk in disks),
        "audited_bytes": sum(disk.audit.read_bytes for disk in disks if disk.audit),
    }


def _vm_document(result: VmResult, limit: Stage | None) -> dict[str, Any]:
    backup = result.backup
    return {
        "vm": result.vm,
        "host": result.host,
        "outcome": result.status,
        "attempts": result.attempts,
        "seconds": round(result.seconds, 3),
        "point_id": backup.manifest.point_id if backup else None,
        "consistency": backup.manifest.consistency if backup else None,
        "bottleneck": limit,
        "error": error_document(result.error) if result.error else None,
        "reasons": [reason.as_json() for reason in dict.fromkeys(result.reasons)],
        "disks": [
            {
                "number": disk.number,
                "label": disk.label,
                "mode": disk.mode,
                "transport": disk.transfer.transport,
                "read_bytes": disk.image.read_bytes,
                "stored_bytes": disk.image.stored_bytes,
                "bytes_per_s": round(disk.image.read_bytes / max(disk.seconds, 1e-9)),
            }
            for disk in (backup.disks if backup else ())
        ],
    }
