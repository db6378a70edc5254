"""Instant recovery on the practice Hyper-V host from whole iSCSI disks: a guest whose disk is the
LUN, as a pass-through disk, and its way to a VHDX file of the host.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.exports.datastore.session import Presentation
from appliance.exports.vhdx_volume import ntfs_tools
from hyperv.checkpoints import Level
from hyperv.errors import HypervError
from lab.hyperv_host.vm_settings import VmState
from tests.support.holdfast_program import serving
from tests.support.hyperv_instant import (
    SERVE,
    Here,
    acknowledged,
    assert_nothing_is_left,
    do_every_step_twice,
    instant_on_hyperv,
    journal,
    tgtd_of,
    wait_for,
)

pytestmark = pytest.mark.integration
START = ("--address", "127.0.0.1", "--reserve", "0", "--presentation", "pass-through")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    with instant_on_hyperv(tmp_path_factory) as made:
        yield made


@pytest.mark.timeout(600)
def test_a_guest_runs_from_a_whole_disk_survives_kills_and_is_copied_to_a_file(here: Here) -> None:
    """kill -9 of the daemon, then of tgtd: no acknowledged number is lost. A move while it runs is
    refused with the way out; with that the VM starts again from the host's own file."""
    port = ("--iscsi-port", "0")
    with serving(here.home, *SERVE, *port) as (process, document):
        port = ("--iscsi-port", str(document["iscsi"]["port"]))
        started = here.instant("start", here.point, *START, "--power-on", "--name", "whole")
        session = started["session_id"]
        assert started["guest"]["heartbeat"] == "beating"
        assert started["presentation"] == "pass-through"
        vm = here.vm("whole")
        (drive,) = vm.settings.drives
        assert drive.path is None and drive.disk_number is not None
        with pytest.raises(HypervError, match="pass-through"):
            here.lab.take(vm, Level.CRASH)
        here.lab.say(vm, "journal start", "^JOURNAL start")
        wait_for(vm, 10)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with serving(here.home, *SERVE, *port) as (process, _):
        wait_for(vm, acknowledged(vm) + 10)
        os.kill(tgtd_of(process.pid), signal.SIGKILL)
        wait_for(vm, acknowledged(vm) + 10)
        refused = here.refused("finalise", session)
        assert "instant.downtime-needed" in refused and "--allow-downtime" in refused
        wait_for(vm, acknowledged(vm) + 2)
        here.lab.say(vm, "journal stop", "^JOURNAL stop")
        last = acknowledged(vm)
        ended = here.instant("finalise", session, "--allow-downtime", "--datastore", "E:\\kept")
        assert [step["name"] for step in ended["steps"]][-2:] == ["unmount", "withdraw"]
        assert vm.state is VmState.RUNNING
        here.lab.wait_ready(vm)
        vm.turn_off()
        assert journal(vm)[-1] >= last
        assert str(vm.settings.drives[0].path).startswith("E:\\kept\\Virtual Hard Disks\\")
        assert "holdfast" not in vm.settings.notes
        here.lab.practice.host.remove_vm(vm)
    assert_nothing_is_left(here)


@pytest.mark.timeout(300)
def test_a_discarded_session_leaves_nothing(here: Here) -> None:
    """Neither VM nor its folder, login nor disk at the host, nor anything in the state folder."""
    with serving(here.home, *SERVE, "--iscsi-port", "0"):
        started = here.instant("start", here.point, *START)
        assert started["phase"] == "registered"
        place = here.lab.practice.host.volumes.place(here.vm(started["vm"]).settings.folder)
        assert place.is_dir()
        do_every_step_twice(here, started["session_id"])
        here.instant("discard", started["session_id"])
        assert not place.exists()
        assert not here.lab.practice.iscsi.connected(started["session_id"])
    assert_nothing_is_left(here)


@pytest.mark.timeout(300)
def test_without_the_programs_for_a_volume_a_vm_gets_whole_disks(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The fall-back has its reason and what to do about it."""
    with serving(here.home, *SERVE, "--iscsi-port", "0"):
        assert here.plan().presentation is Presentation.ISCSI
        monkeypatch.setattr(ntfs_tools, "_PATH", str(tmp_path))
        plan = here.plan()
    assert plan.presentation is Presentation.PASS_THROUGH
    (reason,) = [each for each in plan.reasons if each.code == "instant.no-volume"]
    assert "ntfs-3g" in reason.next_step
