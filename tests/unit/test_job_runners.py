"""Runs of jobs over a fake hypervisor and a real repository."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.base.errors import SourceError
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.blocks.extents import Extent
from appliance.catalog.catalog import Catalog
from appliance.catalog.job import JOB, RunKind
from appliance.catalog.job_runs import JobRun, RunCause
from appliance.catalog.policy import Policy
from appliance.catalog.runs import RunOutcome
from appliance.jobs.engine import Engine, Runner, RunOrder
from appliance.jobs.runners.backup_runner import BackupRunner, allowed_rate
from appliance.jobs.runners.cbt_audit_runner import CbtAuditRunner
from appliance.jobs.runners.retention_runner import RetentionRunner
from appliance.jobs.runners.site import OpenedSources, RunRoom
from appliance.jobs.runners.upkeep_runners import CheckRunner, GcRunner
from appliance.jobs.scheduler import Scheduler, run_now
from appliance.jobs.vm_selection import HostFailure
from appliance.service.job_book import rebuild_history
from appliance.service.protection import point_names
from appliance.sources.contract import Orphan, VmSource
from appliance.sources.errors import SourceReadError
from appliance.sources.listed_vm import OF_VERIFICATION
from appliance.sources.vm_identity import PointNames
from tests.support.check_repository import check_repository
from tests.support.fake_source import FakeDisk, FakeSource, FakeVm
from tests.support.job_world import MovedClock
from tests.support.small_backups import random_disk
from tests.support.vm_backups import Place, place

WITHIN_S = 60.0


@dataclass
class FakeSite:
    place: Place
    source: FakeSource
    failures: tuple[HostFailure, ...] = ()
    in_use: frozenset[str] = frozenset()
    backups_until: list[bool] = field(default_factory=list)
    opened: list[tuple[str, ...]] = field(default_factory=list)

    def open_sources(self, hosts: Sequence[str]) -> AbstractContextManager[OpenedSources]:
        self.opened.append(tuple(hosts))
        return nullcontext(OpenedSources(sources=(self.source,), failures=self.failures))

    def clean_up(self, sources: Sequence[VmSource], cancel: CancelToken) -> list[Orphan]:
        return []

    def point_names(self) -> PointNames:
        return point_names(self.place.repository.points.list())

    def points_in_use(self) -> frozenset[str]:
        return self.in_use

    def backup_goes_on(self) -> bool:
        return self.backups_until.pop() if self.backups_until else False


@dataclass
class Yard:
    """Engine and scheduler with the real runners, on the system's clock."""

    place: Place
    site: FakeSite
    engine: Engine
    scheduler: Scheduler

    @property
    def source(self) -> FakeSource:
        return self.site.source

    def save(self, name: str, policy: dict[str, Any] | None = None, **job: Any) -> None:
        job.setdefault("kind", "backup")
        if job["kind"] in ("backup", "cbt-audit"):
            job.setdefault("select", {"everything": True})
        fields = {"consistency": {"wanted": "crash"}, "retries": {"wait_minutes": 0}}
        policies = (
            [] if policy is None else [Policy.model_validate({"name": name} | fields | policy)]
        )
        found = JOB.validate_python({"name": name, "policy": name if policies else None, **job})
        self.place.catalog.jobs.save(policies, [found])

    def run(self, name: str) -> JobRun:
        """One run by hand and what follows it at once; return the first."""
        catalog = self.place.catalog
        run = run_now(catalog.jobs, catalog.job_runs, name, self.scheduler.wake)
        self.rest()
        return catalog.job_runs.get(run.run_id)

    def rest(self) -> None:
        """Until nothing waits or goes on any more."""
        while True:
            self.scheduler.look()
            assert self.engine.wait_idle(WITHIN_S)
            if not self.place.catalog.job_runs.open_runs():
                return

    def latest(self, kind: RunKind) -> JobRun:
        runs = self.place.catalog.job_runs.list(limit=1000)
        run_id = [run.run_id for run in runs if run.kind is kind][-1]
        return self.place.catalog.job_runs.get(run_id)

    def points(self, vm: str) -> int:
        return len(self.place.repository.points.list(vm))


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    with place(tmp_path) as opened:
        source = FakeSource([vm("web", 1), vm("db", 2, tags=frozenset({"gold"})), vm("test-1", 3)])
        site = FakeSite(opened, source)
        catalog, repository = opened.catalog, opened.repository
        room = RunRoom(site=site, backups=opened.room(), jobs=catalog.jobs)
        runners: dict[RunKind, Runner] = {
            RunKind.BACKUP: BackupRunner(room, catalog.clock),
            RunKind.CBT_AUDIT: CbtAuditRunner(room, catalog.clock),
            RunKind.RETENTION: RetentionRunner(room, catalog.job_runs),
            RunKind.GC: GcRunner(repository),
            RunKind.CHECK: CheckRunner(repository),
        }
        engine = Engine(catalog.job_runs, catalog.run_locks, runners, catalog.clock)
        scheduler = Scheduler(catalog.jobs, catalog.job_runs, engine, catalog.clock)
        yield Yard(opened, site, engine, scheduler)
        scheduler.stop()


