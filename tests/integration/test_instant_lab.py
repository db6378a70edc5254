"""Instant recovery in the practice vCenter: from a recovery point to a guest that runs, and away.

The guest numbers its writes and says which ones it saw durable. So a lost write shows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.service.daemon_client import DaemonClient
from tests.support.instant_lab import InstantLab, RunningGuest, instant_lab, journal_of
from tests.support.lab_nfs import needs_nfs_datastores

pytestmark = pytest.mark.integration
KILLS = 4


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


@pytest.mark.timeout(600)
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
    second = served.start("--name", "second")
    assert (second["phase"], second["guest"]) == ("registered", None)
    assert served.machine("first").engine.config.nics[0].network == first["datastore"]
    for session in (first, second):
        served.command("discard", session["session_id"])
    assert served.traces() == before
    assert DaemonClient(served.lab.home).sessions() == []
