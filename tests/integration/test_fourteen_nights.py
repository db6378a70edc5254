"""Fourteen nights of an appliance on the practice vCenter, under a clock that the test moves.

| what | when |
|---|---|
| backup of everything, 5 days kept | every night at 22:00 |
| every chunk of the newest points re-hashed | every morning at 03:00 |
| `web`, `broken` and `shop` boot in the sandbox | Tuesday of the second week at 04:00 |
| `web` boots on the vCenter | the day after, at 05:00 |
| check and garbage collection | Sundays at 12:00 |

`broken` has no kernel, the probe of `shop` is wrong, the change tracking of `data` is reset in one
night, and in another no vCenter answers.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.catalog.catalog import Catalog
from appliance.catalog.job import RunKind
from appliance.catalog.job_runs import JobRun, RunCause
from appliance.exports.nfs import NfsServer, PortmapMode, handle_key
from appliance.jobs.certificate_store import CertificateStore
from appliance.repository.repository import Repository
from appliance.service.job_file import parse_job_file
from appliance.service.job_service import JobService
from appliance.service.points_in_use import points_in_use
from appliance.service.recoveries import recovery_room
from appliance.service.recovery_server import RecoveryServer
from lab.faults import FaultName
from lab.guests import GuestKind
from tests.support.check_repository import check_repository
from tests.support.guest_images import fresh_copy
from tests.support.holdfast_program import run_json
from tests.support.lab_nfs import needs_nfs_datastores, own_address
from tests.support.needs import needs
from tests.support.programs import run as run_program
from tests.support.roomy_disk import roomy_disk as roomy_disk
from tests.support.vm_lab import VmLab, quick_tools, vm_lab

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

WITHIN_S = 240.0
NIGHTS = 14
RESET_NIGHT, DARK_NIGHT = 5, 9
_AFTER_RESET = {0: "cbt.file-fault", 1: "cbt.epoch-changed"}  # nights since, as vSphere tells it
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
VMS = {"web", "broken", "shop", "data"}

JOBS = """
[policy.nightly]
schedule = {{ at = ["22:00"] }}
retention = {{ keep_daily = 5 }}
consistency = {{ wanted = "crash" }}
retries = {{ attempts = 1, wait_minutes = 10 }}
vms_at_once = 2

[policy.morning]
schedule = {{ at = ["03:00"] }}
rpo = "26h"

[policy.tuesdays]
schedule = {{ at = ["04:00"], days = ["tue"] }}
retries = {{ attempts = 0 }}
vms_at_once = 3
rto = "10min"

[policy.wednesdays]
schedule = {{ at = ["05:00"], days = ["wed"] }}
rto = "10min"

[policy.sundays]
schedule = {{ at = ["12:00"], days = ["sun"] }}

[job.all]
kind = "backup"
policy = "nightly"
select = {{ everything = true }}

[job.content]
kind = "verification"
policy = "morning"
hash_share = 1

[job.boots]
kind = "verification"
policy = "tuesdays"
enabled = false
select = {{ names = ["web", "broken", "shop"] }}
memory_mib = 256
timeout = "15s"
vms = [
  {{ names = ["web"], probes = ["serial:HOLDFAST-READY tiny", "tcp:7777"], timeout = "3min" }},
  {{ names = ["broken"], probes = ["tcp:7777"] }},
  {{ names = ["shop"], probes = ["tcp:7999"] }},
]

[job.on-the-host]
kind = "verification"
policy = "wednesdays"
enabled = false
where = "hypervisor"
address = "{address}"
select = {{ names = ["web"] }}

[job.check]
kind = "check"
policy = "sundays"
read_data = true

[job.gc]
kind = "gc"
policy = "sundays"
"""


class NightClock:
    """Time goes on as it does, and is set forward by the test."""

    def __init__(self, start: datetime) -> None:
        self._lock = threading.Lock()
        self._ahead = start - datetime.now(UTC)

    def now(self) -> datetime:
        with self._lock:
            return datetime.now(UTC) + self._ahead

    def monotonic_s(self) -> float:
        return time.monotonic()

    def forward_to(self, moment: datetime) -> None:
        with self._lock:
            self._ahead = max(self._ahead, moment - datetime.now(UTC))


@dataclass
class Appliance:
    """The daemon's jobs in this process."""

    lab: VmLab
    clock: NightClock
    catalog: Catalog
    repository: Repository
    jobs: JobService

    def until(self, end: datetime) -> None:
        """Let time pass; look whenever something may be due."""
        while True:
            following = self.jobs.scheduler.look()
            assert self.jobs.engine.wait_idle(WITHIN_S)
            now = self.clock.now()
            if self.catalog.job_runs.open_runs():
                continue  # it follows another run
            if following is None and any(
                run.ended_at and now - run.ended_at < timedelta(seconds=1)
                for run in self.catalog.job_runs.list(limit=1)
            ):
                continue
            if now >= end:
                return
            moments = [end] if following is None else [end, following]
            self.clock.forward_to(min(max(moment, now) for moment in moments))

    def runs(self, job: str) -> list[JobRun]:
        """With their results, oldest first."""
        runs = self.catalog.job_runs
        return [runs.get(run.run_id) for run in runs.list(job=job, limit=1000)]


