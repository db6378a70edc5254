"""Snapshots and change lists of a guest that runs in the practice vCenter, with its faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyVmomi import vim

from lab.faults import FaultName
from lab.guests import GuestKind, build
from lab.vcenter.virtual_machine_engine import EngineMachine
from lab.vcenter.virtual_machine_setup import add_appliance, add_guest
from tests.support.lab_machines import Practice, done, practice
from tests.support.needs import needs
from vmware.change_tracking import Tracking, enable_tracking, reset_tracking
from vmware.changed_blocks import (
    Baseline,
    ChangedAreas,
    FullRead,
    allocated_areas,
    baseline_of,
    changed_areas,
)
from vmware.consolidation import Consolidation
from vmware.disks import DiskInfo, disks_of
from vmware.errors import SnapshotError
from vmware.inventory import VmInfo, find_vms
from vmware.marker import Marker
from vmware.patience import Patience
from vmware.prechecks import check_vm
from vmware.properties import fetch_one
from vmware.quiesce import Consistency, Ladder, Rung
from vmware.session import Endpoint, Session
from vmware.snapshot_tree import list_snapshots
from vmware.snapshots import Removal, TakenSnapshot, create_snapshot, remove_snapshot
from vmware.transports.appliance_disks import ApplianceDisks
from vmware.transports.contract import DiskRequest
from vmware.transports.hot_add import HotAdd

pytestmark = pytest.mark.integration

MARKER = Marker(appliance_id="ours", run_id="run-1")
BLOCK = 65536


def brief(seconds: float) -> None:
    time.sleep(min(seconds, 0.05))


NOW = Patience(wait=brief)


@dataclass
class World:
    lab: Practice
    machine: EngineMachine
    session: Session
    root: Path

    @property
    def vm(self) -> VmInfo:
        (found,) = find_vms(self.session, ["guest"])
        return found

    def change(self, mebibytes: int) -> None:
        """The guest writes new files and syncs."""
        qemu = self.machine.engine.machine
        assert qemu is not None
        mark = qemu.console.mark
        qemu.send_line(f"change {mebibytes}")
        assert qemu.console.wait_line("CHANGED", since=mark, timeout_s=60)

    def take(self, ladder: Ladder | None = None) -> TakenSnapshot:
        return create_snapshot(self.session, self.vm.moref, MARKER, ladder=ladder, patience=NOW)

    def remove(self, taken: TakenSnapshot) -> Consolidation:
        outcome = remove_snapshot(
            self.session, self.vm.moref, taken.moref, appliance_id="ours", patience=NOW
        )
        assert outcome.removal is Removal.REMOVED
        return outcome.consolidation

    def disk(self, taken: TakenSnapshot) -> DiskInfo:
        snapshot = self.session.object(vim.vm.Snapshot, taken.moref)
        path = "config.hardware.device"
        read = fetch_one(self.session, "read the snapshot", snapshot, (path,)).values
        return disks_of(read[path])[0]

    def content(self, taken: TakenSnapshot) -> bytes:
        """The frozen disk, through hot-add."""
        disks = ApplianceDisks(device_root=self.root, patience=NOW)
        request = DiskRequest(
            session=self.session, vm=self.vm, snapshot_moref=taken.moref, disk=self.disk(taken)
        )
        reader = HotAdd(disks, run_id="run-1").open(request)
        try:
            return reader.read_at(0, reader.size_bytes)
        finally:
            reader.close()

    def areas(self, taken: TakenSnapshot, base: Baseline) -> ChangedAreas | FullRead:
        return changed_areas(
            self.session, self.vm.moref, taken.moref, self.disk(taken), base, patience=NOW
        )

    def codes(self, taken: TakenSnapshot) -> list[str]:
        return [finding.code for finding in taken.findings]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    needs("qemu-system-x86_64", "qemu-img", "qemu-storage-daemon", "losetup")
    root = tmp_path_factory.mktemp("appliance") / "root"
    with practice("ds1", changed_areas_max=5) as running:
        machine = add_guest(running.inventory, "guest", build(GuestKind.TINY))
        add_appliance(running.inventory, "appliance", root)
        done(running.machine("guest").PowerOnVM_Task())
        assert machine.engine.machine is not None
        console = machine.engine.machine.console
        assert console.wait_line("HOLDFAST-READY", since=0, timeout_s=120)
        vcenter = running.vcenter
        endpoint = Endpoint(
            address=vcenter.address,
            port=vcenter.port,
            user=vcenter.user,
            fingerprint_sha256=vcenter.fingerprint,
        )
        with Session.connect(endpoint, lambda: vcenter.password) as session:
            yield World(running, machine, session, root)


@pytest.fixture
def world(lab: World) -> Iterator[World]:
    yield lab
    lab.lab.faults.disarm()
    assert list_snapshots(lab.session, lab.vm.moref) == ()
    files = (lab.lab.folder / "ds1/guest").glob("*-00000*")
    assert list(files) == [], "a delta was left"


def tracked(world: World) -> None:
    assert enable_tracking(world.session, world.vm.moref, MARKER, patience=NOW).tracking in (
        Tracking.ACTIVE,
        Tracking.STARTED,
    )


def differing(before: bytes, after: bytes) -> set[int]:
    return {
        at // BLOCK
        for at in range(0, len(before), BLOCK)
        if before[at : at + BLOCK] != after[at : at + BLOCK]
    }


def blocks_of(found: ChangedAreas) -> set[int]:
    return {
        block
        for offset, length in found.areas
        for block in range(offset // BLOCK, (offset + length - 1) // BLOCK + 1)
    }


def test_changed_areas_of_a_running_guest_cover_what_it_wrote(world: World) -> None:
    """Tracking is started by a stun; what differs between two frozen states is in the list."""
    tracked(world)
    assert check_vm(world.session, world.vm) == ()
    first = world.take()
    assert first.consistency is Consistency.FILE_SYSTEM
    base, before = baseline_of(world.disk(first)), world.content(first)
    assert world.remove(first) is Consolidation.CLEAN
    world.change(2)
    second = world.take()
    after = world.content(second)
    found = world.areas(second, base)
    assert isinstance(found, ChangedAreas)
    truth = differing(before, after)
    assert len(truth) >= 32
    assert truth <= blocks_of(found)
    assert found.total_bytes < len(after) // 4
    assert isinstance(world.areas(second, baseline_of(world.disk(second))), FullRead)
    world.remove(second)


def test_allocated_areas_cover_every_byte_that_is_not_zero(world: World) -> None:
    """What lies outside reads as zeros, or the whole disk is read."""
    tracked(world)
    taken = world.take(Ladder(top=Rung.CRASH))
    found = allocated_areas(
        world.session, world.vm.moref, taken.moref, world.disk(taken), patience=NOW
    )
    content = bytearray(world.content(taken))
    for offset, length in found.areas if found else [(0, len(content))]:
        content[offset : offset + length] = bytes(length)
    assert not any(content)
    world.remove(taken)


def test_after_a_reset_an_old_change_id_is_not_believed(world: World) -> None:
    """The epoch differs, so the disk is read whole."""
    tracked(world)
    taken = world.take(Ladder(top=Rung.CRASH))
    base = baseline_of(world.disk(taken))
    world.remove(taken)
    outcome = reset_tracking(world.session, world.vm.moref, MARKER, patience=NOW)
    assert outcome.tracking is Tracking.STARTED
    taken = world.take(Ladder(top=Rung.CRASH))
    found = world.areas(taken, base)
    assert isinstance(found, FullRead)
    assert found.finding.code == "cbt.epoch-changed"
    world.remove(taken)


def test_a_guest_that_cannot_be_quiesced_is_crash_consistent(world: World) -> None:
    """After two attempts, a half-made snapshot among them."""
    world.lab.faults.arm(FaultName.QUIESCE_FAILURE)
    world.lab.faults.arm(FaultName.QUIESCE_HALF_MADE)
    taken = world.take()
    assert taken.consistency is Consistency.CRASH
    assert world.codes(taken) == ["snapshot.quiesce-failed"] * 2
    assert len(list_snapshots(world.session, world.vm.moref)) == 1
    world.remove(taken)


def test_a_lost_reply_and_a_lost_session_make_one_snapshot(world: World) -> None:
    """It is found by its marker; its removal's reply may be lost too."""
    world.lab.faults.arm(FaultName.SESSION_DROP, method="CreateSnapshotEx_Task")
    world.lab.faults.arm(FaultName.LOST_TASK_REPLY, method="CreateSnapshotEx_Task")
    taken = world.take()
    assert "snapshot.reply-lost" in world.codes(taken)
    assert len(list_snapshots(world.session, world.vm.moref)) == 1
    world.lab.faults.arm(FaultName.LOST_TASK_REPLY, method="RemoveSnapshot_Task")
    world.remove(taken)


