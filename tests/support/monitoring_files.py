"""Writes the Grafana dashboard and the table of docs/monitoring.md:

    python -m tests.support.monitoring_files

A test fails when that is due. The dashboard is made here: its JSON is mostly places on a grid.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "docs/monitoring/dashboard.json"
PAGE = ROOT / "docs/monitoring.md"
_MARK = "<!-- metrics: compared with the program by a test -->\n"
_HEAD = "| metric | labels | what |\n|---|---|---|\n"
_SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True)
class Panel:
    title: str
    expr: str
    kind: str = "stat"
    unit: str = "none"
    legend: str = ""
    width: int = 4
    red_above: float | None = None
    table: bool = False


PANELS = (
    Panel("Jobs failed", 'sum(holdfast_job_last_outcome{outcome="failed"})', red_above=1),
    Panel("VMs without recovery point", "sum(holdfast_vms_unprotected)", red_above=1),
    Panel("VMs beyond their RPO",
          "count(holdfast_vm_point_age_seconds > on (instance, vm) holdfast_vm_rpo_seconds)"
          " or vector(0)", red_above=1),
    Panel("Verifications not passed", "count(holdfast_vm_verification_passed == 0) or vector(0)",
          red_above=1),
    Panel("Free in the repository", "holdfast_repository_free_bytes", unit="bytes"),
    Panel("Full in", "holdfast_repository_full_in_seconds", unit="s"),
    Panel("How jobs ended", "max by (job, kind, outcome) (holdfast_job_last_outcome) == 1", "table",
          legend="{{job}} {{kind}} {{outcome}}", width=12, table=True),
    Panel("Age of the newest recovery point, the 20 oldest",
          "topk(20, holdfast_vm_point_age_seconds)", "bargauge", "s", "{{vm}}", 12),
    Panel("Measured time to recover", "topk(20, holdfast_vm_recovery_seconds)", "timeseries", "s",
          "{{vm}} {{place}}", 12),
    Panel("Duration of runs", "holdfast_job_last_duration_seconds", "timeseries", "s",
          "{{job}} {{kind}}", 12),
    Panel("Stored by the last backup", "holdfast_job_last_stored_bytes", "timeseries", "bytes",
          "{{job}}", 12),
    Panel("Read by the last backup", "holdfast_job_last_read_bytes", "timeseries", "bytes",
          "{{job}}", 12),
    Panel("Repository", "holdfast_repository_stored_bytes", "timeseries", "bytes", "stored", 12),
    Panel("Deduplication", "holdfast_repository_deduplication_ratio", "timeseries", "none",
          "deduplication", 6),
    Panel("Compression", "holdfast_repository_compression_ratio", "timeseries", "none",
          "compression", 6),
    Panel("VMs that run from their backup", "holdfast_recovery_sessions", "timeseries", "none",
          "{{state}}", 8),
    Panel("Requests a second", "sum by (status) (rate(holdfast_api_requests_total[5m]))",
          "timeseries", "reqps", "{{status}}", 8),
    Panel("Time of requests, 95 of 100",
          "histogram_quantile(0.95, sum by (le) (rate(holdfast_api_request_seconds_bucket[5m])))",
          "timeseries", "s", "95 %", 8),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    panels, x, y = [], 0, 0
    for number, panel in enumerate(PANELS, start=1):
        height = 4 if panel.kind == "stat" else 8
        if x + panel.width > 24:
            x, y = 0, y + height if panels and panels[-1]["gridPos"]["h"] == height else y + 4
        panels.append(_panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": height}))
        x += panel.width
    return {
        "title": "Holdfast",
        "uid": "holdfast",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "1m",
        "tags": ["backup"],
        "time": {"from": "now-14d", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Data source", "type": "datasource",
                 "query": "prometheus", "current": {}}
            ]
        },
        "panels": panels,
    }  # fmt: skip


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_above is not None:
        steps.append({"color": "red", "value": panel.red_above})
    target = {"refId": "A", "expr": panel.expr, "legendFormat": panel.legend or "__auto"}
    if panel.table:
        target |= {"instant": True, "format": "table"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": place,
        "targets": [target | {"datasource": _SOURCE}],
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {},
    }


def dashboard_text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


def table(metrics: Iterable[Metric]) -> str:
    """A row per metric of ours; labels as they are."""
    rows = []
    for metric in metrics:
        labels = getattr(metric, "_labelnames", ())
        suffix = {"info": "_info", "counter": "_total"}.get(metric.type, "")
        name = f"{metric.name}{suffix}"
        shown = ", ".join(f"`{each}`" for each in labels)
        rows.append(f"| `{name}` | {shown} | {metric.documentation} |")
    return "\n".join(sorted(rows)) + "\n"


def page_with(rows: str) -> str:
    before, _, rest = PAGE.read_text().partition(_MARK + _HEAD)
    after = rest.partition("\n\n")[2]
    return f"{before}{_MARK}{_HEAD}{rows}\n{after}"


def served_metrics(folder: Path) -> list[Metric]:
    """What an appliance without anything in it serves, and the counters of its API."""
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    from tests.support.api_server import api_serving, appliance_metrics

    with api_serving(folder) as (services, _):
        services.figures.wait()
        found = list(appliance_metrics(services).collect())
    more = (
        CounterMetricFamily(
            "holdfast_api_requests_total", "Requests", labels=("method", "route", "status")
        ),
        HistogramMetricFamily(
            "holdfast_api_request_seconds", "Time of requests", labels=("method", "route")
        ),
    )
    return [*found, *more]


if __name__ == "__main__":
    import tempfile

    DASHBOARD.write_text(dashboard_text())
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page_with(table(served_metrics(Path(folder)))))
