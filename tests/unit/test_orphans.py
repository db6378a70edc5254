"""Debris of dead runs goes; everything else stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from appliance.base.ids import RunId
from appliance.sources.intents import Made, OpenIntent
from appliance.sources.vsphere_orphans import remove_orphans as clean_up_source
from appliance.sources.vsphere_transports import SourceTools
from tests.support.guest_scsi import GuestScsi
from tests.support.inventories import a_disk, a_vm
from tests.support.scripted_appliance import PRODUCT_UUID, BackingFile, ScriptedAppliance
from tests.support.scripted_vcenter import ScriptedVcenter, ScriptedVm
from vmware.errors import CancelledError
from vmware.marker import Marker, Purpose
from vmware.orphans import (
    OrphanOutcome,
    OrphanPlan,
    SeenVm,
    Sight,
    look,
    plan_orphans,
    remove_orphans,
)
from vmware.patience import Patience
from vmware.transports.appliance_disks import ApplianceDisks
from vmware.transports.attach_intent import AttachIntent
from vmware.transports.contract import DiskRequest
from vmware.transports.hot_add import HotAdd

FILE = "[ds] web/web.vmdk"
UUID = "6000C29a-b3d1-4a01-9c5f-0123456789ab"
DEAD = Marker(appliance_id="ours", run_id="dead")
LIVE = Marker(appliance_id="ours", run_id="live")
THEIRS = Marker(appliance_id="theirs", run_id="dead")
NOW = Patience(wait=lambda _: None)


class World:
    """A VM with a disk, the appliance, and a run that may die at any moment."""

    def __init__(self, root: Path) -> None:
        self.server = ScriptedVcenter()
        self.vm = ScriptedVm(self.server)
        self.guest = GuestScsi(root, product_uuid=PRODUCT_UUID)
        self.appliance = ScriptedAppliance(self.server, self.guest)
        self.appliance.files[FILE] = BackingFile(content=bytes(4096), uuid=UUID)
        self.disks = ApplianceDisks(device_root=root, patience=NOW)
        self.intents: list[AttachIntent] = []

    def snapshot(self, marker: Marker | None, *, freezes: str = FILE) -> str:
        """A snapshot of the VM that froze a file."""
        moref = self.vm.add_snapshot("x", marker.text if marker else "")
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=freezes, diskMode="persistent"
        )
        disk = vim.vm.device.VirtualDisk(
            key=2000, controllerKey=1000, unitNumber=0, capacityInKB=4, backing=backing
        )
        self.server.objects[moref].values["config.hardware.device"] = [disk]
        return moref

    def hot_add(self, run_id: str = "dead") -> None:
        """A disk is attached, and the process is killed."""

        def record(intent: AttachIntent) -> Any:
            self.intents.append(intent)
            return lambda: self.intents.remove(intent)

        request = DiskRequest(
            session=self.server.session(),
            vm=a_vm(),
            snapshot_moref="snapshot-1",
            disk=a_disk(file_name=FILE, backing_uuid=UUID, capacity_bytes=4096),
        )
        HotAdd(self.disks, run_id=run_id, record=record).open(request)

    def half_made(self, marker: Marker | None = None, **values: Any) -> ScriptedVm:
        """A VM that a restore had begun to make."""
        vm = ScriptedVm(self.server, "vm-5")
        marker = marker or replace(DEAD, purpose=Purpose.RESTORE, subject="5022-ab")
        vm.values |= {
            "name": "web-restored",
            "config.instanceUuid": "5022-AB",
            "config.annotation": marker.text,
            "config.files.vmPathName": "[ds] web-restored/web.vmx",
            "runtime.powerState": "poweredOff",
        } | values
        return vm

    def sight(self) -> Sight:
        return look(self.server.session(), "ours", self.disks)

    def plan(self) -> OrphanPlan:
        return plan_orphans(self.sight(), self.intents, lambda run: run == "live")

    def clean(self) -> tuple[OrphanOutcome, ...]:
        session = self.server.session()
        return remove_orphans(session, self.plan(), "ours", self.disks, patience=NOW)

    def left(self) -> list[str]:
        return [entry.snapshot._GetMoId() for entry in self.vm.snapshots]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_only_snapshots_of_our_dead_runs_go(world: World) -> None:
    """Of another appliance, of a live run, of a person: all stay."""
    kept = [world.snapshot(LIVE), world.snapshot(THEIRS), world.snapshot(None)]
    world.snapshot(DEAD)
    world.snapshot(replace(DEAD, purpose=Purpose.TRACKING))
    outcomes = world.clean()
    assert [outcome.failure for outcome in outcomes] == ["", ""]
    assert world.left() == kept


def test_cleaning_twice_finds_nothing(world: World) -> None:
    """A second look after a success has an empty plan."""
    world.snapshot(DEAD)
    world.hot_add()
    world.clean()
    world.intents.clear()
    assert world.plan() == OrphanPlan(disks=(), snapshots=(), vms=())


def test_a_disk_that_hangs_on_the_appliance_goes_before_its_snapshot(world: World) -> None:
    """The kernel lets go of it first; the VM's files are unlocked then."""
    world.snapshot(DEAD)
    world.hot_add()
    world.clean()
    assert world.guest.let_go == ["sdb"]
    assert (world.appliance.attached, world.left()) == ([], [])
    assert [m for _, m in world.server.calls if m in ("ReconfigVM_Task", "RemoveSnapshot_Task")][
        -2:
    ] == ["ReconfigVM_Task", "RemoveSnapshot_Task"]