def vm_of(run: JobRun, name: str) -> dict[str, Any]:
    (found,) = [vm for vm in run.result["vms"] if vm["vm"] == name]
    return dict(found)


def codes(vm: dict[str, Any]) -> set[str]:
    return {reason["code"] for reason in vm["reasons"]}


def stages(vm: dict[str, Any]) -> dict[str, str | None]:
    """Reason code by stage; None: passed."""
    return {stage["stage"]: stage["reason"] for stage in vm["stages"]}


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    needs_nfs_datastores()
    needs("debugfs", "qemu-img", "setpriv")
    today = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    clock = NightClock(today + (7 - today.weekday()) * DAY)  # a Monday
    address = own_address()
    with ExitStack() as stack:
        lab = stack.enter_context(vm_lab(now=clock.now))
        image = fresh_copy(GuestKind.TINY, tmp_path)
        for name in ("web", "shop"):
            lab.add_machine(name, image)
        run_program("debugfs", "-w", "-R", "rm /boot/vmlinuz", f"{image}?offset={1 << 20}")
        lab.add_machine("broken", image)
        (tmp_path / "data.raw").write_bytes(random.Random(1).randbytes(4 << 20))
        lab.add_machine("data", tmp_path / "data.raw")
        catalog = stack.enter_context(Catalog.open(lab.home, clock=clock))
        repository = Repository.open(lab.home / "repository", clock=clock)
        stack.enter_context(repository)
        nfs = NfsServer(
            key=handle_key(lab.home / "nfs-handles.key"),
            host=address,
            portmap_mode=PortmapMode.OWN,
        )
        server = RecoveryServer(recovery_room(lab.home, catalog, repository).store, repository, nfs)
        server.start()
        stack.callback(server.stop)
        jobs = JobService(
            catalog,
            repository,
            lab.home,
            lambda: frozenset(points_in_use(lab.home)),
            tools=quick_tools(),
            recovery=server,
        )
        stack.callback(jobs.stop)
        jobs.book.apply(parse_job_file(JOBS.format(address=address), lab.home))
        yield Appliance(lab, clock, catalog, repository, jobs)


def test_every_verdict_of_fourteen_nights_is_right(appliance: Appliance, tmp_path: Path) -> None:
    """What works passes each time, what does not fails with its reason, each trouble is told once
    and in its night, retention keeps five days, and the certificates of all runs form a chain."""
    began_at = appliance.clock.now().replace(minute=0, second=0, microsecond=0)
    for night in range(NIGHTS):
        evening = began_at + night * DAY + 9 * HOUR  # 21:00
        appliance.until(evening)
        if night == RESET_NIGHT:
            appliance.lab.faults.arm(FaultName.CBT_RESET, vm_name="data")
        if night == 7:
            appliance.jobs.book.enable("boots")
            appliance.jobs.book.enable("on-the-host")
        with unreachable(appliance) if night == DARK_NIGHT else nullcontext():
            appliance.until(evening + 5 * HOUR)  # 02:00
    appliance.until(began_at + NIGHTS * DAY)
    backups_are_right(appliance)
    content_is_proven(appliance)
    boots_are_judged(appliance)
    upkeep_ran(appliance)
    certificates_form_a_chain(appliance, tmp_path)
    check_repository(appliance.repository)


@contextmanager
def unreachable(appliance: Appliance) -> Iterator[None]:
    """Nothing listens where the vCenter was."""
    hosts = appliance.catalog.hosts
    (host,) = hosts.list()
    password = hosts.password(host)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        hosts.replace(replace(host, port=nobody.getsockname()[1]), password)
        yield
        hosts.replace(host, password)