def test_a_snapshot_that_fails_is_an_error_and_leaves_nothing(world: World) -> None:
    """There is no rung below crash."""
    world.lab.faults.arm(FaultName.SNAPSHOT_FAILURE)
    with pytest.raises(SnapshotError):
        world.take(Ladder(top=Rung.CRASH))


def test_a_locked_removal_is_repeated_and_the_disks_are_consolidated(world: World) -> None:
    """Locked twice, then out of the tree with its delta left, then locked again."""
    taken = world.take(Ladder(top=Rung.CRASH))
    world.lab.faults.arm(FaultName.REMOVE_FAILURE, times=2)
    world.lab.faults.arm(FaultName.CONSOLIDATION_NEEDED)
    world.lab.faults.arm(FaultName.CONSOLIDATION_LOCKED)
    assert world.remove(taken) is Consolidation.DONE


@pytest.mark.parametrize(
    ("fault", "codes"),
    [
        (FaultName.CBT_MISSING_LIST, {"cbt.file-fault"}),
        (FaultName.CBT_UNSORTED_LIST, {"cbt.bad-area"}),
        (FaultName.CBT_OVERLAPPING_LIST, {"cbt.bad-area"}),
        (FaultName.CBT_OUTSIDE_LIST, {"cbt.bad-area"}),
        (FaultName.CBT_STUCK_PAGE, {"cbt.bad-page"}),
        (FaultName.CBT_RESET, {"cbt.file-fault", "cbt.epoch-changed"}),
        (FaultName.CBT_FOREIGN_CHANGE_ID, {"cbt.epoch-changed"}),
        (FaultName.CBT_NO_CHANGE_ID, {"cbt.inactive"}),
    ],
)
def test_a_change_list_that_cannot_be_right_is_a_full_read(
    world: World, fault: FaultName, codes: set[str]
) -> None:
    """Each with the code of the guard that noticed it."""
    tracked(world)
    first = world.take(Ladder(top=Rung.CRASH))
    base = baseline_of(world.disk(first))
    world.remove(first)
    world.change(1)
    world.lab.faults.arm(fault, times=None)
    second = world.take(Ladder(top=Rung.CRASH))
    found = world.areas(second, base)
    world.lab.faults.disarm()
    world.remove(second)
    assert isinstance(found, FullRead)
    assert found.finding.code in codes


def test_tracking_that_is_ignored_is_a_full_read(world: World) -> None:
    """The task succeeds, but the snapshot's disk has no change id."""
    reset_tracking(world.session, world.vm.moref, MARKER, patience=NOW)
    world.lab.faults.arm(FaultName.CBT_ENABLE_IGNORED, times=None)
    reset_tracking(world.session, world.vm.moref, MARKER, patience=NOW)
    taken = world.take(Ladder(top=Rung.CRASH))
    found = world.areas(taken, Baseline(change_id="a/1", capacity_bytes=1, backing_uuid=None))
    world.lab.faults.disarm()
    world.remove(taken)
    reset_tracking(world.session, world.vm.moref, MARKER, patience=NOW)
    assert isinstance(found, FullRead)
    assert found.finding.code == "cbt.inactive"
