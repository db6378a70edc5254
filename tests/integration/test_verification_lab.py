"""Verification on the practice vCenter: instant recoveries in isolation, always discarded."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from appliance.exports.nfs import NfsServer, PortmapMode, handle_key
from appliance.service.daemon_client import DaemonClient
from lab.esx.vm_state import PowerState
from lab.faults import FaultName
from lab.guests import GuestKind, build
from lab.vcenter.networks import Network
from lab.vcenter.virtual_machine_engine import EngineMachine
from tests.support.holdfast_program import serving
from tests.support.instant_lab import InstantLab, instant_lab
from tests.support.lab_nfs import needs_nfs_datastores
from tests.support.proof_service import WITHIN_S, ProofService, proof_service, stages
from tests.support.roomy_disk import roomy_disk as roomy_disk

pytestmark = pytest.mark.integration


@contextmanager
def service(here: InstantLab) -> Iterator[ProofService]:
    home = here.lab.home
    nfs = NfsServer(
        key=handle_key(home / "nfs-handles.key"), host=here.address, portmap_mode=PortmapMode.OWN
    )
    with proof_service(home, here.address, nfs) as at:
        yield at


@pytest.fixture
def here() -> Iterator[InstantLab]:
    needs_nfs_datastores()
    with instant_lab() as lab:
        yield lab


def test_a_point_boots_on_the_host_and_leaves_nothing_there(here: InstantLab) -> None:
    """Heartbeat, screenshot and times are certified; probes are skipped with an honest reason; VM,
    network, datastore and session are gone."""
    before = here.traces()
    with service(here) as at:
        at.save(probes=["tcp:7777"])
        run = at.run()
        (vm,) = run.result["vms"]
        assert run.outcome == "success", (run.error, vm)
        assert vm["place"] == "hypervisor" and vm["verdict"] == "passed"
        assert 0 < vm["recovery_seconds"] < vm["rto_seconds"]
        found = stages(vm)
        assert found["probed"] == "verify.network-isolated"
        for stage in ("published", "registered", "powered-on", "ready", "screenshot", "clean-up"):
            assert found[stage] is None, vm
        kept = here.lab.home / "verify" / run.run_id / "0000" / "screen.png"
        assert kept.read_bytes().startswith(b"\x89PNG")
        (row,) = at.catalog.verifications.trend("web")
        assert (row.place, row.certificate) == ("hypervisor", 1)
    assert here.traces() == before


def test_a_guest_whose_tools_are_silent_never_passes_by_waiting(here: InstantLab) -> None:
    """It is on, its screen shows something, and nobody in it answers: no proof."""
    here.lab.faults.arm(FaultName.TOOLS_SILENT, vm_name="holdfast-verify-*")
    before = here.traces()
    with service(here) as at:
        at.save(timeout="6s")
        run = at.run()
        (vm,) = run.result["vms"]
        assert (run.outcome, run.error_code) == ("failed", "job.not-proven")
        assert (vm["verdict"], vm["recovery_seconds"]) == ("failed", None)
        assert stages(vm)["ready"] == "verify.no-tools"
        assert stages(vm)["powered-on"] is None and stages(vm)["clean-up"] is None
        assert "verify.no-tools" in {reason["code"] for reason in vm["reasons"]}
    assert here.traces() == before


def test_what_the_hypervisor_refuses_fails_its_stage_and_leaves_nothing(here: InstantLab) -> None:
    """A power-on that fails is the reason; without a screenshot the heartbeat still decides."""
    before = here.traces()
    with service(here) as at:
        at.save()
        here.lab.faults.arm(FaultName.POWER_ON_FAILURE, vm_name="holdfast-verify-*")
        (vm,) = at.run().result["vms"]
        found = stages(vm)
        assert vm["verdict"] == "failed" and found["registered"] is None
        assert found["powered-on"] == "vsphere.task-failed", found
        assert found["ready"] == "verify.stage-before-failed" and found["clean-up"] is None
        here.lab.faults.arm(FaultName.SCREEN_UNAVAILABLE, vm_name="holdfast-verify-*")
        run = at.run()
        (vm,) = run.result["vms"]
        assert (run.outcome, vm["verdict"]) == ("warning", "passed")
        assert stages(vm)["screenshot"] == "verify.screen-unavailable"
    assert here.traces() == before


def test_a_group_shares_one_network_and_leaves_nothing_either(here: InstantLab) -> None:
    """In order, each when the one before has its heartbeat; the network goes with the last."""
    here.lab.add_machine("db", build(GuestKind.TINY))
    here.lab.holdfast("backup", "vm", "db", "--quiesce", "crash", "--quiet")
    before = here.traces()
    seen: set[tuple[str, ...]] = set()
    with service(here) as at:
        at.save(groups=[{"name": "shop", "order": ["db", "web"]}], select={"names": ["none*"]})
        run_id = at.jobs.run_now("proof").run_id
        at.jobs.scheduler.look()
        while not at.jobs.engine.wait_idle(0.2):
            names = {network.name for network in here.lab.vcenter.registry.all(Network)}
            seen.add(tuple(names - set(before["networks"])))
        run = at.catalog.job_runs.get(run_id)
        assert run.outcome == "success", (run.error, run.result)
        assert [(vm["vm"], vm["group"]) for vm in run.result["vms"]] == [
            ("db", "shop"),
            ("web", "shop"),
        ]
        assert all(vm["reasons"] == [] for vm in run.result["vms"])
    assert len({name for names in seen for name in names}) == 1
    assert here.traces() == before


def test_a_cancelled_verification_takes_its_guest_away(here: InstantLab) -> None:
    """While it waits for a heartbeat that never comes."""
    here.lab.faults.arm(FaultName.TOOLS_SILENT, vm_name="holdfast-verify-*")
    before = here.traces()
    with service(here) as at:
        at.save()
        run_id = at.jobs.run_now("proof").run_id
        at.jobs.scheduler.look()
        wait_until(lambda: any(is_on(machine) for machine in proofs(here)))
        at.jobs.cancel(run_id)
        assert at.jobs.engine.wait_idle(WITHIN_S)
        assert at.catalog.job_runs.get(run_id).outcome == "cancelled"
    assert here.traces() == before


def test_a_killed_daemon_leaves_nothing_on_the_host_after_its_next_start(here: InstantLab) -> None:
    """kill -9 while the guest runs; the patrol of the next daemon discards it, and the run is
    failed, interrupted, and repeated."""
    before = here.traces()
    job = here.lab.home / "proof.toml"
    job.write_text(
        f'[job.proof]\nkind = "verification"\nwhere = "hypervisor"\naddress = "{here.address}"\n'
    )
    here.lab.faults.arm(FaultName.TOOLS_SILENT, vm_name="holdfast-verify-*")
    here.lab.holdfast("job", "apply", str(job))
    words = ("--bind", here.address, "--port", "0", "--portmap", "own", "--reserve", "0")
    with serving(here.lab.home, "serve", *words) as (daemon, _):
        run_id = DaemonClient(here.lab.home).run_job("proof")["run_id"]
        wait_until(lambda: any(is_on(machine) for machine in proofs(here)))
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    assert proofs(here)
    with serving(here.lab.home, "serve", *words):
        wait_until(lambda: here.traces() == before)
        assert here.lab.holdfast("run", "show", run_id)["error_code"] == "run.interrupted"


def proofs(here: InstantLab) -> list[EngineMachine]:
    every = here.lab.vcenter.registry.all(EngineMachine)
    return [machine for machine in every if machine.name.startswith("holdfast-verify-")]


def is_on(machine: EngineMachine) -> bool:
    return machine.engine.power is PowerState.ON


def wait_until(reached: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not reached():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
