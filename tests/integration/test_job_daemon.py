"""`holdfast serve` runs saved jobs against the practice vCenter, and survives being killed."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.service.daemon_client import DaemonClient
from lab.faults import FaultName
from lab.vcenter.virtual_machine_engine import EngineMachine
from tests.support.check_repository import check_repository
from tests.support.holdfast_program import command, serving
from tests.support.hurried_holdfast import environment_from
from tests.support.needs import needs
from tests.support.vm_lab import VmLab, vm_lab

pytestmark = pytest.mark.integration

MIB = 1 << 20
WITHIN_S = 120.0
FLAT_FILES = "*-flat.vmdk"
SLOW_BYTES_PER_S = MIB // 2  # a disk takes 16 s, so that nobody can miss it
SERVE = ("serve", "--bind", "127.0.0.1", "--port", "0", "--nfs-port", "0", "--portmap", "none")

JOBS = """
[policy.often]
schedule = { every_minutes = 1 }
retention = { keep_last = 2 }
consistency = { wanted = "crash", least = "crash" }
retries = { attempts = 2, wait_minutes = 0 }

[policy.slow]
consistency = { wanted = "crash" }
bandwidth = [{ limit = "64MiB/s" }]
retries = { attempts = 2, wait_minutes = 0 }

[job.all]
kind = "backup"
policy = "often"
enabled = false
select = { everything = true }

[job.slow]
kind = "backup"
policy = "slow"
select = { names = ["b*"] }

[job.check]
kind = "check"
read_data = true

[job.gc]
kind = "gc"
"""


Machines = dict[str, EngineMachine]


@pytest.fixture
def machines() -> Machines:
    return {}


@pytest.fixture
def lab(tmp_path: Path, machines: Machines) -> Iterator[VmLab]:
    needs("qemu-img")
    with vm_lab() as running:
        for seed, name in enumerate(("a1", "b1", "b2")):
            image = tmp_path / f"{name}.raw"
            image.write_bytes(random.Random(seed).randbytes(8 * MIB))
            machines[name] = running.add_machine(name, image)
        (running.home / "jobs.toml").write_text(JOBS)
        running.holdfast("job", "apply", str(running.home / "jobs.toml"))
        yield running


def ended(lab: VmLab, job: str, at_least: int) -> list[dict[str, Any]]:
    """Wait until so many runs of the job have ended."""
    deadline_s = time.monotonic() + WITHIN_S
    while True:
        runs = lab.holdfast("run", "list", "--job", job)
        if sum(run["state"] == "ended" for run in runs) >= at_least:
            return list(runs)
        assert time.monotonic() < deadline_s, runs
        time.sleep(0.5)


def test_a_night_by_hand(lab: VmLab) -> None:
    """Backup with retention after it, check and garbage collection: each ends, and says what it
    did; a third backup lets the first point go, but not those that another job's policy keeps."""
    with serving(lab.home, *SERVE):
        for _ in range(3):
            run = lab.holdfast("job", "run", "all", "--wait")
            assert run["outcome"] == "success", run
            assert {vm["vm"] for vm in run["result"]["vms"]} == {"a1", "b1", "b2"}
            assert {vm["outcome"] for vm in run["vm_runs"]} == {"success"}
        runs = ended(lab, "all", 6)
        assert [run["kind"] for run in runs] == ["backup", "retention"] * 3
        assert {run["outcome"] for run in runs} == {"success"}
        removed = lab.holdfast("run", "show", runs[-1]["run_id"])["result"]["removed"]
        assert {point["vm"] for point in removed} == {"a1"}
        for job in ("gc", "check"):
            assert lab.holdfast("job", "run", job, "--wait")["outcome"] == "success"
    points = Counter(point["vm"] for point in lab.holdfast("point", "list"))
    assert points == {"a1": 2, "b1": 3, "b2": 3}
    with lab.repository() as repository:
        check_repository(repository)


def test_what_came_due_while_no_daemon_ran_is_done_at_its_start(lab: VmLab) -> None:
    """Once, however many times it was due."""
    with lab.catalog() as catalog:
        now = catalog.clock.now()
        at = f"{now - timedelta(hours=2):%H:%M}"
        lab.holdfast("job", "create", "night", "--vm", "a1", "--at", at)
        catalog.jobs.count_from("night", now - timedelta(days=300))
    with serving(lab.home, *SERVE):
        (run,) = ended(lab, "night", 1)
        assert (run["cause"], run["outcome"]) == ("catch-up", "success")
        (shown,) = (job for job in lab.holdfast("job", "list") if job["name"] == "night")
        assert datetime.fromisoformat(shown["next_run_at"]) > now + timedelta(hours=20)


def test_a_job_of_every_minute_runs_each_minute_by_itself(lab: VmLab) -> None:
    """Enabled while the daemon runs, nothing else is needed."""
    hurried = environment_from(lab.home, datetime.now(UTC))
    program = "tests.support.hurried_holdfast"
    with serving(lab.home, *SERVE, program=program, with_environment=hurried):
        subprocess.run(command("job", "enable", "all", program=program), env=hurried, check=True)
        runs = [run for run in ended(lab, "all", 4) if run["kind"] == "backup"]
        assert runs[0]["cause"] == "schedule"
        assert {run["outcome"] for run in runs[:2]} == {"success"}
        first, second = (datetime.fromisoformat(run["due_at"]) for run in runs[:2])
        assert second > first and (first.second, second.second) == (0, 0)


