"""Instant recovery on the practice Hyper-V host from a share: a guest that runs from a VHDX file on
our Samba, over SMB 3, and moves away while it writes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    wait_for,
)
from tests.support.iscsi_clients import says
from tests.support.needs import needs
from tests.support.processes import wait_until_gone

pytestmark = pytest.mark.integration
START = ("--address", "127.0.0.1", "--reserve", "0", "--presentation", "share")
SMB = ("--iscsi-port", "0", "--smb-port")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    needs("smbd", "pdbedit", "smbcontrol")
    with instant_on_hyperv(tmp_path_factory) as made:
        yield made


def smbd_of(daemon_pid: int) -> int:
    """The child of ours, not anybody's."""
    return int(says("pgrep", "-P", str(daemon_pid), "-x", "smbd"))


def assert_no_share_is_left(here: Here) -> None:
    assert_nothing_is_left(here)
    assert here.lab.practice.network.mapped() == []
    assert not (here.home / "shares").exists()
    assert not (here.home / "smb").exists()


@pytest.mark.timeout(600)
def test_a_guest_runs_from_a_share_survives_kills_and_moves_while_it_writes(here: Here) -> None:
    """kill -9 of the daemon, then of smbd: no acknowledged number is lost. Then the VM's storage
    moves, and the guest does not notice."""
    port = "0"
    with serving(here.home, *SERVE, *SMB, port) as (process, document):
        port = str(document["smb"]["port"])
        started = here.instant("start", here.point, *START, "--power-on", "--name", "shared")
        session = started["session_id"]
        assert started["guest"]["heartbeat"] == "beating"
        vm = here.vm("shared")
        assert str(vm.settings.drives[0].path) == f"\\\\127.0.0.1\\holdfast-{session}\\disk-0.vhdx"
        with pytest.raises(HypervError):
            here.lab.take(vm, Level.CRASH)  # there is no place for its files
        here.lab.say(vm, "journal start", "^JOURNAL start")
        wait_for(vm, 10)
        smbd = smbd_of(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with serving(here.home, *SERVE, *SMB, port) as (process, _):
        wait_until_gone(smbd)
        wait_for(vm, acknowledged(vm) + 10)
        os.killpg(smbd_of(process.pid), signal.SIGKILL)
        wait_for(vm, acknowledged(vm) + 10)
        ended = here.instant("finalise", session)
        assert [step["name"] for step in ended["steps"]][-2:] == ["unmount", "withdraw"]
        last = acknowledged(vm)
        wait_for(vm, last + 5)
        here.lab.say(vm, "journal stop", "^JOURNAL stop")
        assert vm.state is VmState.RUNNING
        assert journal(vm)[-1] >= acknowledged(vm)
        assert vm.settings.drives[0].path is not None and not vm.settings.drives[0].path.share
        assert "holdfast" not in vm.settings.notes
        smbd = process.pid
        assert not says_children(smbd)
        vm.turn_off()
        here.lab.practice.host.remove_vm(vm)
    assert_no_share_is_left(here)


def says_children(pid: int) -> list[str]:
    """The names of its children."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name, _, rest = (entry / "stat").read_text().rpartition(")")
        except OSError:
            continue  # ended meanwhile
        if rest.split()[1] == str(pid) and "smbd" in name:
            found.append(name)
    return found


@pytest.mark.timeout(300)
def test_a_discarded_session_leaves_nothing(here: Here) -> None:
    """Neither VM, mapping, share, smbd, mount, account nor file."""
    with serving(here.home, *SERVE, *SMB, "0") as (process, _):
        started = here.instant("start", here.point, *START)
        assert started["phase"] == "registered" and started["presentation"] == "share"
        vm = here.vm(started["vm"])
        assert journal(vm) == []  # the host reads the disk through SMB and VHDX
        smbd = smbd_of(process.pid)
        do_every_step_twice(here, started["session_id"])
        here.instant("discard", started["session_id"])
        wait_until_gone(smbd)
    assert_no_share_is_left(here)
