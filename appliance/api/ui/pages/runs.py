"""Pages of runs: what jobs have done and are doing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from appliance.api.permissions import Permission
from appliance.api.routes import jobs, runs
from appliance.api.ui.charts import Sample, area
from appliance.api.ui.page import Page, PageCall
from appliance.base.units import format_rate
from appliance.service.live_feed import ThroughputSample

_PAGE = 50


def _runs(page: PageCall) -> dict[str, Any]:
    job = page.text("job")[:63] or None
    query = runs.RunQuery(job=job, before=page.number("before"), limit=_PAGE)
    found = page.ask(runs.list_runs, query=query)
    return {
        "runs": found,
        "job": job,
        "older": found[-1].seq if len(found) == _PAGE else None,
        "first_page": query.before is None,
        "names": [each.name for each in page.ask(jobs.list_jobs)],
    }


def _run(page: PageCall) -> dict[str, Any]:
    run = page.ask(runs.show_run)
    vms = run.result.get("vms", [])
    return {
        "run": run,
        "vms": vms if isinstance(vms, list) else [],
        "result": json.dumps(run.result, indent=1),
        **throughput_of(page, run.run_id),
    }


def throughput_of(page: PageCall, run_id: str) -> dict[str, Any]:
    """The plot of a run that goes on, or ended lately."""
    samples = _smooth(page.services.feed.throughput(run_id))
    most = max((each.bytes_per_s for each in samples), default=0.0)
    return {
        "throughput": area(
            "Throughput over time, in bytes per second",
            [Sample(at_s=each.at_s, value=each.bytes_per_s) for each in samples],
            format_rate(most),
        ),
        "throughput_lasted": samples[-1].at_s if samples else 0.0,
        "throughput_most": format_rate(most),
    }


def _smooth(samples: Sequence[ThroughputSample]) -> list[ThroughputSample]:
    """Each the mean of itself and its neighbours: progress comes in large pieces."""
    found = []
    for number, sample in enumerate(samples):
        near = samples[max(0, number - 1) : number + 2]
        rate = sum(each.bytes_per_s for each in near) / len(near)
        found.append(ThroughputSample(at_s=sample.at_s, bytes_per_s=rate))
    return found


def _vm_run(page: PageCall) -> dict[str, Any]:
    run = page.ask(runs.show_vm_run)
    reasons = [*run.result.get("reasons", [])]
    for disk in run.result.get("disks", []):
        reasons += disk.get("reasons", [])
    return {"run": run, "reasons_found": reasons, "result": json.dumps(run.result, indent=1)}


PAGES = (
    Page(
        address="/runs",
        template="runs.html",
        permission=Permission.VIEW,
        show=_runs,
        live=("run",),
    ),
    Page(
        address="/runs/{run}",
        template="run.html",
        permission=Permission.VIEW,
        show=_run,
        live=("run", "progress"),
    ),
    Page(
        address="/vm-runs/{run}", template="vm_run.html", permission=Permission.VIEW, show=_vm_run
    ),
)
