"""Instant recovery in the practice vCenter: from a recovery point to a guest that runs, and away.

The guest numbers its writes and says which ones it saw durable. So a lost write shows.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.exports.datastore.session import SessionStore
from appliance.service.daemon_client import DaemonClient
from lab.esx import vm_power
from lab.esx.vm_state import PowerState
from lab.faults import FaultName
from lab.guests.disk import FIRST_PARTITION_OFFSET
from tests.support.holdfast_program import serving
from tests.support.instant_lab import InstantLab, RunningGuest, instant_lab, journal_of
from tests.support.lab_machines import done
from tests.support.lab_nfs import needs_nfs_datastores
from tests.support.needs import needs
from tests.support.processes import wait_until_gone

pytestmark = pytest.mark.integration
KILLS = int(os.environ.get("HOLDFAST_KILLS", "4"))


@pytest.fixture(scope="module")
def here() -> Iterator[InstantLab]:
    needs_nfs_datastores()
    with instant_lab() as opened:
        yield opened


@pytest.fixture
def served(here: InstantLab) -> Iterator[InstantLab]:
    with here.serve():
        yield here


def step_names(document: Any) -> list[str]:
    return [step["name"] for step in document["steps"]]


@pytest.mark.timeout(600 + 20 * KILLS)
def test_a_guest_runs_within_seconds_survives_kills_of_the_daemon_and_moves_while_it_writes(
    here: InstantLab,
) -> None:
    """kill -9 at random moments: no acknowledged number is lost, the guest goes on. Then it moves
    to production storage while it writes: the journal there is complete and unbroken."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    before = here.traces()
    server, _ = (daemon := here.serve()).__enter__()
    try:
        started = here.start("--power-on", "--name", "again")
        assert started["phase"] == "running" and started["guest"]["heartbeat"] == "beating"
        assert step_names(started) == [
            *("plan", "publish", "serve", "mount", "register", "power on", "heartbeat")
        ]
        machine = here.machine("again")
        assert machine.engine.config.swap_placement == "hostLocal"
        assert not machine.engine.config.change_tracking
        assert machine.engine.config.disks[0].path.datastore == started["datastore"]
        guest = RunningGuest(machine)
        guest.say("journal start")
        for _ in range(KILLS):
            guest.wait_for(guest.acknowledged + source.randrange(1, 30))
            server.kill()
            server.wait()
            daemon.__exit__(None, None, None)
            server, _ = (daemon := here.serve()).__enter__()
        guest.wait_for(guest.acknowledged + 5)
        ended = here.command("finalise", started["session_id"], "--datastore", "ds2")
        assert ended["phase"] == "moved"
        guest.wait_for(guest.acknowledged + 5)
        last = guest.stop()
    finally:
        daemon.__exit__(None, None, None)
    numbers = journal_of(machine)
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= last > 0
    config = machine.engine.config
    assert {config.vmx_path.datastore, config.disks[0].path.datastore} == {"ds2"}
    assert "holdfast.session" not in config.extra and config.swap_placement == "inherit"
    after = here.traces()
    assert after == before | {"vms": sorted([*before["vms"], "again"])}


@pytest.mark.timeout(300)
def test_a_discarded_session_leaves_no_trace(served: InstantLab) -> None:
    """No VM, datastore, export, folder, network or intent; also of one with an isolated network."""
    before = served.traces()
    first = served.start("--network", "isolated", "--power-on", "--name", "first")
    second = served.start("--name", "50%2foff")  # no escape sequence, though it looks like one
    assert (second["phase"], second["guest"]) == ("registered", None)
    assert served.machine("50%2foff").engine.config.name == "50%2foff"
    assert served.machine("first").engine.config.nics[0].network == first["datastore"]
    for session in (first, second):
        served.command("discard", session["session_id"])
    assert served.traces() == before
    assert DaemonClient(served.lab.home).sessions() == []