def test_a_lost_journal_does_not_keep_a_disk_attached(world: World) -> None:
    """It hangs nonpersistently from a file that our dead snapshot froze: whose else is it?"""
    world.snapshot(DEAD)
    world.hot_add()
    world.intents.clear()
    world.clean()
    assert (world.appliance.attached, world.left()) == ([], [])


def test_a_disk_of_a_live_run_stays(world: World) -> None:
    """With its snapshot."""
    snapshot = world.snapshot(LIVE)
    world.hot_add("live")
    assert world.clean() == ()
    assert (world.appliance.attached, world.left()) == ([FILE], [snapshot])


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Journal:
    """The intents of runs that are dead."""

    open: list[OpenIntent]

    def record(self, kind: Made, run_id: RunId, target: str, name: str, detail: str = "") -> int:
        raise NotImplementedError  # a clean-up makes nothing

    def complete(self, intent: int, made: str) -> None:
        raise NotImplementedError  # as above

    def close(self, intent: int) -> None:
        self.open = [one for one in self.open if one.id != intent]

    def abandoned(self) -> list[OpenIntent]:
        return list(self.open)


def test_a_disk_that_is_still_being_attached_is_waited_for(world: World) -> None:
    """The process was killed after it had asked; vSphere goes on. Struck off at once, the disk
    would come after the clean-up, hang for ever, and keep its VM's files locked."""
    running = world.server.task(kind="VirtualMachine.reconfigure")
    task = world.server.objects[running._GetMoId()]
    waited: list[float] = []
    attach: list[Callable[[], Any]] = []

    def killed(real: Callable[[], Any]) -> Any:
        attach.append(real)
        task.values["info.state"] = "running"
        world.appliance.values["recentTask"] = [running]
        raise Killed

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if task.values["info.state"] == "running":
            attach[0]()
            task.values["info.state"] = "success"

    world.server.hook("ReconfigVM_Task", killed)
    with pytest.raises(Killed):
        world.hot_add()
    journal = Journal(
        [
            OpenIntent(
                id=number,
                kind=Made.HOT_ADDED_DISK,
                run_id=RunId(intent.run_id),
                target=intent.appliance_moref,
                detail=intent.detail,
            )
            for number, intent in enumerate(world.intents)
        ]
    )
    tools = SourceTools(appliance_disks=world.disks, wait=wait)
    session = world.server.session()
    (gone,) = clean_up_source(session, "ours", tools, journal, frozenset)
    assert (gone.what, gone.failure) == (f"attached disk {FILE}", "")
    assert waited
    assert world.appliance.attached == []
    assert journal.open == []


def test_the_appliances_own_disk_is_never_detached(world: World) -> None:
    """Not even by an intent that names its place with another file."""
    world.snapshot(DEAD)
    world.hot_add()
    own = replace(world.intents[0], slot=replace(world.intents[0].slot, unit_number=0))
    world.intents[:] = [own]
    world.clean()
    assert world.appliance.attached == []  # found as unrecorded; the own disk is still there:
    assert len(world.disks.attached(world.server.session(), "vm-9")) == 1


