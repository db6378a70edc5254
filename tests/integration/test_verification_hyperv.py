"""Verification on the practice Hyper-V host: instant recoveries on a private switch, always
discarded.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from appliance.exports.iscsi.server import IscsiServer
from appliance.exports.nfs import NfsServer, PortmapMode, handle_key
from appliance.service.daemon_client import DaemonClient
from hyperv.marker import Marker
from lab.faults import FaultName
from lab.hyperv_host.virtual_machine import HypervVm
from lab.hyperv_host.vm_settings import VmState
from tests.support.holdfast_program import serving
from tests.support.hyperv_backups import HypervAppliance, hyperv_appliance
from tests.support.hyperv_lab import hyperv_lab
from tests.support.iscsi_clients import needs_iscsi
from tests.support.proof_service import WITHIN_S, ProofService, proof_service, stages

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
LOOPBACK = "127.0.0.1"
PROOFS = "holdfast-verify-*"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HypervAppliance]:
    """A point of the VM `web` and one of `db`, both off."""
    needs_iscsi()
    with hyperv_lab(tmp_path_factory.mktemp("volumes")) as lab, hyperv_appliance(lab) as made:
        for name in ("web", "db"):
            lab.add_tiny(name, start=False)
        made.back_up("web", "db")
        yield made


@pytest.fixture
def here(lab: HypervAppliance) -> Iterator[HypervAppliance]:
    """What a test leaves at the host or in the state folder fails it."""
    before = traces(lab)
    yield lab
    lab.lab.practice.faults.disarm()
    assert traces(lab) == before


@contextmanager
def service(here: HypervAppliance) -> Iterator[ProofService]:
    nfs = NfsServer(
        key=handle_key(here.home / "nfs-handles.key"),
        host=LOOPBACK,
        port=0,
        portmap_mode=PortmapMode.NONE,
    )
    iscsi = IscsiServer(here.home / "luns", host=LOOPBACK, port=0)
    with proof_service(here.home, LOOPBACK, nfs, iscsi) as at:
        yield at


def traces(here: HypervAppliance) -> dict[str, list[str]]:
    practice = here.lab.practice
    sessions = here.home / "sessions"
    with here.catalog() as catalog:
        intents = [f"{one.kind} {one.name}" for one in catalog.intents.open_intents()]
    return {
        "vms": sorted(vm.settings.name for vm in practice.host.vms()),
        "switches": sorted(switch.name for switch in practice.host.switches),
        "volumes": [
            str(path)
            for path in practice.host.volumes.folder.glob("*/ProgramData/Holdfast/volumes/*")
        ],
        "sessions": sorted(path.name for path in sessions.iterdir() if path.is_dir())
        if sessions.exists()
        else [],
        "intents": sorted(intents),
    }


def proofs(here: HypervAppliance) -> list[HypervVm]:
    vms = here.lab.practice.host.vms()
    return [vm for vm in vms if vm.settings.name.startswith("holdfast-verify-")]


def our_switches(here: HypervAppliance) -> dict[str, str]:
    """Notes by name."""
    switches = here.lab.practice.host.switches
    return {one.name: one.notes for one in switches if one.name.startswith("holdfast-")}


def wait_until(reached: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while not reached():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_a_point_boots_on_the_host_and_leaves_nothing_there(here: HypervAppliance) -> None:
    """Heartbeat, screenshot and times are certified; probes are skipped with an honest reason. Its
    adapter is on a private switch with the mark of the VM."""
    seen: set[HypervVm] = set()
    switches: dict[str, str] = {}
    with service(here) as at:
        at.save(select={"names": ["web"]}, probes=["tcp:7777"])
        run_id = at.jobs.run_now("proof").run_id
        at.jobs.scheduler.look()
        while not at.jobs.engine.wait_idle(0.2):
            seen |= {vm for vm in proofs(here) if vm.settings.adapters}
            switches |= our_switches(here)
        run = at.catalog.job_runs.get(run_id)
        assert run.outcome == "success", (run.error, run.result)
        (vm,) = run.result["vms"]
        assert vm["place"] == "hypervisor" and vm["verdict"] == "passed" and vm["reasons"] == []
        assert 0 < vm["recovery_seconds"] < vm["rto_seconds"]
        found = stages(vm)
        assert found["probed"] == "verify.network-isolated"
        for stage in ("published", "registered", "powered-on", "ready", "screenshot", "clean-up"):
            assert found[stage] is None, vm
        kept = here.home / "verify" / run.run_id / "0000" / "screen.png"
        assert kept.read_bytes().startswith(b"\x89PNG")
        (row,) = at.catalog.verifications.trend("web")
        assert (row.place, row.certificate) == ("hypervisor", 1)
    (proof,) = seen
    (adapter,) = proof.settings.adapters
    marker = Marker.parse(switches[adapter.switch])
    assert marker is not None and proof.settings.notes == marker.text


def test_what_the_host_refuses_fails_its_stage_and_leaves_nothing(here: HypervAppliance) -> None:
    """A start that fails is the reason; silent services never pass by waiting."""
    faults = here.lab.practice.faults
    with service(here) as at:
        at.save(select={"names": ["web"]})
        faults.arm(FaultName.POWER_ON_FAILURE, vm_name=PROOFS)
        (vm,) = at.run().result["vms"]
        found = stages(vm)
        assert vm["verdict"] == "failed" and found["registered"] is None
        assert found["powered-on"] == "hyperv.refused", found
        assert found["ready"] == "verify.stage-before-failed" and found["clean-up"] is None
        at.save(select={"names": ["web"]}, timeout="4s")
        faults.arm(FaultName.TOOLS_SILENT, vm_name=PROOFS)
        run = at.run()
        (vm,) = run.result["vms"]
        assert (run.outcome, run.error_code) == ("failed", "job.not-proven")
        assert (vm["verdict"], vm["recovery_seconds"]) == ("failed", None)
        assert stages(vm)["ready"] == "verify.no-tools", vm
        assert stages(vm)["powered-on"] is None and stages(vm)["clean-up"] is None


def test_a_group_shares_one_switch_that_goes_with_the_last(here: HypervAppliance) -> None:
    """In order, each when the one before has its heartbeat; that decides also without a picture."""
    seen: set[str] = set()
    together = 0
    here.lab.practice.faults.arm(FaultName.SCREEN_UNAVAILABLE, vm_name=PROOFS)
    with service(here) as at:
        at.save(groups=[{"name": "shop", "order": ["db", "web"]}], select={"names": ["none*"]})
        run_id = at.jobs.run_now("proof").run_id
        at.jobs.scheduler.look()
        while not at.jobs.engine.wait_idle(0.2):
            seen |= our_switches(here).keys()
            together = max(together, len(proofs(here)))
        run = at.catalog.job_runs.get(run_id)
        assert run.outcome == "warning", (run.error, run.result)
        assert [(vm["vm"], vm["group"]) for vm in run.result["vms"]] == [
            ("db", "shop"),
            ("web", "shop"),
        ]
        assert all(vm["verdict"] == "passed" for vm in run.result["vms"])
        codes = {reason["code"] for vm in run.result["vms"] for reason in vm["reasons"]}
        assert codes == {"verify.screen-unavailable"}
    assert (len(seen), together) == (1, 2)


def test_a_killed_daemon_leaves_nothing_on_the_host_after_its_next_start(
    here: HypervAppliance,
) -> None:
    """kill -9 while the guest runs; the patrol of the next daemon discards it."""
    before = traces(here)
    job = here.home / "proof.toml"
    job.write_text(
        f'[job.proof]\nkind = "verification"\nwhere = "hypervisor"\naddress = "{LOOPBACK}"\n'
        'select = {names = ["web"]}\n'
    )
    here.lab.practice.faults.arm(FaultName.TOOLS_SILENT, vm_name=PROOFS)
    here.holdfast("job", "apply", str(job))
    words = ("--bind", LOOPBACK, "--port", "0", "--nfs-port", "0", "--portmap", "none")
    words = (*words, "--reserve", "0")
    port = ("--iscsi-port", "0")
    with serving(here.home, "serve", *words, *port) as (daemon, document):
        port = ("--iscsi-port", str(document["iscsi"]["port"]))
        run_id = DaemonClient(here.home).run_job("proof")["run_id"]
        wait_until(lambda: any(vm.state is VmState.RUNNING for vm in proofs(here)))
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    assert proofs(here) and our_switches(here)
    with serving(here.home, "serve", *words, *port):
        wait_until(lambda: traces(here) == before)
        found: Any = here.holdfast("run", "show", run_id)
        assert found["error_code"] == "run.interrupted"
