"""What notifications say: from a run that has ended, or from the runs of a day, to a message.

The subject alone says what happened: "Holdfast: job nightly failed: 2 of 14 VMs; db01: snapshot
stuck". Names come from hypervisors and guests; they are cut, and never break a line or a header.

Thread model: pure functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from appliance.base.units import format_duration, format_size
from appliance.catalog.channel import Channel, Message, Occasion, Severity
from appliance.catalog.job import RunKind
from appliance.catalog.job_runs import JobRun
from appliance.catalog.runs import RunOutcome

_SUBJECT_CHARS_MAX = 180
_LINE_CHARS_MAX = 500
_LINES_MAX = 200
_SEVERITY = {RunOutcome.FAILED: Severity.ERROR, RunOutcome.WARNING: Severity.WARNING}


def occasions(run: JobRun, before: RunOutcome | None) -> frozenset[Occasion]:
    """What the end of a run is; `before`: how the job's last run that was not cancelled ended."""
    well = run.outcome in (RunOutcome.SUCCESS, RunOutcome.WARNING)
    found = set()
    if run.outcome in (RunOutcome.SUCCESS, RunOutcome.WARNING, RunOutcome.FAILED):
        found.add(Occasion(run.outcome))
    if well and before is RunOutcome.FAILED:
        found.add(Occasion.RECOVERED)
    return frozenset(found)


def run_message(run: JobRun, before: RunOutcome | None) -> Message:
    """`run`: ended, with its result."""
    assert run.outcome is not None and run.ended_at is not None
    recovered = Occasion.RECOVERED in occasions(run, before)
    severity = _SEVERITY.get(run.outcome, Severity.INFO)
    return Message(
        event="run",
        severity=severity,
        subject=one_line(f"Holdfast: {_what(run, recovered)}", _SUBJECT_CHARS_MAX),
        lines=_fit(_run_lines(run)),
        facts={
            "job": run.job,
            "kind": run.kind,
            "run": run.run_id,
            "outcome": run.outcome,
            "recovered": "yes" if recovered else "no",
            "error_code": run.error_code,
            "attempt": run.attempt,
        },
        at=run.ended_at,
    )


def digest_message(
    runs: Sequence[JobRun],
    counts: Counter[RunOutcome],
    since: datetime,
    until: datetime,
    unprotected: Sequence[str],
) -> Message:
    """`counts`: of all runs that ended between the two; `runs`: those that there is room for, the
    failed ones first of all; `unprotected`: VMs without a recent point."""
    failed, warned = counts[RunOutcome.FAILED], counts[RunOutcome.WARNING]
    severity = Severity.ERROR if failed else Severity.WARNING if warned else Severity.INFO
    parts = [f"{counts.total()} runs"]
    parts += [f"{failed} failed"] * bool(failed) + [f"{warned} with warnings"] * bool(warned)
    parts += ["all well"] * (counts.total() > 0 and severity is Severity.INFO)
    parts += [f"{len(unprotected)} VMs without a recent recovery point"] * bool(unprotected)
    lines = [f"From {_when(since)} to {_when(until)}.", ""]
    for outcome in (RunOutcome.FAILED, RunOutcome.WARNING, RunOutcome.CANCELLED):
        lines += [f"- {_what(run, False)}" for run in runs if run.outcome is outcome]
    lines += [f"- job {run.job} ({run.kind}) ended well" for run in runs if _well(run)]
    if unprotected:
        lines += ["", "VMs without a recovery point of the last day:"]
        lines += [f"- {name}" for name in unprotected]
    return Message(
        event="digest",
        severity=severity,
        subject=one_line(f"Holdfast: {', '.join(parts)}", _SUBJECT_CHARS_MAX),
        lines=_fit(lines),
        facts={
            "runs": counts.total(),
            "failed": failed,
            "warning": warned,
            "success": counts[RunOutcome.SUCCESS],
            "cancelled": counts[RunOutcome.CANCELLED],
        },
        at=until,
    )


