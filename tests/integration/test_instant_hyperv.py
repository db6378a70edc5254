"""Instant recovery on the practice Hyper-V host: a guest that runs from a VHDX file on an NTFS
volume on an iSCSI LUN, and away.

The host logs in with libiscsi, mounts the volume with ntfs-3g, and opens the VHDX with QEMU. The
guest numbers its writes and says which ones it saw durable. So a lost write shows.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from lab.hyperv_host.vhdx_chain import create_disk
from lab.hyperv_host.virtual_machine import HypervVm
from lab.hyperv_host.vm_settings import OTHER_VENDORS_TEMPLATE, VmState
from tests.support import holdfast_program
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
from tests.support.hyperv_lab import HypervLab

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    with instant_on_hyperv(tmp_path_factory) as made:
        yield made


@pytest.mark.timeout(600)
def test_a_guest_runs_from_the_volume_survives_kills_and_moves_while_it_writes(here: Here) -> None:
    """kill -9 of the daemon, then of tgtd: no acknowledged number is lost. Then the VM's storage
    moves."""
    port = ("--iscsi-port", "0")
    with serving(here.home, *SERVE, *port) as (process, document):
        port = ("--iscsi-port", str(document["iscsi"]["port"]))
        words = ("--address", "127.0.0.1", "--reserve", "0", "--power-on", "--name", "moved")
        started = here.instant("start", here.point, *words)
        session = started["session_id"]
        assert started["guest"]["heartbeat"] == "beating"
        vm = here.vm("moved")
        here.lab.say(vm, "journal start", "^JOURNAL start")
        wait_for(vm, 10)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with serving(here.home, *SERVE, *port) as (process, _):
        wait_for(vm, acknowledged(vm) + 10)
        os.kill(tgtd_of(process.pid), signal.SIGKILL)
        wait_for(vm, acknowledged(vm) + 10)
        ended = here.instant("finalise", session)
        assert [step["name"] for step in ended["steps"]][-2:] == ["unmount", "withdraw"]
        last = acknowledged(vm)
        wait_for(vm, last + 5)
        here.lab.say(vm, "journal stop", "^JOURNAL stop")
        numbers = journal(vm)
        assert numbers[-1] >= acknowledged(vm)
        assert "holdfast" not in vm.settings.notes
        vm.turn_off()
        here.lab.practice.host.remove_vm(vm)
    assert_nothing_is_left(here)


@pytest.mark.timeout(300)
def test_every_step_may_be_done_twice(here: Here) -> None:
    """As after a crash or a lost reply: it looks before it acts, and makes nothing twice."""
    with serving(here.home, *SERVE, "--iscsi-port", "0"):
        started = here.instant("start", here.point, "--address", "127.0.0.1", "--reserve", "0")
        do_every_step_twice(here, started["session_id"])
        here.instant("discard", started["session_id"])
    assert_nothing_is_left(here)


@pytest.mark.timeout(300)
def test_a_discarded_session_leaves_nothing(here: Here) -> None:
    """Neither VM, login, disk nor folder at the host, nor anything in the state folder."""
    with serving(here.home, *SERVE, "--iscsi-port", "0"):
        started = here.instant("start", here.point, "--address", "127.0.0.1", "--reserve", "0")
        assert started["phase"] == "registered"
        vm = here.vm(started["vm"])
        assert journal(vm) == []  # the host reads the disk through NTFS and VHDX
        here.instant("discard", started["session_id"])
    assert_nothing_is_left(here)


@pytest.mark.timeout(600)
def test_a_generation_2_vm_boots_with_secure_boot_moves_and_is_backed_up(here: Here) -> None:
    """UEFI finds the boot disk among two and starts what its template trusts; the moved VM, which
    runs on, is backed up whole and then by what changed."""
    original = here.lab.add_uefi("second", secure_boot=OTHER_VENDORS_TEMPLATE)
    add_disk_before_the_first(here.lab, original)
    holdfast_program.run(here.home, "backup", "vm", "second", "--quiesce", "crash", "--quiet")
    [point] = [
        each["point_id"]
        for each in holdfast_program.run_json(here.home, "point", "list")
        if each["vm"] == "second"
    ]
    with serving(here.home, *SERVE, "--iscsi-port", "0"):
        words = ("--address", "127.0.0.1", "--reserve", "0", "--power-on", "--name", "moved2")
        started = here.instant("start", point, *words)
        vm = here.vm("moved2")
        assert started["guest"]["heartbeat"] == "beating"
        assert vm.settings.generation == 2 and vm.settings.boot_first == "scsi0-1"
        assert vm.settings.secure_boot_template == OTHER_VENDORS_TEMPLATE
        here.instant("finalise", started["session_id"])
        assert vm.state is VmState.RUNNING
        backup = ("backup", "vm", "moved2")
        [full] = holdfast_program.run_json(here.home, *backup)["vms"]
        assert full["consistency"] == "application"
        here.lab.say(vm, "change 1", "CHANGED")
        [after] = holdfast_program.run_json(here.home, *backup)["vms"]
        assert sum(disk["read_bytes"] for disk in after["disks"]) < 32 << 20
        assert {disk["mode"] for disk in after["disks"]} == {"changed"}
        vm.turn_off()

        started = here.instant("start", point, "--address", "127.0.0.1", "--reserve", "0")
        assert here.vm(started["vm"]).settings.secure_boot
        here.instant("discard", started["session_id"])
    for gone in (vm, original):
        here.lab.practice.host.remove_vm(gone)
    assert_nothing_is_left(here)


def add_disk_before_the_first(lab: HypervLab, vm: HypervVm) -> None:
    """The boot disk goes to SCSI 0:1, an empty one is at 0:0."""
    [boot] = vm.settings.drives
    path = vm.settings.folder.joined("Virtual Hard Disks", "data.vhdx")
    create_disk(lab.practice.host.volumes.place(path), 8 << 20, block_bytes=1 << 20)
    moved = replace(boot, location=1)
    empty = replace(vm.settings, drives=(), boot_first=moved.name)
    vm.update(empty.with_drive(replace(boot, path=path)).with_drive(moved))