def vm(name: str, seed: int = 1, **more: Any) -> FakeVm:
    return FakeVm(name, [FakeDisk(random_disk(seed, 64))], **more)


def backed_up(run: JobRun) -> set[str]:
    return {each["vm"] for each in run.result["vms"]}


def codes(run: JobRun) -> set[str]:
    return {reason.code for reason in run.reasons}


@pytest.mark.parametrize(
    ("select", "found"),
    [
        ({"everything": True}, {"web", "db", "test-1"}),
        ({"everything": True, "exclude": {"names": ["test-*"]}}, {"web", "db"}),
        ({"everything": True, "exclude": {"tags": ["gold"]}}, {"web", "test-1"}),
        ({"names": ["web"]}, {"web"}),
        ({"names": ["*b"]}, {"web", "db"}),
        ({"names": ["/dc/vm/*"]}, {"web", "db", "test-1"}),
        ({"tags": ["gold"], "names": ["web"]}, {"web", "db"}),
        ({"folders": ["vm"]}, {"web", "db", "test-1"}),
        ({"folders": ["/dc/vm"], "exclude": {"folders": ["dc"]}}, set()),
        ({"runs_on": ["esx*"]}, {"web", "db", "test-1"}),
        ({"everything": True, "hosts": ["fake"]}, {"web", "db", "test-1"}),
    ],
)
def test_a_selection_means_what_it_says(
    yard: Yard, select: dict[str, Any], found: set[str]
) -> None:
    """Names, globs, folders, tags, machines, hosts, everything, without what is excluded."""
    yard.save("job", select=select)
    run = yard.run("job")
    assert backed_up(run) == found
    assert run.outcome is (RunOutcome.SUCCESS if found else RunOutcome.WARNING)
    assert codes(run) == (set() if found else {"select.nothing"})


def test_a_new_vm_joins_by_itself_and_a_lost_name_is_a_warning(yard: Yard) -> None:
    """Nobody edits a job for either; what was found is backed up all the same."""
    yard.save("all", select={"names": ["web", "w*"]})
    assert backed_up(yard.run("all")) == {"web"}
    yard.source.vms.append(vm("wiki", 4))
    assert backed_up(yard.run("all")) == {"web", "wiki"}
    yard.source.vms[0].name = "renamed"
    yard.save("all", select={"names": ["wiki", "gone"]})
    run = yard.run("all")
    assert backed_up(run) == {"wiki"}
    assert (run.outcome, codes(run)) == (RunOutcome.WARNING, {"select.not-found"})


