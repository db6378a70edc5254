"""What the verifications of a run make together: outcome, error, result document.

    success    every VM has its proof, within the objectives
    warning    every VM that was booted works; an objective was missed, or something was not proven
    failed     a VM has no proof though it was tried, or has no recovery point

The document says per VM and place what an administrator asks first; evidence and stages in full
are in the report, `HOME/verify/RUN/report.html`. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.base.error_document import error_document
from appliance.base.errors import ApplianceError, CancelledError
from appliance.base.reasons import Reason
from appliance.catalog.runs import RunOutcome
from appliance.jobs.certified_run import CertifiedRun
from appliance.jobs.engine import RunReport, judged, worst
from appliance.jobs.verification_job import NO_POINT, NOTHING_COVERED, JobPlan, Unit
from appliance.jobs.verification_outcome import RPO_EXCEEDED, RTO_EXCEEDED, GuestOutcome
from appliance.jobs.verification_stages import Verdict

_MOST_NAMED = 3
_ALARMS = (RTO_EXCEEDED, RPO_EXCEEDED)


class NotProvenError(ApplianceError):
    """Some VMs of the job have no proof that their newest recovery point works.

    The result of the run says which and why; the report shows what their screens showed.
    """

    code = "job.not-proven"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitResult:
    """How a VM or group ended: an outcome, or the error that kept it from one."""

    unit: Unit
    guests: tuple[GuestOutcome, ...] = ()
    error: ApplianceError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    vm: str
    outcome: RunOutcome
    why: str  # code; empty: proven
    document: dict[str, Any]


def report_of_units(
    plan: JobPlan,
    results: Sequence[UnitResult],
    certified: CertifiedRun | None,
    reasons: Sequence[Reason],
    *,
    cancelled: bool,
) -> RunReport:
    """`reasons`: of the run as a whole."""
    ended = [each for result in results for each in _ended(result)]
    ended += [_without_point(vm) for vm in plan.without_point]
    told = [*reasons, *_alarms(results)]
    if not ended:
        told.append(NOTHING_COVERED)
    failed = [each for each in ended if each.outcome is RunOutcome.FAILED]
    outcome = worst([*(each.outcome for each in ended), judged(told)])
    error: ApplianceError | None = None
    if cancelled and any(each.outcome is RunOutcome.CANCELLED for each in ended):
        outcome, error = RunOutcome.CANCELLED, CancelledError("cancelled")
    elif failed:
        error = NotProvenError(_named(failed, len(ended)))
    return RunReport(
        outcome=outcome,
        reasons=tuple(told),
        error=error,
        result={
            "vm_count": len({each.vm for each in ended}),
            "failed_vm_count": len({each.vm for each in failed}),
            "certificate": _certificate(certified),
            "vms": [each.document for each in ended],
        },
    )


def proven_vms(result: Mapping[str, Any]) -> frozenset[str]:
    """Of the result of an earlier run: VMs that passed wherever they were booted."""
    verdicts: dict[str, set[object]] = defaultdict(set)
    for vm in result.get("vms", []):
        verdicts[vm["vm"]].add(vm["verdict"])
    return frozenset(vm for vm, found in verdicts.items() if found == {Verdict.PASSED.value})


def _ended(result: UnitResult) -> list[_Ended]:
    if result.error is not None:
        return [_not_tried(guest.name, result) for guest in result.unit.plan.guests]
    return [_guest(guest, result.unit) for guest in result.guests]


def _guest(guest: GuestOutcome, unit: Unit) -> _Ended:
    vm = guest.manifest.vm
    reasons = tuple(dict.fromkeys((*unit.reasons.get(vm, ()), *guest.reasons)))
    outcome = _outcome(guest.verdict, reasons)
    stages = [stage.reason for stage in guest.stages if stage.verdict is Verdict.FAILED]
    why = [reason.code for reason in (*stages, *reasons) if reason and reason not in _ALARMS]
    return _Ended(
        vm=vm,
        outcome=outcome,
        why=next(iter(why), "verify.no-sign-of-life") if outcome is RunOutcome.FAILED else "",
        document={
            "vm": vm,
            "place": unit.place.value,
            "group": unit.name if len(unit.plan.guests) > 1 else None,
            "point_id": guest.manifest.point_id,
            "outcome": outcome,
            "verdict": guest.verdict.value,
            "recovery_seconds": None if guest.recovery_s is None else round(guest.recovery_s, 3),
            "rto_seconds": guest.plan.rto.total_seconds() if guest.plan.rto else None,
            "point_age_seconds": round(guest.point_age_s, 3),
            "rpo_seconds": guest.plan.rpo.total_seconds() if guest.plan.rpo else None,
            "stages": [
                {
                    "stage": stage.stage.value,
                    "verdict": stage.verdict.value,
                    "seconds": round(stage.seconds, 3),
                    "reason": stage.reason.code if stage.reason else None,
                }
                for stage in guest.stages
            ],
            "error": None,
            "reasons": [reason.as_json() for reason in reasons],
        },
    )


def _outcome(verdict: Verdict, reasons: Sequence[Reason]) -> RunOutcome:
    if verdict is Verdict.FAILED:
        return RunOutcome.FAILED
    if verdict is Verdict.SKIPPED:
        return RunOutcome.WARNING
    return judged(reasons)


def _not_tried(vm: str, result: UnitResult) -> _Ended:
    assert result.error is not None
    cancelled = isinstance(result.error, CancelledError)
    document = _nothing(vm) | {
        "place": result.unit.place.value,
        "outcome": RunOutcome.CANCELLED if cancelled else RunOutcome.FAILED,
        "error": error_document(result.error),
    }
    return _Ended(vm=vm, outcome=document["outcome"], why=result.error.code, document=document)


def _without_point(vm: str) -> _Ended:
    document = _nothing(vm) | {"reasons": [NO_POINT.as_json()]}
    return _Ended(vm=vm, outcome=RunOutcome.FAILED, why=NO_POINT.code, document=document)


def _nothing(vm: str) -> dict[str, Any]:
    return {
        "vm": vm,
        "place": None,
        "group": None,
        "point_id": None,
        "outcome": RunOutcome.FAILED,
        "verdict": None,
        "recovery_seconds": None,
        "rto_seconds": None,
        "point_age_seconds": None,
        "rpo_seconds": None,
        "stages": [],
        "error": None,
        "reasons": [],
    }


def _alarms(results: Sequence[UnitResult]) -> list[Reason]:
    """Objectives that were missed, each once; the documents of the VMs say whose."""
    missed = [reason for result in results for guest in result.guests for reason in guest.reasons]
    return [alarm for alarm in _ALARMS if alarm in missed]


def _named(failed: Sequence[_Ended], count: int) -> str:
    named = [f"{each.vm}: {each.why}" for each in failed[:_MOST_NAMED]]
    more = f" and {len(failed) - _MOST_NAMED} more" if len(failed) > _MOST_NAMED else ""
    return f"{len(failed)} of {count} have no proof: {'; '.join(named)}{more}"


def _certificate(certified: CertifiedRun | None) -> dict[str, Any] | None:
    if certified is None or certified.certificate is None:
        return None
    issued = certified.certificate
    return {"sequence": issued.sequence, "sha256": issued.sha256}