@pytest.mark.timeout(400)
def test_a_move_that_fails_or_needs_downtime_leaves_the_guest_running(served: InstantLab) -> None:
    """A failed move changes nothing; a licence without Storage vMotion is told, and the VM is only
    shut down when that is allowed."""
    session = served.start("--power-on", "--name", "mover")["session_id"]
    machine = served.machine("mover")
    guest = RunningGuest(machine)
    guest.say("journal start")
    guest.wait_for(5)
    served.lab.faults.arm(FaultName.RELOCATE_FAILURE)
    failed = served.command("finalise", session, "--datastore", "ds2", expect=1)
    assert failed["error"]["code"] == "vsphere.file"
    guest.wait_for(guest.acknowledged + 5)
    served.lab.faults.arm(FaultName.NO_LIVE_MOVE)
    refused = served.command("finalise", session, "--datastore", "ds2", expect=1)
    assert refused["error"]["code"] == "instant.downtime-needed"
    guest.wait_for(guest.acknowledged + 5)
    (listed,) = served.command("list", expect=3)["sessions"]
    assert listed["stuck"].startswith("move: [instant.downtime-needed]")
    served.lab.faults.arm(FaultName.NO_LIVE_MOVE)
    last = guest.stop()
    ended = served.command("finalise", session, "--datastore", "ds2", "--allow-downtime", expect=3)
    assert "instant.moved-cold" in [reason["code"] for reason in ended["reasons"]]
    assert machine.engine.power is PowerState.ON
    assert machine.engine.config.disks[0].path.datastore == "ds2"
    assert len(journal_of(machine)) >= last
    vm_power.power_off(machine.engine)
    done(served.lab.client_of(machine).Destroy_Task())


def test_a_daemon_is_started_when_none_answers(here: InstantLab) -> None:
    """It outlives the command, serves the session, and is started again when it was killed."""
    before = here.traces()
    client = DaemonClient(here.lab.home)
    pids = []
    try:
        session = here.start()["session_id"]
        pids.append(client.about()["pid"])
        assert [each["served"] for each in client.sessions()] == [True]
        os.kill(pids[-1], signal.SIGKILL)
        wait_until_gone(pids[-1])
        (listed,) = here.command("list", expect=3)["sessions"]
        assert listed["served"] is False
        # with the address: one that listens on all would meet the servers of other tests
        here.command("start", "--resume", session, "--address", here.address)
        pids.append(client.about()["pid"])
        here.command("discard", session)
    finally:
        os.kill(client.about()["pid"], signal.SIGTERM)
        wait_until_gone(pids[-1])
    assert len(set(pids)) == 2
    assert here.traces() == before


@pytest.mark.timeout(300)
def test_a_session_runs_in_the_local_sandbox_and_keeps_what_its_guest_wrote(
    served: InstantLab, tmp_path: Path
) -> None:
    """Over NBD; interrupted and started again, its guest finds its disk as it left it."""
    needs("debugfs")
    words = (
        *("instant", "start", "--target", "local", "--disk-interface", "pvscsi", "--quiet"),
        *("--probe", "serial:HOLDFAST-READY", "--reserve", "0", "--memory", "256"),
    )
    with serving(served.lab.home, *words, served.point) as (process, first):
        assert first["ready"]
        assert [step["name"] for step in first["steps"]] == [
            *("publish", "serve", "power on", "ready")
        ]
        busy = served.command("discard", first["session_id"], expect=1)
        assert busy["error"]["code"] == "session.busy"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    with serving(served.lab.home, *words, "--resume", first["session_id"]) as (process, second):
        assert second["ready"] and second["session_id"] == first["session_id"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    DaemonClient(served.lab.home).withdraw(first["session_id"])
    assert boots_of(served, first["session_id"], tmp_path / "disk.raw") == "2"
    served.command("finalise", first["session_id"], expect=2)
    served.command("discard", first["session_id"])
    assert served.traces()["folders"] == []


def boots_of(here: InstantLab, session_id: str, scratch: Path) -> str:
    """What the tiny guest counts in a file, read from the disk of a session."""
    store = SessionStore(here.lab.home / "sessions")
    with here.lab.repository() as repository:
        session = store.open(store.get(session_id), repository.open_image)
        disk = session.devices[0]
        scratch.write_bytes(disk.read_at(0, disk.size_bytes))
        session.close()
    partition = f"{scratch}?offset={FIRST_PARTITION_OFFSET}"
    shown = subprocess.run(
        ["debugfs", "-R", "cat /boots", partition], capture_output=True, check=True, text=True
    )
    return shown.stdout.strip()