def test_a_vm_that_fails_fails_the_run_and_only_it_is_repeated(yard: Yard) -> None:
    """The repetition leaves out those that have their point."""
    yard.save("all", {"retries": {"attempts": 1, "wait_minutes": 0}})
    yard.source.vms[1].freeze_errors = [SourceError("it is odd today")]
    first = start_and_end(yard, "all")
    assert (first.outcome, first.error_code) == (RunOutcome.FAILED, "job.vms-failed")
    assert "db: [source.failed] it is odd" in (first.error or "")
    yard.rest()
    second = yard.latest(RunKind.BACKUP)
    assert (second.attempt, second.outcome) == (2, RunOutcome.SUCCESS)
    assert backed_up(second) == {"db"}
    assert {name: yard.points(name) for name in ("web", "db")} == {"web": 1, "db": 1}
    check_repository(yard.place.repository)


def start_and_end(yard: Yard, name: str) -> JobRun:
    """Only the first run, not what follows it."""
    catalog = yard.place.catalog
    run = run_now(catalog.jobs, catalog.job_runs, name, yard.scheduler.wake)
    yard.scheduler.look()
    assert yard.engine.wait_idle(WITHIN_S)
    return catalog.job_runs.get(run.run_id)


def test_a_host_that_does_not_answer_fails_the_run_and_stops_no_other(yard: Yard) -> None:
    """Nobody knows what of it was meant, so that is no success."""
    yard.save("all", {"retries": {"attempts": 0}})
    yard.site.failures = (HostFailure(host="down", error=SourceReadError("no route")),)
    run = yard.run("all")
    assert run.outcome is RunOutcome.FAILED
    assert run.result["hosts_failed"][0]["host"] == "down"
    assert {yard.points(name) for name in ("web", "db", "test-1")} == {1}


def test_what_cannot_be_protected_is_skipped_with_a_warning_unless_it_is_named(
    yard: Yard,
) -> None:
    """A glob may bring it; a name means it."""
    yard.source.vms[2].obstacles = (Reason.relayed("vm.x", "it is odd", "change it"),)
    yard.save("all")
    run = yard.run("all")
    assert run.outcome is RunOutcome.WARNING
    yard.save("named", {"retries": {"attempts": 0}}, select={"names": ["test-1"]})
    assert yard.run("named").outcome is RunOutcome.FAILED


def test_a_vm_that_a_verification_has_made_is_nobodys(yard: Yard) -> None:
    """A backup of everything beside a verification on the hypervisor sees no more than before."""
    yard.source.vms.append(vm("holdfast-verify-1", 4, obstacles=(OF_VERIFICATION,)))
    yard.save("all")
    run = yard.run("all")
    assert run.outcome is RunOutcome.SUCCESS
    assert backed_up(run) == {"web", "db", "test-1"}


def test_a_window_that_has_closed_lets_no_further_vm_begin(yard: Yard) -> None:
    """Of a run by schedule; the VM has failed with a code of its own, and is not lost silently."""
    now = datetime.now(UTC)
    closed = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"
    policy = {"windows": [closed], "retries": {"attempts": 0}}
    yard.save("all", policy | {"schedule": {"every_minutes": 1}})
    assert yard.run("all").outcome is RunOutcome.SUCCESS  # a person asked
    run = yard.place.catalog.job_runs.add("all", RunKind.BACKUP, RunCause.SCHEDULE)
    yard.engine.start(RunOrder(run=run, saved=yard.place.catalog.jobs.get("all")))
    assert yard.engine.wait_idle(WITHIN_S)
    ended = yard.place.catalog.job_runs.get(run.run_id)
    assert {vm["error"]["code"] for vm in ended.result["vms"]} == {"backup.window-closed"}
    assert yard.points("web") == 1


def test_retention_follows_and_keeps_what_any_job_keeps(yard: Yard) -> None:
    """`db` is meant by two jobs: the one that keeps more has the say. Sessions' points stay."""
    yard.save("all", {"retention": {"keep_last": 2}})
    yard.save("gold", {"retention": {"keep_last": 4}}, select={"tags": ["gold"]})
    for _ in range(5):
        yard.run("all")
    assert {name: yard.points(name) for name in ("web", "db", "test-1")} == {
        "web": 2,
        "db": 4,
        "test-1": 2,
    }
    retention = yard.latest(RunKind.RETENTION)
    assert {point["vm"] for point in retention.result["removed"]} == {"web", "db", "test-1"}
    oldest = yard.place.repository.points.list("web")[0].point_id
    yard.site.in_use = frozenset({oldest})
    yard.run("all")
    assert yard.points("web") == 3
    assert codes(yard.latest(RunKind.RETENTION)) == {"retention.point-in-use"}


