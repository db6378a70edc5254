"""`/metrics`, and that dashboard and alert rules ask for nothing that is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from appliance.api.services import Services
from appliance.base.secret import Secret
from appliance.catalog.accounts import Role
from appliance.catalog.channel import CHANNEL
from appliance.catalog.job import JOB, RunKind
from appliance.catalog.job_runs import RunCause, RunEnd
from appliance.catalog.runs import RunOutcome
from appliance.catalog.verifications import VerificationRecord
from tests.support import monitoring_files
from tests.support.api_server import Client, api_serving, make_token
from tests.support.small_backups import back_up_bytes

MONITORING = monitoring_files.ROOT / "docs/monitoring"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Services, Client]]:
    with api_serving(tmp_path) as (services, port):
        token = make_token(services.catalog, "prometheus", Role.READ_ONLY)
        yield services, Client(port, token=token)


def scraped(client: Client) -> dict[str, Metric]:
    answer = client.call("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {each.name: each for each in text_string_to_metric_families(answer.body.decode())}


def value(metrics: dict[str, Metric], name: str, **labels: str) -> float:
    (found,) = [
        sample.value
        for sample in metrics[name].samples
        if sample.name == name and sample.labels == labels
    ]
    return found


def test_the_figures_say_how_jobs_vms_and_repository_stand(
    served: tuple[Services, Client],
) -> None:
    """Each is what the catalog and the repository say."""
    services, client = served
    catalog = services.catalog
    manifest = back_up_bytes(services.repository, b"x" * 100_000, "web")
    catalog.jobs.save(
        [], [JOB.validate_python({"name": "n", "kind": "backup", "select": {"everything": True}})]
    )
    for outcome in (RunOutcome.SUCCESS, RunOutcome.FAILED):
        run = catalog.job_runs.add("n", RunKind.BACKUP, RunCause.MANUAL)
        catalog.job_runs.begin(run.run_id)
        catalog.job_runs.end(run.run_id, RunEnd(outcome=outcome, result={"read_bytes": 4096}))
    record = VerificationRecord(
        run_id="r1",
        vm="web",
        point_id=manifest.point_id,
        started_at=catalog.clock.now() - timedelta(minutes=1),
        verdict="passed",
        recovery_s=41.5,
        rto_s=60.0,
        point_age_s=1.0,
        rpo_s=86400.0,
        certificate=None,
        place="sandbox",
    )
    catalog.verifications.add([record])
    services.figures.wait()
    metrics = scraped(client)
    which = {"job": "n", "kind": "backup"}
    assert value(metrics, "holdfast_job_last_outcome", **which, outcome="failed") == 1
    assert value(metrics, "holdfast_job_last_outcome", **which, outcome="success") == 0
    assert value(metrics, "holdfast_job_last_read_bytes", **which) == 4096
    assert value(metrics, "holdfast_vm_recovery_seconds", vm="web", place="sandbox") == 41.5
    assert value(metrics, "holdfast_vm_verification_passed", vm="web", place="sandbox") == 1
    assert 0 <= value(metrics, "holdfast_vm_point_age_seconds", vm="web") < 600
    assert value(metrics, "holdfast_repository_points") == 1
    assert value(metrics, "holdfast_repository_deduplication_ratio") >= 1
    assert value(metrics, "holdfast_repository_free_bytes") > 0


def test_a_repository_that_is_away_takes_no_other_figure_along(
    served: tuple[Services, Client],
) -> None:
    """That is when alerts are needed; and the pages that show its space say what is wrong."""
    services, client = served
    services.repository_path.rename(services.repository_path.with_name("unplugged"))
    metrics = scraped(client)
    assert "holdfast_repository_free_bytes" not in metrics
    assert value(metrics, "holdfast_runs_open", state="waiting") == 0
    answer = client.call("GET", "/")
    assert answer.status == 502 and "No such file or directory" in answer.body.decode()


def test_only_who_may_view_sees_the_figures(served: tuple[Services, Client]) -> None:
    """Names of VMs are nobody else's business."""
    _, client = served
    assert Client(client.port).call("GET", "/metrics").status == 401
    assert Client(client.port, token="hf_wrong").call("GET", "/metrics").status == 401


