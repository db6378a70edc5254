"""Recovery points become VMs again on the practice Hyper-V host: new ones, and their own."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from appliance.base.errors import ApplianceError, CancelledError
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.catalog.runs import RunOutcome
from appliance.jobs.rollback_checks import (
    DisksDifferError,
    HalfRolledBackError,
    VmHasSnapshotsError,
)
from appliance.jobs.vm_restore import VmRestoreOptions
from appliance.jobs.vm_rollback import RollbackMode, RollbackOptions
from appliance.targets.contract import NoSuchPlaceError, WantedVmPlace
from appliance.targets.hyperv_plan import NameTakenError
from lab.faults import FaultName
from lab.hyperv_host.checkpoints import create_checkpoint, remove_checkpoint
from lab.hyperv_host.jobs import Job
from lab.hyperv_host.virtual_machine import HypervVm
from lab.hyperv_host.vm_settings import VmState
from lab.hyperv_host.windows_path import WindowsPath
from tests.support.api_server import api_serving
from tests.support.hyperv_backups import (
    HOST,
    HypervAppliance,
    disk_digest,
    hyperv_appliance,
    write_disk,
)
from tests.support.hyperv_lab import HypervLab, hyperv_lab
from tests.support.hyperv_restoring import (
    HypervRestoring,
    hyperv_restoring,
    left_overs,
    named,
    remove,
)
from tests.support.killed_restore import kill_restore

pytestmark = pytest.mark.integration

MIB = 1 << 20
BOOTED_S = 280.0  # a guest without KVM on a busy machine


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HypervLab]:
    with hyperv_lab(tmp_path_factory.mktemp("volumes")) as started:
        yield started


@pytest.fixture(scope="module")
def vm(lab: HypervLab) -> HypervVm:
    """Off: what its guest would write is written by the test, at once."""
    return lab.add_tiny("web", start=False)


@pytest.fixture(scope="module")
def appliance(lab: HypervLab, vm: HypervVm) -> Iterator[HypervAppliance]:
    with hyperv_appliance(lab) as made:
        write_disk(vm, 96 * MIB, random.Random(3).randbytes(3 * MIB))
        [result] = made.back_up("web")
        assert result.backup is not None, result.error
        yield made


@pytest.fixture
def here(appliance: HypervAppliance) -> Iterator[HypervRestoring]:
    appliance.lab.practice.faults.disarm()
    with hyperv_restoring(appliance) as opened:
        yield opened
    appliance.lab.practice.faults.disarm()


def test_a_new_vm_has_the_points_disk_and_configuration(
    here: HypervRestoring, lab: HypervLab, vm: HypervVm
) -> None:
    """Byte by byte, and nothing but the VM is new: it carries no mark, nothing is shared."""
    before = left_overs(here)
    result = here.restore(here.point(), name="again")
    new = named(lab, "again")
    assert (result.transport, result.vm, result.key) == ("smb", "again", new.settings.vm_id)
    assert disk_digest(new) == here.digest() == disk_digest(vm)
    old = vm.settings
    assert (new.settings.generation, new.settings.processors, new.settings.memory) == (
        old.generation, old.processors, old.memory
    )  # fmt: skip
    assert [drive.slot for drive in new.settings.drives] == [drive.slot for drive in old.drives]
    assert [one.switch for one in new.settings.adapters] == [one.switch for one in old.adapters]
    assert {one.mac for one in new.settings.adapters}.isdisjoint({one.mac for one in old.adapters})
    assert new.settings.notes == old.notes
    assert (old.start_action, new.settings.start_action) == (3, 2), "a copy starts when told to"
    assert new.settings.identity.bios_guid != old.identity.bios_guid, "the original is there"
    assert result.disks[0].written_bytes < 64 * MIB < result.disks[0].size_bytes
    remove(lab, new.settings.name)
    assert left_overs(here) == before


@pytest.mark.timeout(600)
def test_an_operator_restores_a_vm_which_boots_and_rolls_it_back_while_it_runs(
    appliance: HypervAppliance, here: HypervRestoring, lab: HypervLab
) -> None:
    """The guest comes up from the disk that was written; in place it is shut down first, with
    consent, and started again."""
    before = left_overs(here)
    shown = appliance.holdfast(
        *("restore", "vm", "latest:web", "--host", HOST, "--name", "booted", "--power-on"),
        *("--folder", "E:\\Restored", "--network", "Production=Isolated"),
    )
    assert (shown["vm"], shown["transport"], shown["powered_on"]) == ("booted", "smb", True)
    new = named(lab, "booted")
    assert new.settings.vm_id == shown["id"]
    assert str(new.settings.folder) == "E:\\Restored\\booted"
    assert [one.switch for one in new.settings.adapters] == ["Isolated"]
    end_s = time.monotonic() + BOOTED_S
    while new.heartbeat != 5:
        assert new.state is VmState.RUNNING and time.monotonic() < end_s, "it does not come up"
        time.sleep(0.1)
    appliance.holdfast("backup", "vm", "booted", "--quiesce", "crash")
    lab.say(new, "change 2", "CHANGED")
    in_place = ("restore", "vm", "latest:booted", "--host", HOST, "--in-place")
    refused = appliance.holdfast(*in_place, expect=1)
    assert refused["error"]["code"] == "restore.vm-runs" and new.state is VmState.RUNNING
    rolled = appliance.holdfast(*in_place, "--power-off", "--power-on")
    assert (rolled["verified"], rolled["powered_on"]) == (True, True)
    assert 0 < rolled["disks"][0]["written_bytes"] < 32 * MIB
    assert new.state is VmState.RUNNING
    new.turn_off()
    remove(lab, new.settings.name)
    lab.practice.host.volumes.place(WindowsPath("E:\\Restored")).rmdir()
    assert left_overs(here) == before


def test_a_lost_vm_comes_back_as_itself(here: HypervRestoring, lab: HypervLab) -> None:
    """With its identity and addresses, its disk id and notes, in the host's own folder."""
    lost = lab.add_tiny("lost", start=False)
    adapter = replace(lost.settings.adapters[0], mac="02AABBCCDD01", dynamic_mac=False)
    lost.update(
        replace(
            lost.settings, notes="of the sales people", adapters=(adapter,), start_action=4,
            start_delay_s=30, stop_action=2, checkpoint_type=4, has_dvd=False,
            drives=(replace(lost.settings.drives[0], controller_number=1),),
        )
    )  # fmt: skip
    [result] = here.appliance.back_up("lost")
    assert result.backup is not None, result.error
    old = lost.settings
    remove(lab, "lost")
    here.restore(here.point("lost"))
    new = named(lab, "lost").settings
    assert (new.identity, new.notes, new.folder) == (old.identity, old.notes, old.folder)
    assert [one.mac for one in new.adapters] == [one.mac for one in old.adapters]
    assert [drive.slot for drive in new.drives] == [drive.slot for drive in old.drives]
    assert (new.start_action, new.start_delay_s, new.stop_action, new.checkpoint_type) == (
        4, 30, 2, 4
    )  # fmt: skip
    remove(lab, "lost")