def backups_are_right(appliance: Appliance) -> None:
    runs = [run for run in appliance.runs("all") if run.kind is RunKind.BACKUP]
    dark = [run for run in runs if run.outcome == "failed"]
    sound = [run for run in runs if run.outcome != "failed"]
    assert [run.cause for run in dark] == [RunCause.SCHEDULE, RunCause.RETRY]
    assert {run.error_code for run in dark} == {"vsphere.unreachable"}
    assert [run.cause for run in sound] == [RunCause.SCHEDULE] * (NIGHTS - 1)
    for number, run in enumerate(sound):
        assert {vm["vm"] for vm in run.result["vms"]} == VMS
        for vm in run.result["vms"]:
            since_reset = number - RESET_NIGHT if vm["vm"] == "data" else None
            told = _AFTER_RESET.get(since_reset)
            assert {code for code in codes(vm) if code.startswith("cbt.")} == (
                {told} if told else set()
            ), (run.due_at, vm)
            mode = "full" if number == 0 else "compared" if told else "changed"
            assert [disk["mode"] for disk in vm["disks"]] == [mode], (run.due_at, vm)
    assert [number for number, run in enumerate(sound) if run.outcome == "warning"] == [
        *(RESET_NIGHT, RESET_NIGHT + 1)
    ]
    points = Counter(point.vm for point in appliance.repository.points.list())
    assert points == dict.fromkeys(VMS, 5)


def content_is_proven(appliance: Appliance) -> None:
    runs = appliance.runs("content")
    assert len(runs) == NIGHTS
    for number, run in enumerate(runs):
        assert {(vm["vm"], vm["verdict"]) for vm in run.result["vms"]} == {
            (vm, "passed") for vm in VMS
        }
        late = number == DARK_NIGHT
        assert run.outcome == ("warning" if late else "success")
        expected = ["verify.rpo-exceeded"] if late else []
        assert [reason.code for reason in run.reasons] == expected


def boots_are_judged(appliance: Appliance) -> None:
    (run,) = appliance.runs("boots")
    assert (run.outcome, run.error_code) == ("failed", "job.not-proven")
    assert str(run.error).startswith("2 of 3 have no proof: ")
    web, broken, shop = (vm_of(run, name) for name in ("web", "broken", "shop"))
    assert (web["outcome"], web["verdict"]) == ("success", "passed"), web
    assert 0 < web["recovery_seconds"] < web["rto_seconds"]
    assert broken["verdict"] == shop["verdict"] == "failed"
    assert stages(broken)["probed"] == "verify.boot-file-missing"
    assert stages(shop)["probed"] == "verify.probe-failed"
    assert stages(broken)["clean-up"] is None and stages(shop)["screenshot"] is None
    (host,) = appliance.runs("on-the-host")
    (vm,) = host.result["vms"]
    assert (host.outcome, vm["place"], vm["verdict"]) == ("success", "hypervisor", "passed"), vm
    trend = appliance.catalog.verifications.trend("web")
    booted = [row for row in trend if row.recovery_s is not None]
    assert [row.place for row in booted] == ["sandbox", "hypervisor"]
    failed = appliance.catalog.verifications.trend("broken")
    assert {row.reasons for row in failed if row.verdict == "failed"} == {
        ("verify.boot-file-missing",)
    }


def upkeep_ran(appliance: Appliance) -> None:
    for job in ("check", "gc"):
        assert [run.outcome for run in appliance.runs(job)] == ["success"] * 2
    followed = [run for run in appliance.runs("all") if run.kind is RunKind.RETENTION]
    assert [run.outcome for run in followed] == ["success"] * (NIGHTS - 1)


def certificates_form_a_chain(appliance: Appliance, folder: Path) -> None:
    paths = CertificateStore(appliance.lab.home).paths()
    assert len(paths) == NIGHTS + 1 + 1
    elsewhere = folder / "elsewhere"
    shown = run_json(elsewhere, "certificate", "verify", *map(str, paths))
    assert shown["verified"]
    changed = folder / "changed.json"
    changed.write_text(paths[4].read_text().replace('"passed"', '"failed"', 1))
    refused = run_json(elsewhere, "certificate", "verify", str(changed), expect=1)
    assert refused["error"]["code"] == "certificate.tampered"
    gap = [str(path) for path in paths if path != paths[7]]
    refused = run_json(elsewhere, "certificate", "verify", *gap, expect=1)
    assert refused["error"]["code"] == "certificate.chain-broken"
