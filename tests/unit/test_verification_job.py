"""Verification jobs: what they cover, in which order, and how their runs end; nothing is booted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.base.errors import UsageError
from appliance.base.ids import RunId
from appliance.catalog.catalog import Catalog
from appliance.catalog.job import JOB, RunKind, VerificationJob
from appliance.catalog.job_runs import JobRun, RunCause
from appliance.catalog.policy import Policy
from appliance.catalog.runs import RunOutcome
from appliance.jobs.certificate_store import CertificateStore
from appliance.jobs.certified_run import remember_proofs
from appliance.jobs.engine import Engine, RunOrder
from appliance.jobs.hypervisor_verification import Hypervisor, discard_debris
from appliance.jobs.live_run import CancelCause, LiveRun
from appliance.jobs.recovery_room import RecoveryRoom
from appliance.jobs.runners.verification_runner import VerificationRoom, VerificationRunner
from appliance.jobs.scheduler import Scheduler, run_now
from appliance.jobs.verification_job import JobPlan, Place, check_verification_job, plan_job
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.targets.recovery import WitnessedTarget
from tests.support.job_world import MovedClock
from tests.support.small_backups import back_up_bytes, random_disk
from tests.support.vm_backups import Place as Home
from tests.support.vm_backups import place

WITHIN_S = 60.0


def job(**fields: Any) -> VerificationJob:
    parsed = JOB.validate_python({"name": "proof", "kind": "verification"} | fields)
    assert isinstance(parsed, VerificationJob)
    return parsed


@pytest.fixture
def newest(tmp_path: Path) -> dict[str, Manifest]:
    Repository.create(tmp_path / "points")
    with Repository.open(tmp_path / "points") as repository:
        return {
            vm: back_up_bytes(repository, random_disk(1, 4), vm) for vm in ("db", "web", "test-1")
        }


def planned(newest: dict[str, Manifest], done: frozenset[str] = frozenset(), **fields: Any) -> Any:
    return plan_job(job(**fields), Policy(name="p", rto="5min", rpo="26h"), newest, done)


def shown(plan: JobPlan) -> list[tuple[str, list[str]]]:
    return [(unit.place.value, [g.name for g in unit.plan.guests]) for unit in plan.units]


def test_every_vm_with_a_point_is_covered_but_for_those_left_out(
    newest: dict[str, Manifest],
) -> None:
    """Objectives are the policy's; the point is the newest one when its turn comes."""
    plan = planned(newest, probes=["tcp:22"], select={"exclude": ["test-*"]})
    assert shown(plan) == [("sandbox", ["db"]), ("sandbox", ["web"])]
    guest = plan.units[0].plan.guests[0]
    assert guest.point == "latest:db"
    assert guest.rto is not None and guest.rto.total_seconds() == 300
    assert guest.rpo is not None and guest.rpo.total_seconds() == 26 * 3600


def test_the_first_entry_that_means_a_vm_counts_and_inherits_what_it_does_not_say(
    newest: dict[str, Manifest],
) -> None:
    """A VM without a probe is not booted in the sandbox, and that is told."""
    plan = planned(
        newest,
        memory_mib=2048,
        hash_share=0.5,
        vms=[
            {"names": ["web"], "probes": ["http:80/"], "timeout": "1min"},
            {"names": ["*"], "probes": []},
        ],
    )
    by_vm = {unit.name: unit for unit in plan.units}
    web = by_vm["web"].plan.guests[0]
    assert web.boot is not None and (web.boot.memory_mib, web.boot.deadline_s) == (2048, 60)
    assert [probe.text for probe in web.probes] == ["http:80/"]
    assert by_vm["web"].reasons == {}
    assert by_vm["db"].plan.guests[0].boot is None
    assert [reason.code for reason in by_vm["db"].reasons["db"]] == ["verify.no-probe"]


def test_a_group_boots_in_order_and_its_members_are_not_verified_twice(
    newest: dict[str, Manifest],
) -> None:
    """Each waits for the one before; a member without a point is named."""
    groups = [{"name": "shop", "order": ["db", "lost", "web"]}]
    plan = planned(newest, probes=["tcp:22"], groups=groups, select={"names": ["none"]})
    assert shown(plan) == [("sandbox", ["db", "web"])]
    assert [guest.after for guest in plan.units[0].plan.guests] == [(), ("db",)]
    assert plan.without_point == ("lost", "none")


