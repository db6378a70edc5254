"""Jobs, policies and runs as JSON documents: for the command line and the local socket.

Field names carry units; times are ISO 8601 in UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from appliance.catalog.job_runs import JobRun
from appliance.catalog.runs import RunRecord
from appliance.service.job_service import JobStatus, RunView


def job_document(status: JobStatus) -> dict[str, Any]:
    job, policy = status.saved.job, status.saved.policy
    return {
        **job.model_dump(mode="json"),
        "schedule": policy.words,
        "next_run_at": _time(status.next_run_at),
        "open_run": run_document(status.open_run) if status.open_run else None,
        "latest_run": run_document(status.latest_run) if status.latest_run else None,
    }


def job_detail(status: JobStatus) -> dict[str, Any]:
    """With its whole policy."""
    return job_document(status) | {
        "policy_fields": status.saved.policy.model_dump(mode="json"),
        "since": _time(status.saved.since),
    }


def run_document(run: JobRun) -> dict[str, Any]:
    return {
        "seq": run.seq,
        "run_id": run.run_id,
        "job": run.job,
        "kind": run.kind,
        "cause": run.cause,
        "state": run.state,
        "outcome": run.outcome,
        "attempt": run.attempt,
        "repeats": None if run.first_run == run.run_id else run.first_run,
        "due_at": _time(run.due_at),
        "queued_at": _time(run.queued_at),
        "started_at": _time(run.started_at),
        "ended_at": _time(run.ended_at),
        "error_code": run.error_code,
        "error": run.error,
        "reasons": [reason.as_json() for reason in run.reasons],
    }


def run_detail(view: RunView) -> dict[str, Any]:
    """With its result, its VMs' runs, and what it is doing if it goes on."""
    return run_document(view.run) | {
        "result": view.run.result,
        "vm_runs": [_vm_run(run) for run in view.vm_runs],
        "live": view.live.as_json() if view.live else None,
    }


def _vm_run(run: RunRecord) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "vm": run.vm,
        "host": run.host,
        "started_at": _time(run.started_at),
        "ended_at": _time(run.ended_at),
        "outcome": run.outcome,
        "error_code": run.error_code,
    }


def _time(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
