"""Which address of ours the hosts of an instant recovery are told to mount from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.base.clock import SystemClock
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.exports.nfs import NfsServer
from appliance.jobs.instant_recovery import StartOptions, start
from appliance.jobs.recovery_room import RecoveryRoom
from appliance.targets.contract import Keep, WantedVmPlace
from appliance.targets.recovery import Breadth, RecoveryPlan, RecoveryRequest, RecoveryTarget

KEY = bytes(32)


class Planned(Exception):
    """The plan was asked for; nothing after that is of interest."""


class AskedTarget:
    def plan(self, request: RecoveryRequest) -> RecoveryPlan:
        raise Planned(request.address)


def told(folder: Path, *, bound_to: str, asked_for: str) -> str:
    """The address that a target plans with."""
    room = SimpleNamespace(
        server=NfsServer(key=KEY, host=bound_to), folder=folder, clock=SystemClock()
    )
    request = RecoveryRequest(
        session_id="0a1b2c3d",
        name="",
        hardware={},
        disks=(),
        place=WantedVmPlace(),
        networks=(),
        isolated=frozenset(),
        isolate_all=False,
        unconnected=frozenset(),
        mac=Keep.AUTO,
        identity=Keep.AUTO,
        address=asked_for,
        breadth=Breadth.HOST,
    )
    with pytest.raises(Planned) as planned:
        start(
            cast(RecoveryRoom, room),
            cast(RecoveryTarget, AskedTarget()),
            cast(Any, None),
            request,
            StartOptions(power_on=False),
            RunContext(CancelToken(), Progress()),
        )
    return str(planned.value)


@pytest.mark.parametrize("bound_to", ["192.0.2.10", "2001:db8::10"])
def test_a_server_that_is_bound_to_one_address_is_reached_there(
    tmp_path: Path, bound_to: str
) -> None:
    """On a machine with several, another one would be refused by it."""
    assert told(tmp_path, bound_to=bound_to, asked_for="") == bound_to


@pytest.mark.parametrize("bound_to", ["0.0.0.0", "::", "", "backup.example"])
def test_a_server_that_listens_on_all_leaves_the_choice_to_the_target(
    tmp_path: Path, bound_to: str
) -> None:
    """The target takes the one on the way to its host; a name may stand for several too."""
    assert told(tmp_path, bound_to=bound_to, asked_for="") == ""


def test_an_address_that_is_asked_for_is_taken(tmp_path: Path) -> None:
    """An administrator may know of a translation in between."""
    assert told(tmp_path, bound_to="192.0.2.10", asked_for="198.51.100.1") == "198.51.100.1"