def test_on_the_hypervisor_no_probe_is_needed_and_content_is_proven_once(
    newest: dict[str, Manifest],
) -> None:
    """With both places the sandbox comes first and reads the chunks."""
    plan = planned(newest, where="both", probes=["tcp:22"], hash_share=1, select={"names": ["db"]})
    assert shown(plan) == [("sandbox", ["db"]), ("hypervisor", ["db"])]
    sandbox, hypervisor = (unit.plan.guests[0] for unit in plan.units)
    assert (sandbox.hash_share, hypervisor.hash_share) == (1, 0)
    alone = planned(newest, where="hypervisor", hash_share=1, select={"names": ["db"]})
    (guest,) = alone.units[0].plan.guests
    assert guest.boot is not None and guest.boot.place is Place.HYPERVISOR
    assert guest.probes == () and guest.hash_share == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "nothing is proven"),
        ({"probes": ["tcp:22"], "groups": [{"name": "g", "order": ["a"]}]}, "groups"),
        ({"probes": ["tcp:22"], "groups": [{"name": "g", "order": ["a", "a"]}]}, "twice"),
        ({"hash_share": 1.5}, "hash_share"),
        ({"probes": ["tcp:22"], "timeout": "soon"}, "duration"),
        ({"hash_share": 1, "where": "cloud"}, "where"),
    ],
)
def test_a_job_that_cannot_be_meant_is_refused(fields: dict[str, Any], said: str) -> None:
    """By the model, naming the field."""
    with pytest.raises(ValueError, match=said):
        job(**fields)


def test_a_probe_that_is_none_is_refused_with_its_place() -> None:
    """Before the job is saved."""
    with pytest.raises(UsageError, match=r"job\.proof\.probes: not a probe: 'icmp'"):
        check_verification_job(job(probes=["icmp"]))
    entry = {"names": ["a"], "scripts": ["uname"]}
    with pytest.raises(UsageError, match=r"job\.proof\.vms\[0\]\.scripts"):
        check_verification_job(job(probes=["tcp:1"], vms=[entry]))


# Runs