def test_a_snapshot_whose_disk_cannot_be_detached_waits(world: World) -> None:
    """Removed now, its redo log would stay in the chain."""
    snapshot = world.snapshot(DEAD)
    world.hot_add()
    world.server.fail("ReconfigVM_Task", *[vim.fault.NoPermission()] * 10)
    disk, frozen = world.clean()
    assert disk.failure
    assert "hangs on the appliance" in frozen.failure
    assert world.left() == [snapshot]


def test_one_failure_does_not_stop_the_rest(world: World) -> None:
    """Every thing has an outcome of its own."""
    first, _ = world.snapshot(DEAD), world.snapshot(DEAD)
    world.server.fail("RemoveSnapshot_Task", vim.fault.NoPermission())
    failures = [bool(outcome.failure) for outcome in world.clean()]
    assert failures == [True, False]
    assert world.left() == [first]


def test_what_vanished_meanwhile_counts_as_removed(world: World) -> None:
    """A plan may be old."""
    moref = world.snapshot(DEAD)
    plan = world.plan()
    world.vm.drop_snapshot(moref)
    (outcome,) = remove_orphans(world.server.session(), plan, "ours", world.disks, patience=NOW)
    assert outcome.failure == ""


def test_a_cancel_stops_between_two_things(world: World) -> None:
    """What is left is found again."""
    world.snapshot(DEAD)
    patience = Patience(cancelled=lambda: True)
    session = world.server.session()
    with pytest.raises(CancelledError):
        remove_orphans(session, world.plan(), "ours", world.disks, patience=patience)


def test_liveness_is_asked_once_per_run(world: World) -> None:
    """And only of runs that left something."""
    world.snapshot(DEAD)
    world.snapshot(DEAD)
    asked: list[str] = []

    def is_live(run_id: str) -> bool:
        asked.append(run_id)
        return True

    plan_orphans(world.sight(), [], is_live)
    assert asked == ["dead"]


class TestHalfMadeVms:
    def test_one_of_a_dead_restore_is_deleted(self, world: World) -> None:
        """With its files, which nobody else has."""
        vm = world.half_made()
        assert [outcome.failure for outcome in world.clean()] == [""]
        assert vm.moref not in world.server.objects

    @pytest.mark.parametrize(
        "values",
        [
            {"config.instanceUuid": "5022-cd"},
            {"config.annotation": DEAD.text},
            {"config.annotation": "made by hand"},
            {"config.annotation": replace(DEAD, purpose=Purpose.RESTORE).text},
            {"config.annotation": replace(THEIRS, purpose=Purpose.RESTORE, subject="5022-ab").text},
            {"config.annotation": replace(LIVE, purpose=Purpose.RESTORE, subject="5022-ab").text},
        ],
    )
    def test_any_other_vm_is_not_even_planned(self, world: World, values: dict[str, Any]) -> None:
        """A clone, a finished one, another appliance's, a live restore's."""
        world.half_made(**values)
        assert world.plan().vms == ()

    @pytest.mark.parametrize(
        "values",
        [
            {"runtime.powerState": "poweredOn"},
            {"config.template": True},
            {"config.annotation": "finished meanwhile"},
            {"config.files.vmPathName": "[ds] elsewhere/web.vmx"},
        ],
    )
    def test_one_that_may_be_in_use_is_left_and_told(
        self, world: World, values: dict[str, Any]
    ) -> None:
        """It runs, became a template or was finished; or its disks lie in another's folder."""
        vm = world.half_made()
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="[ds] web-restored/web.vmdk", diskMode="persistent"
        )
        vm.values["config.hardware.device"] = [
            vim.vm.device.VirtualDisk(
                key=2000, controllerKey=1000, unitNumber=0, capacityInKB=4, backing=backing
            )
        ]
        plan = world.plan()
        vm.values |= values
        session = world.server.session()
        (outcome,) = remove_orphans(session, plan, "ours", world.disks, patience=NOW)
        assert isinstance(outcome.thing, SeenVm)
        assert outcome.failure
        assert vm.moref in world.server.objects