def test_a_killed_daemon_goes_on_with_its_run_at_the_next_start(
    lab: VmLab, machines: Machines
) -> None:
    """kill -9 in the middle of a disk: the run is failed, interrupted; its repetition backs up
    both VMs, nothing is left on the hypervisor, and every point is whole."""
    with serving(lab.home, *SERVE) as (daemon, _):
        client = DaemonClient(lab.home)
        lab.faults.arm(FaultName.SLOW_STREAM, None, amount=SLOW_BYTES_PER_S, path=FLAT_FILES)
        run_id = client.run_job("slow")["run_id"]
        live = reading(client, run_id)
        assert live["disks"][0]["total_bytes"] == 8 * MIB
        assert live["vm_count"] == 2
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    lab.faults.disarm()
    with serving(lab.home, *SERVE):
        first, second = ended(lab, "slow", 2)
        assert (first["outcome"], first["error_code"]) == ("failed", "run.interrupted")
        assert (second["outcome"], second["cause"], second["attempt"]) == ("success", "retry", 2), (
            str(lab.holdfast("run", "show", second["run_id"])["reasons"])
            + str(lab.holdfast("run", "show", second["run_id"])["result"])
        )
        assert second["repeats"] == first["run_id"]
    assert all(lab.snapshots_of(machine) == [] for machine in machines.values())
    assert {point["vm"] for point in lab.holdfast("point", "list")} == {"b1", "b2"}
    with lab.repository() as repository:
        check_repository(repository)


def test_a_run_is_cancelled_in_order(lab: VmLab, machines: Machines) -> None:
    """What is not done has no point, no snapshot stays, nothing is repeated."""
    with serving(lab.home, *SERVE):
        lab.faults.arm(FaultName.SLOW_STREAM, None, amount=SLOW_BYTES_PER_S, path=FLAT_FILES)
        client = DaemonClient(lab.home)
        run_id = client.run_job("slow")["run_id"]
        reading(client, run_id)
        lab.holdfast("run", "cancel", run_id)
        (run,) = ended(lab, "slow", 1)
        assert (run["outcome"], run["error_code"]) == ("cancelled", "run.cancelled")
        vms = lab.holdfast("run", "show", run_id)["result"]["vms"]
        assert "cancelled" in {vm["outcome"] for vm in vms}
        points = {point["vm"] for point in lab.holdfast("point", "list")}
        assert points == {vm["vm"] for vm in vms if vm["outcome"] == "success"}
    assert all(lab.snapshots_of(machine) == [] for machine in machines.values())


def reading(client: DaemonClient, run_id: str) -> dict[str, Any]:
    """Wait until a disk of the run is being read, slowly; return what is live then."""
    deadline_s = time.monotonic() + WITHIN_S
    while True:
        run = client.run(run_id)
        live: dict[str, Any] | None = run["live"]
        if live and any(disk["total_bytes"] for disk in live["disks"]):
            return live
        assert run["state"] != "ended" and time.monotonic() < deadline_s, run
        time.sleep(0.1)


def test_a_file_registers_hosts_policies_and_jobs(tmp_path: Path) -> None:
    """From an empty state folder to a backup: one file, one password beside it. Applied again it
    changes nothing; a wrong password is refused and nothing is changed."""
    needs("qemu-img")
    with vm_lab() as lab:
        image = tmp_path / "a.raw"
        image.write_bytes(random.Random(1).randbytes(MIB))
        lab.add_machine("a1", image)
        with lab.catalog() as catalog:
            catalog.hosts.remove("lab")
        vcenter = lab.vcenter
        password = tmp_path / "password"
        password.write_text("wrong\n")
        file = tmp_path / "all.toml"
        file.write_text(
            f'[host.practice]\naddress = "{vcenter.address}:{vcenter.port}"\n'
            f'user = "{vcenter.user}"\nfingerprint = "{vcenter.fingerprint}"\n'
            f'password_file = "password"\n{JOBS}'
        )
        lab.holdfast("job", "apply", str(file), expect=1)
        assert lab.holdfast("host", "list") == lab.holdfast("job", "list") == []
        password.write_text(f"{vcenter.password}\n")
        shown = lab.holdfast("job", "apply", str(file), "--dry-run")
        assert next(entry["name"] for entry in shown["changes"]) == "practice"
        assert vcenter.password not in str(shown)
        assert lab.holdfast("job", "apply", str(file))["changes"] == shown["changes"]
        assert lab.holdfast("job", "apply", str(file))["changes"] == []
        assert vcenter.password not in str(lab.holdfast("job", "export"))
        assert vcenter.password not in (lab.home / "jobs-copy.toml").read_text()
        with serving(lab.home, *SERVE):
            assert lab.holdfast("job", "run", "all", "--wait")["outcome"] == "success"