def test_labels_of_requests_are_routes_and_never_paths(served: tuple[Services, Client]) -> None:
    """Whoever calls a million addresses makes no million series."""
    _, client = served
    for number in range(5):
        client.call("GET", f"/nothing/{number}")
        client.api("GET", f"/points/20261121T120000Z-00000000000{number}")
        client.call("BREW", f"/coffee/{number}")
    routes = {
        (sample.labels["method"], sample.labels["route"])
        for sample in scraped(client)["holdfast_api_requests"].samples
    }
    assert routes >= {("GET", "other"), ("GET", "/api/v1/points/{point}")}
    assert not [route for _, route in routes if re.search(r"\d\d|coffee|nothing", route)]
    assert {method for method, _ in routes} <= {"GET", "other"}


def test_a_name_cannot_forge_a_figure(served: tuple[Services, Client]) -> None:
    """Names from hypervisors are escaped, whatever is in them."""
    services, client = served
    hostile = 'x"} 1\nholdfast_vms_unprotected 99\n{y="\\'
    back_up_bytes(services.repository, b"x" * 5000, hostile)
    metrics = scraped(client)
    assert value(metrics, "holdfast_vm_points", vm=hostile) == 1
    assert value(metrics, "holdfast_vms_unprotected") == 0


def test_waiting_notifications_are_counted(served: tuple[Services, Client]) -> None:
    """The alert for a stuck outbox has something to look at."""
    services, client = served
    channel = {"name": "hook", "kind": "webhook", "url": "https://127.0.0.1:1/"}
    services.catalog.notifications.add(CHANNEL.validate_python(channel), Secret.of_text("key"))
    run = services.catalog.job_runs.add("n", RunKind.GC, RunCause.MANUAL)
    services.catalog.job_runs.begin(run.run_id)
    services.catalog.job_runs.end(run.run_id, RunEnd(outcome=RunOutcome.FAILED))
    services.post.work()
    assert value(scraped(client), "holdfast_notifications", state="waiting") == 1


# Dashboard, alert rules, page

_WORD = re.compile(r"\b(?:holdfast|process|up)\w*")
_LABELS = re.compile(r"(?:\bby|\bon|\bignoring|\bwithout)\s*\(([^)]*)\)|\{([^}]*)\}")
_GIVEN_BY_PROMETHEUS = {"instance", "le"}


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """All names of series that an appliance serves, and their labels."""
    found = {"up": {"job", "instance"}}
    for metric in monitoring_files.served_metrics(tmp_path_factory.mktemp("home")):
        labels = set(getattr(metric, "_labelnames", ()))
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_count", "_sum"),
            "info": ("_info",),
        }.get(metric.type, ("",))
        found |= {f"{metric.name}{suffix}": labels for suffix in suffixes}
    return found


def expressions() -> list[tuple[str, str]]:
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    found = [(rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]]
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        found += [(panel["title"], target["expr"]) for target in panel["targets"]]
    return found


@pytest.mark.parametrize(("where", "expr"), expressions(), ids=lambda each: str(each)[:40])
def test_every_expression_asks_for_what_is_served(
    series: dict[str, set[str]], where: str, expr: str
) -> None:
    """Names and labels of dashboard and alerts exist; brackets close."""
    names = set(_WORD.findall(re.sub(r'"[^"]*"', "", expr)))
    assert names, f"{where}: {expr}"
    assert names <= set(series), f"{where}: {names - set(series)}"
    known = set().union(*(series[name] for name in names)) | _GIVEN_BY_PROMETHEUS
    for listed, matched in _LABELS.findall(expr):
        words = [each.partition("=")[0] for each in (listed or matched).split(",")]
        used = {word.strip(" ~!") for word in words}
        assert used <= known, f"{where}: labels {used - known}"
    for left, right in ("()", "{}", "[]"):
        assert expr.count(left) == expr.count(right), where


def test_the_rules_have_the_form_that_prometheus_takes() -> None:
    """Each alert has a name of its own, an expression, a severity, and a summary."""
    document: Any = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    rules = [rule for group in document["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "1m"))
    assert yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]


def test_dashboard_and_page_are_up_to_date(tmp_path: Path) -> None:
    """`python -m tests.support.monitoring_files` writes them."""
    assert monitoring_files.DASHBOARD.read_text() == monitoring_files.dashboard_text()
    rows = monitoring_files.table(monitoring_files.served_metrics(tmp_path))
    assert monitoring_files.PAGE.read_text() == monitoring_files.page_with(rows)


def test_no_panel_of_the_dashboard_lies_on_another() -> None:
    """The grid has 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in monitoring_files.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