def test_a_setting_that_the_host_refuses_is_said(here: HypervRestoring, lab: HypervLab) -> None:
    """The VM is restored all the same."""
    odd = lab.add_tiny("odd", start=False)
    odd.update(replace(odd.settings, stop_action=9))
    [result] = here.appliance.back_up("odd")
    assert result.backup is not None, result.error
    made = here.restore(here.point("odd"), name="even")
    assert [reason.code for reason in made.reasons] == ["restore.settings-not-set"]
    remove(lab, "odd")
    remove(lab, "even")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"networks": (("Production", "Nowhere"),)}, NoSuchPlaceError, "no network 'Nowhere'"),
        ({"networks": (("Elsewhere", "Isolated"),)}, NoSuchPlaceError, "no network 'Elsewhere'"),
        ({"name": "web"}, NameTakenError, "'web'"),
        ({"name": "a/b"}, ApplianceError, "a VM's name"),
        ({"place": WantedVmPlace(datastore="ds1")}, NoSuchPlaceError, "--folder"),
        ({"place": WantedVmPlace(folder="D:\\..\\x")}, NoSuchPlaceError, "plain path"),
        ({"place": WantedVmPlace(folder="Q:\\VMs")}, NoSuchPlaceError, "no volume"),
        ({"transports": ("hot-add",)}, ApplianceError, "smb"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_there_is_refused_before_anything_is_made(
    here: HypervRestoring, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """By name, and with what there is."""
    before = left_overs(here)
    with pytest.raises(error, match=message):
        here.restore(here.point(), **{"name": "nowhere", **options})
    assert left_overs(here) == before


def test_an_adapter_is_left_unconnected_and_other_files_are_not_touched(
    here: HypervRestoring, lab: HypervLab
) -> None:
    """A file of the wanted name is somebody's: the new one gets a number."""
    folder = lab.practice.host.volumes.place(WindowsPath("D:\\Hyper-V\\alone\\Virtual Hard Disks"))
    folder.mkdir(parents=True)
    (folder / "alone-0.vhdx").write_bytes(b"somebody's")
    here.restore(here.point(), name="alone", unconnected=frozenset({"Production"}))
    new = named(lab, "alone")
    assert [one.switch for one in new.settings.adapters] == [""]
    assert [str(drive.path)[-14:] for drive in new.settings.drives] == ["alone-0-2.vhdx"]
    assert (folder / "alone-0.vhdx").read_bytes() == b"somebody's"
    (folder / "alone-0.vhdx").unlink()
    remove(lab, new.settings.name)


def test_a_host_without_admin_shares_shares_for_as_long_as_it_is_written_to(
    here: HypervRestoring, lab: HypervLab
) -> None:
    """In both kinds of restore; afterwards the share is gone."""
    before = left_overs(here)
    here.appliance.lacking["admin_shares"] = False
    try:
        with hyperv_restoring(here.appliance) as bare:
            bare.restore(bare.point(), name="shared")
            assert disk_digest(named(lab, "shared")) == bare.digest()
            remove(lab, "shared")
            assert left_overs(here) == before
            write_disk(named(lab, "web"), 8 * MIB, b"broken::" * 1024)
            bare.roll_back(bare.point())
    finally:
        here.appliance.lacking.clear()
    assert disk_digest(named(lab, "web")) == here.digest()
    assert left_overs(here) == before


# What ends it


class ActingProgress(Progress):
    """Does something as soon as something was written."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self._act = act

    def advance(self, done_bytes: int) -> None:
        super().advance(done_bytes)
        self._act()


def test_a_cancelled_restore_leaves_nothing(here: HypervRestoring) -> None:
    """No VM, no file, no folder, no list on the host, without any clean-up."""
    before, cancel = left_overs(here), CancelToken()
    with pytest.raises(CancelledError):
        here.restore(here.point(), RunContext(cancel, ActingProgress(cancel.cancel)), name="never")
    assert left_overs(here) == before


@pytest.mark.parametrize(
    "script",
    ["make_disk_files", "new_vm", "attach_disk", "apply_settings", "set_notes", "list_switches"],
)
def test_a_script_that_fails_leaves_nothing(
    here: HypervRestoring, lab: HypervLab, script: str
) -> None:
    """At whichever step it is; the next restore works."""
    before = left_overs(here)
    lab.practice.faults.arm(FaultName.SCRIPT_FAILURE, 1, method=script)
    with pytest.raises(ApplianceError):
        here.restore(here.point(), name="failed")
    assert lab.practice.faults.fired(FaultName.SCRIPT_FAILURE)
    assert left_overs(here) == before


@pytest.mark.parametrize("script", ["remove_vm", "remove_disk_files"])
def test_what_could_not_be_removed_is_said_and_removed_later(
    here: HypervRestoring, lab: HypervLab, script: str
) -> None:
    """By the next clean-up; the error's notes name it."""
    before, cancel = left_overs(here), CancelToken()
    lab.practice.faults.arm(FaultName.SCRIPT_FAILURE, 1, method=script)
    with pytest.raises(CancelledError) as ended:
        here.restore(here.point(), RunContext(cancel, ActingProgress(cancel.cancel)), name="never")
    assert "restore.vm-not-removed" in ended.value.__notes__[0]
    assert left_overs(here) != before
    here.clean_up()
    assert left_overs(here) == before


def test_the_files_of_a_finished_vm_stay_although_it_writes_to_others_now(
    here: HypervRestoring, lab: HypervLab
) -> None:
    """Its host did not hear that it is finished; a checkpoint has made the files parents."""
    before = left_overs(here)
    lab.practice.faults.arm(FaultName.SCRIPT_FAILURE, 1, method="remove_disk_files")
    here.restore(here.point(), name="kept")
    vm = named(lab, "kept")
    digest = disk_digest(vm)
    checkpoint = create_checkpoint(vm, recovery=False, consistency=2, job=Job("", ""))
    here.clean_up()
    remove_checkpoint(vm, checkpoint)
    assert disk_digest(vm) == digest
    remove(lab, "kept")
    assert left_overs(here) == before


def test_a_vm_that_is_not_started_stays_with_a_reason(
    here: HypervRestoring, lab: HypervLab
) -> None:
    """The restore is done; starting it is the operator's."""
    lab.practice.faults.arm(FaultName.POWER_ON_FAILURE, 1)
    result = here.restore(here.point(), name="still", power_on=True)
    assert not result.powered_on
    assert [reason.code for reason in result.reasons] == ["restore.not-started"]
    remove(lab, "still")


@pytest.mark.parametrize("where", ["begun", "written"])
def test_a_killed_restore_is_cleared_away_by_the_next_run(
    here: HypervRestoring, appliance: HypervAppliance, where: str
) -> None:
    """Its VM, its files and their folders."""
    before = left_overs(here)
    kill_restore(appliance.home, "-", here.point().point_id, "new", "smb", where)
    left = left_overs(here)
    assert "killed" in left["vms"] and left["lists"] and left["intents"]
    here.clean_up()
    assert left_overs(here) == before


def test_markers_alone_are_enough_to_clear_away(
    here: HypervRestoring, appliance: HypervAppliance
) -> None:
    """The catalog's journal was lost; the host itself knows what is ours."""
    before = left_overs(here)
    kill_restore(appliance.home, "-", here.point().point_id, "new", "smb", "written")
    for intent in left_overs(here)["intents"]:
        here.catalog.intents.close(intent.id)
    here.clean_up()
    assert left_overs(here) == before


# In place


def test_a_vm_is_rolled_back_and_only_what_changed_is_written(
    here: HypervRestoring, lab: HypervLab, vm: HypervVm
) -> None:
    """What is in the file already, what is new in it, what was made zeros; and it is compared."""
    [result] = here.appliance.back_up("web")
    assert result.backup is not None, result.error
    point = here.point()
    write_disk(vm, 96 * MIB, bytes(MIB))
    write_disk(vm, 200 * MIB, b"ransom::" * 8192)
    rolled = here.roll_back(point)
    assert rolled.verified and rolled.disks[0].mode is RollbackMode.CHANGED
    assert MIB <= rolled.disks[0].written_bytes < 8 * MIB
    assert disk_digest(vm) == here.digest(point)
    assert [len(disk.paths) for disk in opened(vm)] == [1]
    [after] = here.appliance.back_up("web")
    assert after.backup is not None
    assert after.backup.disks[0].mode != "changed", "no change list knows of our writes"
    assert here.appliance.stored("web") == here.digest(point)


def opened(vm: HypervVm) -> list[Any]:
    with vm.opened_disks() as disks:
        return list(disks.values())


def test_an_older_point_is_reached_by_comparing(
    here: HypervRestoring, lab: HypervLab, vm: HypervVm
) -> None:
    """Its reference point is gone, so the whole disk is read; only what differs is written."""
    older = here.point()
    write_disk(vm, 120 * MIB, random.Random(8).randbytes(MIB))
    [result] = here.appliance.back_up("web")
    assert result.backup is not None, result.error
    write_disk(vm, 130 * MIB, random.Random(9).randbytes(MIB))
    rolled = here.roll_back(older)
    assert rolled.disks[0].mode is RollbackMode.COMPARED
    assert rolled.disks[0].written_bytes < 16 * MIB
    assert disk_digest(vm) == here.digest(older)


def test_the_configuration_comes_back_too(
    here: HypervRestoring, lab: HypervLab, vm: HypervVm
) -> None:
    """Processors, memory, switches, if that is asked for."""
    old = vm.settings
    memory = replace(old.memory, startup_bytes=512 * MIB, maximum_bytes=512 * MIB)
    adapters = tuple(replace(one, switch="Isolated") for one in old.adapters)
    vm.update(replace(old, processors=3, memory=memory, adapters=adapters))
    write_disk(vm, 0, b"x" * 512)
    here.roll_back(here.point())
    assert vm.settings.processors == 3
    here.roll_back(here.point(), configuration=True)
    assert (vm.settings.processors, vm.settings.memory) == (old.processors, old.memory)
    assert vm.settings.adapters == old.adapters
    here.roll_back(here.point(), configuration=True, networks=(("Production", "Isolated"),))
    assert [one.switch for one in vm.settings.adapters] == ["Isolated"]
    vm.update(old)


def test_what_stands_against_it_is_found_before_anything_is_written(
    here: HypervRestoring, lab: HypervLab, vm: HypervVm
) -> None:
    """A checkpoint of the user, and another disk in the place."""
    before = disk_digest(vm)
    create_checkpoint(vm, recovery=False, consistency=2, job=Job("", ""))
    with pytest.raises(VmHasSnapshotsError):
        here.roll_back(here.point())
    remove_checkpoint(vm, vm.checkpoints[-1])
    old, drive = vm.settings, vm.settings.drives[0]
    vm.update(replace(old, drives=(replace(drive, location=1),)))
    with pytest.raises(DisksDifferError):
        here.roll_back(here.point())
    vm.update(old)
    assert disk_digest(vm) == before


def test_a_killed_roll_back_is_ended_by_the_same_command(
    here: HypervRestoring, appliance: HypervAppliance, vm: HypervVm
) -> None:
    """The areas are known and written again, also those that a change list would not name."""
    before, point = left_overs(here), here.point()
    write_disk(vm, 40 * MIB, random.Random(11).randbytes(6 * MIB))
    kill_restore(appliance.home, "-", point.point_id, "in-place", "smb", "written")
    here.clean_up()
    assert left_overs(here) == before
    journals = appliance.home / "rollbacks"
    assert list(journals.iterdir()) != []
    here.roll_back(point)
    assert disk_digest(vm) == here.digest(point)
    assert list(journals.iterdir()) == []


def test_a_roll_back_that_breaks_says_so_and_leaves_the_vm_off(
    here: HypervRestoring, vm: HypervVm
) -> None:
    """Cancelled while it writes; the same command ends the work."""
    point, cancel = here.point(), CancelToken()
    write_disk(vm, 48 * MIB, random.Random(12).randbytes(9 * MIB))

    def phase(name: str, progress: Progress) -> None:
        if name.startswith("write"):
            cancel.cancel()

    with pytest.raises(HalfRolledBackError):
        here.roll_back(point, RunContext(cancel, Progress()), phase_begins=phase)
    assert vm.state is VmState.OFF
    here.roll_back(point)
    assert disk_digest(vm) == here.digest(point)


def test_the_daemon_restores_and_rolls_back_too(here: HypervRestoring, lab: HypervLab) -> None:
    """As operations, which API and pages ask for; nothing there depends on the kind of host."""
    home, point_id = here.appliance.home, here.point().point_id
    with api_serving(home) as (services, _):
        operations = services.recover.operations
        options = VmRestoreOptions(name="by-daemon")
        restored = services.recover.restore(point_id, HOST, options)
        rolled = services.recover.roll_back(point_id, HOST, RollbackOptions())
        end_s = time.monotonic() + BOOTED_S
        while operations.live(restored) or operations.live(rolled):
            assert time.monotonic() < end_s
            time.sleep(0.05)
        for run_id in (restored, rolled):
            ended = operations.get(run_id)  # a roll-back may warn that it had to read everything
            assert ended.outcome in (RunOutcome.SUCCESS, RunOutcome.WARNING), ended.error_code
    assert disk_digest(named(lab, "by-daemon")) == here.digest()
    remove(lab, "by-daemon")