def test_message(channel: Channel, at: datetime) -> Message:
    return Message(
        event="test",
        severity=Severity.INFO,
        subject=f"Holdfast: test of channel {channel.name}",
        lines=(
            f"This is a test of the notification channel {channel.name!r}.",
            f"It is told of: {', '.join(channel.occasions) or 'nothing at once'}.",
            f"Daily digest: {channel.digest_at or 'none'} ({channel.time_zone}).",
        ),
        facts={"channel": channel.name},
        at=at,
    )


def _well(run: JobRun) -> bool:
    return run.outcome is RunOutcome.SUCCESS


def _what(run: JobRun, recovered: bool) -> str:
    """ "job nightly failed: 2 of 14 VMs; db01: snapshot stuck" """
    name = f"job {run.job}" if run.kind is RunKind.BACKUP else f"{run.kind} of job {run.job}"
    if run.outcome is RunOutcome.FAILED:
        return f"{name} failed: {_failure(run)}"
    if run.outcome is RunOutcome.CANCELLED:
        return f"{name} was cancelled"
    if recovered:
        return f"{name} works again"
    if run.outcome is RunOutcome.WARNING:
        first = next((reason.text for reason in run.reasons if reason.warning), "see its result")
        return f"{name} ended with warnings: {first}"
    return f"{name} ended well"


def _failure(run: JobRun) -> str:
    failed = [vm for vm in _vms(run) if vm.get("error")]
    hosts = [host for host in run.result.get("hosts_failed", []) if host.get("error")]
    if not failed and not hosts:
        return run.error or run.error_code or "no reason was recorded"
    parts = [f"{len(failed)} of {run.result.get('vm_count', len(failed))} VMs"] * bool(failed)
    parts += [f"host {host['host']}: {host['error'].get('message')}" for host in hosts[:1]]
    parts += [f"{vm['vm']}: {vm['error'].get('message')}" for vm in failed[:1]]
    return "; ".join(parts)


def _vms(run: JobRun) -> list[dict[str, Any]]:
    found = run.result.get("vms", [])
    return [vm for vm in found if isinstance(vm, dict)] if isinstance(found, list) else []


def _run_lines(run: JobRun) -> list[str]:
    assert run.ended_at is not None
    lines = [
        f"Job:     {run.job} ({run.kind})",
        f"Run:     {run.run_id}, {run.cause}, attempt {run.attempt}",
        f"Outcome: {run.outcome}",
    ]
    if run.started_at is not None:
        lasted = format_duration((run.ended_at - run.started_at).total_seconds())
        lines.append(f"Time:    {_when(run.started_at)} to {_when(run.ended_at)} ({lasted})")
    if "read_bytes" in run.result:
        sizes = [
            f"{key.removesuffix('_bytes')} {format_size(run.result[key])}"
            for key in ("size_bytes", "read_bytes", "stored_bytes")
            if key in run.result
        ]
        lines.append(f"Data:    {', '.join(sizes)}")
    if run.error:
        lines += ["", f"[{run.error_code}] {run.error}"]
    lines += [f"[{each.code}] {each.text}; next step: {each.next_step}" for each in run.reasons]
    vms = _vms(run)
    if vms:
        lines += ["", "Virtual machines:"]
        for vm in sorted(vms, key=lambda vm: vm.get("error") is None):
            error = vm.get("error")
            why = f": [{error.get('code')}] {error.get('message')}" if error else ""
            lines.append(f"- {vm.get('vm')}: {vm.get('outcome')}{why}")
    return lines


def one_line(text: str, limit: int = _LINE_CHARS_MAX) -> str:
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= limit else f"{plain[: limit - 1]}…"


def _fit(lines: Sequence[str]) -> tuple[str, ...]:
    kept = [one_line(line) if line else "" for line in lines[:_LINES_MAX]]
    if len(lines) > _LINES_MAX:
        kept.append(f"… and {len(lines) - _LINES_MAX} lines more; the web interface shows all")
    return tuple(kept)


def _when(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