@dataclass
class Yard:
    home: Home
    engine: Engine
    scheduler: Scheduler

    def save(self, policy: dict[str, Any] | None = None, **fields: Any) -> None:
        policies = [Policy.model_validate({"name": "p", **(policy or {})})]
        self.home.catalog.jobs.save(policies, [job(policy="p", **fields)])

    def back_up(self, vm: str, seed: int = 1) -> None:
        back_up_bytes(self.home.repository, random_disk(seed, 64), vm)

    def run(self) -> JobRun:
        catalog = self.home.catalog
        run = run_now(catalog.jobs, catalog.job_runs, "proof", self.scheduler.wake)
        self.scheduler.look()
        assert self.engine.wait_idle(WITHIN_S)
        return catalog.job_runs.get(run.run_id)

    def damage(self) -> None:
        """Flip a bit in every pack."""
        for pack in (self.home.folder / "repository" / "packs").rglob("*"):
            if pack.is_file():
                raw = bytearray(pack.read_bytes())
                raw[len(raw) // 2] ^= 1
                pack.chmod(0o600)
                pack.write_bytes(raw)


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    with place(tmp_path) as home:
        catalog = home.catalog

        def no_hypervisor(
            host: str | None, run_id: RunId, address: str
        ) -> AbstractContextManager[Hypervisor]:
            raise UsageError("no host is registered")

        room = VerificationRoom(
            home=tmp_path,
            catalog=catalog,
            repository=home.repository,
            open_hypervisor=no_hypervisor,
        )
        runners = {RunKind.VERIFICATION: VerificationRunner(room)}
        engine = Engine(catalog.job_runs, catalog.run_locks, runners, catalog.clock)
        scheduler = Scheduler(catalog.jobs, catalog.job_runs, engine, catalog.clock)
        yield Yard(home, engine, scheduler)
        scheduler.stop()


def outcomes(run: JobRun) -> dict[str, str]:
    return {vm["vm"]: vm["outcome"] for vm in run.result["vms"]}


def test_a_run_proves_every_vm_with_one_certificate_and_a_row_for_each(yard: Yard) -> None:
    """The report lies with the evidence; the next run's certificate follows this one."""
    yard.back_up("db", 1)
    yard.back_up("web", 2)
    yard.save({"rpo": "1d", "vms_at_once": 2}, hash_share=1)
    first, second = yard.run(), yard.run()
    assert first.outcome is RunOutcome.SUCCESS, first
    assert outcomes(first) == {"db": "success", "web": "success"}
    assert [r.result["certificate"]["sequence"] for r in (first, second)] == [1, 2]
    home = yard.home.folder
    assert len(CertificateStore(home).paths()) == 2
    assert "db" in (home / "verify" / first.run_id / "report.html").read_text()
    trend = yard.home.catalog.verifications.trend("db")
    assert {row.run_id for row in trend} == {first.run_id, second.run_id}
    assert {(row.verdict, row.place) for row in trend} == {("passed", None)}


def test_a_vm_that_has_no_proof_fails_the_run_and_a_repetition_leaves_out_the_others(
    yard: Yard,
) -> None:
    """The error names it; its reason code stands in the result."""
    yard.back_up("web", 2)
    groups = [{"name": "g", "order": ["gone", "web"]}]
    yard.save({"retries": {"attempts": 0}}, hash_share=1, groups=groups)
    yard.back_up("db", 1)
    run = yard.run()
    assert run.outcome is RunOutcome.FAILED and run.error_code == "job.not-proven"
    assert "gone: verify.no-point" in str(run.error)
    assert outcomes(run) == {"web": "success", "db": "success", "gone": "failed"}
    runs = yard.home.catalog.job_runs
    repetition = runs.add("proof", RunKind.VERIFICATION, RunCause.RETRY, repeats=run)
    yard.scheduler.look()
    assert yard.engine.wait_idle(WITHIN_S)
    assert "db" not in outcomes(runs.get(repetition.run_id))


def test_an_objective_that_is_missed_is_an_alarm_of_the_run(yard: Yard) -> None:
    """The VM works, so the run has a warning and did not fail."""
    yard.back_up("db")
    yard.save({"rpo": "1h"}, hash_share=1)
    yard.home.catalog.clock = MovedClock(datetime.now(UTC) + timedelta(hours=2))
    run = yard.run()
    assert run.outcome is RunOutcome.WARNING
    assert [reason.code for reason in run.reasons] == ["verify.rpo-exceeded"]
    (row,) = yard.home.catalog.verifications.trend("db")
    assert row.reasons == ("verify.rpo-exceeded",) and row.rpo_s == 3600


def test_damage_fails_the_vm_and_is_certified_as_found(yard: Yard) -> None:
    """What was found is signed too."""
    yard.back_up("db")
    yard.save({"retries": {"attempts": 0}}, hash_share=1)
    yard.damage()
    run = yard.run()
    assert run.outcome is RunOutcome.FAILED and run.result["certificate"]["sequence"] == 1
    (vm,) = run.result["vms"]
    assert vm["verdict"] == "failed" and vm["reasons"][0]["code"].startswith("repository.")


def test_a_job_that_covers_nothing_says_so(yard: Yard) -> None:
    """A warning, and no certificate over nothing."""
    yard.save(hash_share=1, select={"names": ["web*"]})
    run = yard.run()
    assert run.outcome is RunOutcome.WARNING and run.result["certificate"] is None
    assert [reason.code for reason in run.reasons] == ["verify.nothing-covered"]


def test_a_hypervisor_that_cannot_be_had_fails_its_vms_and_no_others(yard: Yard) -> None:
    """With both places the sandbox's proof is certified all the same."""
    yard.back_up("db")
    yard.save({"retries": {"attempts": 0}}, hash_share=1, where="both", probes=[])
    run = yard.run()
    assert run.outcome is RunOutcome.FAILED
    by_place = {vm["place"]: vm for vm in run.result["vms"]}
    assert by_place["sandbox"]["verdict"] == "passed"
    assert by_place["hypervisor"]["error"]["code"] == "usage"
    assert run.result["certificate"]["sequence"] == 1


def test_a_cancelled_run_certifies_what_it_had_found(yard: Yard) -> None:
    """The rest is cancelled, and nothing is repeated."""
    yard.back_up("a", 1)
    yard.back_up("b", 2)
    yard.save(hash_share=1)
    catalog = yard.home.catalog
    run = catalog.job_runs.add("proof", RunKind.VERIFICATION, RunCause.MANUAL)
    live = LiveRun(run.run_id, catalog.clock)
    runner = yard.engine._runners[RunKind.VERIFICATION]
    ends = live.vm_ends

    def cancel_after_first(vm: str) -> Any:
        live.cancel(CancelCause.ADMINISTRATOR)
        return ends(vm)

    live.vm_ends = cancel_after_first  # type: ignore[method-assign]
    report = runner.run(RunOrder(run=run, saved=catalog.jobs.get("proof")), live)
    assert report.outcome is RunOutcome.CANCELLED
    assert [vm["outcome"] for vm in report.result["vms"]] == ["success", "cancelled"]
    assert report.result["certificate"]["sequence"] == 1


def test_after_a_lost_catalog_proofs_come_from_the_certificates(yard: Yard, tmp_path: Path) -> None:
    """Times, verdicts and reasons are what they were; the chain goes on behind the last one."""
    yard.back_up("db")
    yard.save({"rto": "5min", "rpo": "1d", "retries": {"attempts": 0}}, hash_share=1)
    yard.run()
    yard.damage()
    yard.run()
    before = yard.home.catalog.verifications.trend("db")
    assert remember_proofs(tmp_path, yard.home.catalog) == 0
    (tmp_path / "new").mkdir()
    with Catalog.open(tmp_path / "new") as anew:
        assert remember_proofs(tmp_path, anew) == 2
        found = anew.verifications.trend("db")
    assert len(found) == 2 and {row.verdict for row in found} == {"passed", "failed"}
    by_run = {row.run_id: row for row in found}
    for row in before:
        same = replace(row, point_age_s=round(row.point_age_s))
        assert by_run[row.run_id] == same


def test_evidence_goes_after_its_time_and_certificates_stay(yard: Yard) -> None:
    """A run removes what is older than 90 days."""
    yard.back_up("db")
    yard.save(hash_share=1)
    first = yard.run()
    folder = yard.home.folder / "verify"
    yard.home.catalog.clock = MovedClock(datetime.now(UTC) + timedelta(days=91))
    second = yard.run()
    assert not (folder / first.run_id).exists()
    assert second.result["certificate"]["sequence"] == 2
    assert len(CertificateStore(yard.home.folder).paths()) == 2


def test_a_session_that_is_made_while_one_looks_for_debris_is_left_alone() -> None:
    """Who is alive is asked after what there is: an owner of what is listed was alive then."""
    asked: list[str] = []
    record = SimpleNamespace(session_id="0a1b2c3d", owner_run="run-1", host="lab")

    def list_sessions() -> list[SimpleNamespace]:
        asked.append("sessions")
        return [record]

    def alive() -> frozenset[RunId]:
        asked.append("alive")
        return frozenset({RunId("run-1")})

    def open_target(host: str) -> WitnessedTarget:
        raise AssertionError("a living session was to be discarded")

    room = cast(RecoveryRoom, SimpleNamespace(store=SimpleNamespace(list=list_sessions)))
    assert discard_debris(room, alive, open_target) == {}
    assert asked == ["sessions", "alive"]


def test_evidence_goes_when_the_policy_of_its_job_says_so(yard: Yard) -> None:
    """Of a run by its own job's policy; what is of no job by the one that keeps longest."""
    yard.back_up("web")
    yard.save({"evidence_days": 10}, hash_share=1)
    longer = Policy(name="longer", evidence_days=400)
    catalog, folder = yard.home.catalog, yard.home.folder / "verify"
    other = {"name": "other", "kind": "verification", "policy": "longer", "hash_share": 1}
    catalog.jobs.save([longer], [JOB.validate_python(other)])
    old, newer = yard.run(), yard.run()
    theirs = run_now(catalog.jobs, catalog.job_runs, "other", yard.scheduler.wake)
    yard.scheduler.look()
    assert yard.engine.wait_idle(WITHIN_S)
    ages = {
        old.run_id: 11,
        newer.run_id: 9,
        theirs.run_id: 399,
        "of-nobody": 399,
        "of-nobody-and-old": 401,
    }
    for name, days in ages.items():
        (folder / name).mkdir(exist_ok=True)
        at_s = (datetime.now(UTC) - timedelta(days=days)).timestamp()
        os.utime(folder / name, (at_s, at_s))
    last = yard.run()
    kept = {last.run_id, newer.run_id, theirs.run_id, "of-nobody"}
    assert {path.name for path in folder.iterdir()} == kept
    assert len(CertificateStore(yard.home.folder).paths()) == 4