def test_retention_touches_no_vm_that_the_job_does_not_mean(yard: Yard) -> None:
    """Points of other VMs, and of disk images, stay."""
    yard.save("one", {"retention": {"keep_last": 1}}, select={"names": ["web"]})
    yard.save("all")
    for _ in range(3):
        yard.run("all")
        yard.run("one")
    assert yard.points("test-1") == 3
    assert yard.points("web") == 6  # `all` keeps everything, and means it too


def test_a_retention_job_goes_by_its_own_policy(yard: Yard) -> None:
    """For VMs that no job means any more."""
    yard.save("all")
    for _ in range(3):
        yard.run("all")
    yard.save(
        "old",
        {"retention": {"keep_last": 1}},
        kind="retention",
        select={"names": ["*"], "exclude": ["db"]},
    )
    run = yard.run("old")
    assert run.outcome is RunOutcome.SUCCESS
    assert {name: yard.points(name) for name in ("web", "db", "test-1")} == {
        "web": 1,
        "db": 3,
        "test-1": 1,
    }
    yard.save("collect", kind="gc")
    yard.save("prove", kind="check", read_data=True)
    assert yard.run("collect").outcome is RunOutcome.SUCCESS
    assert yard.run("prove").outcome is RunOutcome.SUCCESS
    check_repository(yard.place.repository)


def test_an_audit_finds_what_change_lists_hide_and_lets_backups_pass(yard: Yard) -> None:
    """It waits while a backup runs, reads all of what is said to be unchanged, and warns."""
    yard.save("all")
    yard.run("all")
    disk = yard.source.vms[0].disks[0]
    disk.data[4096:8192] = bytes(4096)
    disk.hide = [Extent(4096, 4096)]
    yard.site.backups_until = [True, True]
    yard.save("audit", kind="cbt-audit", percent=100)
    run = yard.run("audit")
    assert yard.site.backups_until == []
    assert run.outcome is RunOutcome.WARNING
    found = {each["vm"]: {r["code"] for r in each["reasons"]} for each in run.result["vms"]}
    assert "cbt.audit-mismatch" in found["web"]
    assert "cbt.audit-mismatch" not in found["db"]
    assert yard.place.content("web") == bytes(disk.data)


def test_a_lost_catalog_is_filled_from_the_repository(yard: Yard, tmp_path: Path) -> None:
    """Each point becomes the run that made it; once."""
    yard.save("all")
    yard.run("all")
    repository, old = yard.place.repository, yard.place.catalog
    assert rebuild_history(old, repository) == 0
    (tmp_path / "new").mkdir()
    with Catalog.open(tmp_path / "new") as anew:
        assert rebuild_history(anew, repository) == 3
        assert rebuild_history(anew, repository) == 0
        assert {run.run_id for run in anew.runs.list()} == set(repository.points.ids())
        assert {run.outcome for run in anew.runs.list()} == {RunOutcome.SUCCESS}


def test_of_several_bandwidth_rules_that_hold_the_lowest_counts() -> None:
    """By the time of the day, in the policy's zone."""
    policy = Policy.model_validate(
        {
            "name": "p",
            "time_zone": "Europe/Berlin",
            "bandwidth": [
                {"limit": "100MiB/s", "window": "mon-fri 08:00-18:00"},
                {"limit": "10MiB/s", "window": "12:00-13:00"},
            ],
        }
    )
    clock = MovedClock(datetime(2026, 11, 20, 8, tzinfo=UTC))  # a Friday, 09:00 in Berlin
    at = [allowed_rate(policy, clock.now() + timedelta(hours=hours)) for hours in (0, 3, 10, 27)]
    assert at == [100 << 20, 10 << 20, None, 10 << 20]
