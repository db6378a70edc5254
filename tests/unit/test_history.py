"""Trimming of what was long ago."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.base.ids import RunId, new_run_id
from appliance.base.secret import Secret
from appliance.catalog import history
from appliance.catalog.accounts import Role
from appliance.catalog.catalog import Catalog
from appliance.catalog.job import RunKind
from appliance.catalog.job_runs import RunCause, RunEnd
from appliance.catalog.runs import RunOutcome
from appliance.catalog.verifications import VerificationRecord
from appliance.service.notify.post import Post
from tests.support.job_world import MovedClock

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock(START)


@pytest.fixture
def catalog(
    tmp_path: Path, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Catalog]:
    monkeypatch.setattr(history, "KEPT_OF_JOB", 3)
    monkeypatch.setattr(history, "_AT_ONCE", 4)
    with Catalog.open(tmp_path, clock=clock) as catalog:
        yield catalog


def one_day(catalog: Catalog, clock: MovedClock, vms: tuple[str, ...] = ("a", "b")) -> RunId:
    run = catalog.job_runs.add("nightly", RunKind.BACKUP, RunCause.SCHEDULE)
    catalog.job_runs.begin(run.run_id)
    for vm in vms:
        vm_run = new_run_id(clock.now())
        catalog.runs.within(run.run_id).begin(vm_run, kind="backup", vm=vm)
        catalog.runs.end(vm_run, RunOutcome.SUCCESS)
        record = VerificationRecord(
            run_id=vm_run,
            vm=vm,
            point_id="p",
            started_at=clock.now(),
            verdict="passed",
            recovery_s=1.0,
            rto_s=None,
            point_age_s=1.0,
            rpo_s=None,
            certificate=None,
        )
        catalog.verifications.add([record])
    catalog.job_runs.end(run.run_id, RunEnd(outcome=RunOutcome.SUCCESS))
    clock.set(clock.now() + timedelta(days=1))
    return run.run_id


def test_what_is_old_goes_and_what_is_young_stays(catalog: Catalog, clock: MovedClock) -> None:
    """Also over many small transactions; a second time there is nothing to do."""
    runs = [one_day(catalog, clock) for _ in range(20)]
    Post(catalog).work()
    trimmed = catalog.history.trim(days=10)
    assert (trimmed.job_runs, trimmed.vm_runs, trimmed.verifications) == (10, 20, 20)
    assert [run.run_id for run in catalog.job_runs.list()] == runs[10:]
    assert len(catalog.runs.list()) == len(catalog.verifications.trend("a")) * 2 == 20
    assert not catalog.history.trim(days=10).any


def test_the_newest_of_each_job_and_vm_stay_however_old(
    catalog: Catalog, clock: MovedClock
) -> None:
    """The scheduler needs the job's runs; a VM's last backup and proof are never unknown."""
    one_day(catalog, clock, vms=("gone",))
    runs = [one_day(catalog, clock, vms=("a",)) for _ in range(6)]
    Post(catalog).work()
    clock.set(clock.now() + timedelta(days=1000))
    catalog.history.trim(days=10)
    assert [run.run_id for run in catalog.job_runs.list()] == runs[-3:]
    assert {run.vm for run in catalog.runs.list()} == {"a", "gone"}
    assert [len(catalog.verifications.trend(vm)) for vm in ("a", "gone")] == [1, 1]


def test_what_goes_on_or_was_not_told_of_stays(catalog: Catalog, clock: MovedClock) -> None:
    """A run that is open, and one that ended while no post delivered."""
    for _ in range(8):
        one_day(catalog, clock)
    clock.set(clock.now() + timedelta(days=100))
    assert catalog.history.trim(days=10).job_runs == 0
    Post(catalog).work()
    opened = catalog.job_runs.add("nightly", RunKind.BACKUP, RunCause.MANUAL)
    clock.set(clock.now() + timedelta(days=100))
    assert catalog.history.trim(days=10).job_runs == 6
    assert catalog.job_runs.list()[-1].run_id == opened.run_id


def test_logins_that_are_over_are_forgotten(catalog: Catalog, clock: MovedClock) -> None:
    """After a day none is good any more."""
    catalog.accounts.create("anna", Secret.of_text("correct horse battery"), Role.READ_ONLY)
    catalog.web_sessions.begin("anna")
    clock.set(clock.now() + timedelta(days=2))
    secret = catalog.web_sessions.begin("anna")
    assert catalog.history.trim().logins == 1
    assert catalog.web_sessions.find(secret) is not None
