"""A guest that runs in the practice vCenter: snapshots, tracking and moves with real bytes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from lab.esx.disk_chain import ChainReader, open_chain
from lab.esx.guest import QuiesceError
from lab.esx.qmp import QmpError
from lab.esx.vm_state import PowerState
from lab.faults import FaultName
from lab.guests import GuestKind, build, read_journal
from lab.vcenter.virtual_machine_engine import EngineMachine
from lab.vcenter.virtual_machine_setup import add_guest
from tests.support.http_fetch import connect, fetch
from tests.support.lab_machines import (
    Practice,
    disk,
    disks_of,
    done,
    practice,
    reconfigured,
    removed,
    snapped,
)
from tests.support.needs import needs
from tests.support.png import distinct_pixels

pytestmark = pytest.mark.integration

BLOCK = 65536
READY_TIMEOUT_S = 120.0


class GuestLab:
    """The guest by its console, its engine, and the client's reference."""

    def __init__(self, lab: Practice, machine: EngineMachine) -> None:
        self.lab = lab
        self.machine = machine
        self.engine = machine.engine
        self.vm = lab.machine("guest")

    def start(self) -> None:
        done(self.vm.PowerOnVM_Task())
        self.expect("HOLDFAST-READY", since=0, timeout_s=READY_TIMEOUT_S)

    @property
    def home(self) -> Path:
        """The folder that the machine's files are in."""
        path = self.engine.config.folder
        return self.lab.folder / path.datastore / path.path

    def elsewhere(self) -> Any:
        """The datastore that the machine is not on."""
        here = self.engine.config.vmx_path.datastore
        return next(one for one in self.lab.inventory.datastores if one.name != here)

    def say(self, line: str, answer: str) -> re.Match[str]:
        assert self.engine.machine is not None
        mark = self.engine.machine.console.mark
        self.engine.machine.send_line(line)
        return self.expect(answer, since=mark)

    def mark(self) -> int:
        assert self.engine.machine is not None
        return self.engine.machine.console.mark

    def expect(self, pattern: str, *, since: int, timeout_s: float = 60.0) -> re.Match[str]:
        assert self.engine.machine is not None
        found = self.engine.machine.console.wait_line(pattern, since=since, timeout_s=timeout_s)
        assert found is not None, f"the guest never said {pattern}"
        return found

    def content(self, snapshot: Any) -> bytes:
        """The frozen disk, as the files have it."""
        frozen = self.lab.library.site.datastores
        chain = open_chain(
            frozen, self.engine.snapshots[self.number(snapshot)].config.disks[0].path
        )
        return ChainReader(frozen, chain).read_at(0, chain.capacity_bytes)

    def number(self, snapshot: Any) -> int:
        return next(
            n for n in self.engine.snapshots if self.machine.snapshot_ref(n)._moId == snapshot._moId
        )


@pytest.fixture(scope="module")
def guest() -> Iterator[GuestLab]:
    needs("qemu-system-x86_64", "qemu-img", "qemu-storage-daemon")
    with practice("ds1", "ds2", changed_areas_max=3) as lab:
        machine = add_guest(
            lab.inventory,
            "guest",
            build(GuestKind.TINY),
            forward=(7777,),
            extra_disks_bytes=(16 << 20,),
        )
        found = GuestLab(lab, machine)
        reconfigured(found.vm, changeTrackingEnabled=True)
        found.start()
        found.say("journal start", "ACK 1")
        yield found


def changed_blocks(
    vm: Any, snapshot: Any, change_id: str, *, key: int = 2000
) -> tuple[set[int], int]:
    """Every block that QueryChangedDiskAreas names, and in how many pages."""
    capacity = next(d for d in disks_of(snapshot.config) if d.key == key).capacityInBytes
    blocks: set[int] = set()
    offset = pages = 0
    while offset < capacity:
        page = vm.QueryChangedDiskAreas(snapshot, key, offset, change_id)
        assert page.startOffset == offset and page.length > 0
        for area in page.changedArea:
            assert offset <= area.start and area.start + area.length <= offset + page.length
            blocks.update(range(area.start // BLOCK, -(-(area.start + area.length) // BLOCK)))
        offset, pages = offset + page.length, pages + 1
    return blocks, pages


def differing_blocks(before: bytes, after: bytes) -> set[int]:
    return {
        offset // BLOCK
        for offset in range(0, len(before), BLOCK)
        if before[offset : offset + BLOCK] != after[offset : offset + BLOCK]
    }


def test_tools_and_heartbeat_come_from_the_guest(guest: GuestLab) -> None:
    """Once it has said that it is ready, and with what it says."""
    info = guest.vm.guest
    assert (info.toolsRunningStatus, info.hostName) == ("guestToolsRunning", "holdfast-tiny")
    assert info.ipAddress == "10.0.2.15"
    assert guest.vm.guestHeartbeatStatus == "green"
    assert guest.vm.runtime.powerState == "poweredOn"


def test_changed_areas_are_the_blocks_that_differ_between_two_snapshots(guest: GuestLab) -> None:
    """None is missing, and the answer comes in pages."""
    first = snapped(guest.vm, "first", quiesce=True)
    tree = guest.vm.snapshot.rootSnapshotList[0]
    assert (tree.name, tree.quiesced, tree.snapshot) == ("first", True, first)
    change_id = disks_of(first.config)[0].backing.changeId
    before = guest.content(first)
    guest.say("change 2", "CHANGED")
    removed(first)
    guest.say("change 1", "CHANGED")
    second = snapped(guest.vm, "second")
    after = guest.content(second)
    blocks, pages = changed_blocks(guest.vm, second, change_id)
    truth = differing_blocks(before, after)
    assert truth <= blocks
    assert len(blocks) <= len(truth) + 8 and pages > 1
    assert changed_blocks(guest.vm, second, disks_of(second.config)[0].backing.changeId) == (
        set(),
        1,
    )
    removed(second)
    assert guest.vm.snapshot is None and not guest.vm.runtime.consolidationNeeded


def test_a_frozen_disk_stays_as_it_was_while_the_guest_writes(guest: GuestLab) -> None:
    """Through writes, another snapshot, and the removal of one in the middle."""
    snapshots = [snapped(guest.vm, "lower")]
    frozen = [guest.content(snapshots[0])]
    for name in ("middle", "upper"):
        guest.say("change 1", "CHANGED")
        snapshots.append(snapped(guest.vm, name))
        frozen.append(guest.content(snapshots[-1]))
    assert frozen[0] != frozen[1] != frozen[2]
    leaf = disks_of(guest.vm.config)[0].backing
    names = []
    while leaf is not None:
        names.append(leaf.fileName.rpartition("/")[2])
        leaf = leaf.parent
    assert names == ["guest-000003.vmdk", "guest-000002.vmdk", "guest-000001.vmdk", "guest.vmdk"]
    removed(snapshots[1])
    assert guest.content(snapshots[0]) == frozen[0]
    assert guest.content(snapshots[2]) == frozen[2]
    assert disks_of(snapshots[2].config)[0].backing.fileName == "[ds1] guest/guest-000001.vmdk"
    removed(snapshots[0], children=True)
    assert disks_of(guest.vm.config)[0].backing.fileName == "[ds1] guest/guest.vmdk"
    assert not list((guest.lab.folder / "ds1" / "guest").glob("*-00000*"))
    guest.say("sum", "SUM")


def test_a_delta_that_was_left_behind_is_merged_by_a_consolidation(guest: GuestLab) -> None:
    """And the machine says before that it needs one."""
    guest.lab.faults.arm(FaultName.CONSOLIDATION_NEEDED)
    removed(snapped(guest.vm))
    assert guest.vm.snapshot is None and guest.vm.runtime.consolidationNeeded
    assert disks_of(guest.vm.config)[0].backing.parent is not None
    guest.lab.faults.arm(FaultName.CONSOLIDATION_LOCKED)
    with pytest.raises(vim.fault.FileLocked):
        done(guest.vm.ConsolidateVMDisks_Task())
    done(guest.vm.ConsolidateVMDisks_Task())
    assert not guest.vm.runtime.consolidationNeeded
    assert disks_of(guest.vm.config)[0].backing.parent is None


def test_a_disk_plugged_into_the_running_guest_is_tracked_after_a_stun(guest: GuestLab) -> None:
    """Not at once: the snapshot that is the stun shows no changeId yet."""
    reconfigured(guest.vm, disk(controller=1000, unit=5, size_bytes=4 << 20))
    assert 2005 in guest.engine.machine.disks  # type: ignore[union-attr]
    first = snapped(guest.vm, "stun")
    assert not next(d for d in disks_of(first.config) if d.key == 2005).backing.changeId
    removed(first)
    second = snapped(guest.vm, "tracked")
    plugged = next(d for d in disks_of(second.config) if d.key == 2005)
    assert plugged.backing.changeId
    removed(second)
    device = next(d for d in disks_of(guest.vm.config) if d.key == 2005)
    reconfigured(
        guest.vm,
        vim.vm.device.VirtualDeviceSpec(operation="remove", device=device, fileOperation="destroy"),
    )
    assert 2005 not in guest.engine.machine.disks  # type: ignore[union-attr]
    assert not (guest.home / "guest_2-flat.vmdk").exists()


def test_a_failed_quiesce_leaves_no_snapshot(guest: GuestLab) -> None:
    """Unless the half-made one is what is to be practised."""
    guest.lab.faults.arm(FaultName.QUIESCE_FAILURE)
    with pytest.raises(vim.fault.ApplicationQuiesceFault):
        snapped(guest.vm, quiesce=True)
    assert guest.vm.snapshot is None
    guest.lab.faults.arm(FaultName.QUIESCE_HALF_MADE)
    with pytest.raises(vim.fault.ApplicationQuiesceFault):
        snapped(guest.vm, "half", quiesce=True)
    left = guest.vm.snapshot.rootSnapshotList
    assert [(one.name, one.quiesced) for one in left] == [("half", False)]
    removed(left[0].snapshot)


def test_a_guest_that_does_not_thaw_in_time_has_its_snapshot(
    guest: GuestLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disks are frozen as they should be, and their files in use."""
    running = guest.engine.guest
    assert running is not None
    thaw = running.thaw

    def thaw_too_late() -> None:
        thaw()
        raise QuiesceError("late")

    monkeypatch.setattr(running, "thaw", thaw_too_late)
    snapshot = snapped(guest.vm, quiesce=True)
    guest.say("change 1", "CHANGED")
    assert guest.vm.snapshot.rootSnapshotList[0].quiesced
    removed(snapshot)


def test_a_merge_that_fails_leaves_the_machine_running_on_its_delta(
    guest: GuestLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs consolidation, which succeeds when the cause is gone."""
    assert guest.engine.machine is not None
    snapshot = snapped(guest.vm)
    guest.say("change 1", "CHANGED")
    with monkeypatch.context() as patch:
        qmp, run_job = guest.engine.machine.qmp, guest.engine.machine.qmp.run_job

        def full(command: str, job_id: str, **named: Any) -> None:
            if command == "block-commit":
                raise QmpError("No space left on device")
            run_job(command, job_id, **named)

        patch.setattr(qmp, "run_job", full)
        removed(snapshot)
    assert guest.vm.runtime.consolidationNeeded
    guest.say("change 1", "CHANGED")
    done(guest.vm.ConsolidateVMDisks_Task())
    assert disks_of(guest.vm.config)[0].backing.parent is None


def test_the_running_disk_is_locked_and_its_frozen_parent_is_not(guest: GuestLab) -> None:
    """What `/folder` and hot-add ask."""
    locks, home = guest.lab.library.site.locks, guest.engine.config.folder
    snapshot = snapped(guest.vm)
    modes = {
        name: {lock.mode.value for lock in locks.locks(home.child(name))}
        for name in ("guest-flat.vmdk", "guest-000001-delta.vmdk", "guest.vmx")
    }
    assert modes == {
        "guest-flat.vmdk": {"shared"},
        "guest-000001-delta.vmdk": {"exclusive"},
        "guest.vmx": {"shared"},
    }
    removed(snapshot)
    assert {lock.mode.value for lock in locks.locks(home.child("guest-flat.vmdk"))} == {"exclusive"}


def folder_url(guest: GuestLab, name: str) -> str:
    authority = f"{guest.lab.vcenter.address}:{guest.lab.vcenter.port}"
    return f"https://{authority}/folder/guest/{name}?dcPath=DC0&dsName=ds1"


def cookie(guest: GuestLab) -> dict[str, str]:
    return {"Cookie": guest.lab.instance._stub.cookie.split(";")[0]}


def test_only_frozen_files_of_a_running_machine_are_read_over_http(guest: GuestLab) -> None:
    """The leaf is 500; the flat base under a snapshot is the frozen disk while the guest writes."""
    flat = folder_url(guest, "guest-flat.vmdk")
    assert fetch(flat, headers=cookie(guest))[0] == 500
    vmx = folder_url(guest, "guest.vmx")
    assert b"displayName" in fetch(vmx, headers=cookie(guest))[1]
    assert fetch(vmx, "PUT", cookie(guest), b"x")[0] == 500
    snapshot = snapped(guest.vm)
    frozen = guest.content(snapshot)
    guest.say("change 1", "CHANGED")
    assert fetch(flat, headers=cookie(guest)) == (200, frozen)
    delta = folder_url(guest, "guest-000001-delta.vmdk")
    assert fetch(delta, headers=cookie(guest))[0] == 500
    removed(snapshot)
    assert fetch(flat, headers=cookie(guest))[0] == 500


def test_a_reader_left_open_keeps_a_snapshot_from_going_away(guest: GuestLab) -> None:
    """Its delta stays to be consolidated, which works once the reader is gone."""
    snapshot = snapped(guest.vm)
    guest.lab.faults.arm(FaultName.SLOW_STREAM, amount=1 << 16, path="*-flat.vmdk")
    reader, target = connect(folder_url(guest, "guest-flat.vmdk"))
    reader.request("GET", target, headers=cookie(guest))
    reader.getresponse().read(1)
    removed(snapshot)
    assert guest.vm.snapshot is None and guest.vm.runtime.consolidationNeeded
    with pytest.raises(vim.fault.FileLocked):
        done(guest.vm.ConsolidateVMDisks_Task())
    reader.close()
    locks, base = guest.lab.library.site.locks, guest.engine.config.folder.child("guest-flat.vmdk")
    guest.lab.wait(lambda: len(locks.locks(base)) == 1, "the reader stays")
    done(guest.vm.ConsolidateVMDisks_Task())
    assert not guest.vm.runtime.consolidationNeeded


def test_a_snapshot_of_a_running_machine_is_exported(guest: GuestLab, tmp_path: Path) -> None:
    """As it was frozen; meanwhile the machine cannot be powered off; itself it is not exported."""
    with pytest.raises(vim.fault.InvalidPowerState):
        guest.vm.ExportVm()
    snapshot = snapped(guest.vm)
    (tmp_path / "frozen.raw").write_bytes(guest.content(snapshot))
    lease = snapshot.ExportSnapshot()
    guest.lab.wait(lambda: lease.state == "ready", "the lease is not ready")
    with pytest.raises(vim.fault.MethodDisabled):
        done(guest.vm.PowerOffVM_Task())
    guest.say("change 1", "CHANGED")
    (tmp_path / "out.vmdk").write_bytes(fetch(lease.info.deviceUrl[0].url)[1])
    compare = ["qemu-img", "compare", "-f", "raw", "-F", "vmdk"]
    pair = [tmp_path / "frozen.raw", tmp_path / "out.vmdk"]
    subprocess.run([*compare, *pair], check=True, capture_output=True)
    lease.HttpNfcLeaseComplete()
    removed(snapshot)


def test_the_screen_comes_over_http(guest: GuestLab) -> None:
    """A PNG for the session's user; 401 without, 404 for no machine."""
    url = f"https://{guest.lab.vcenter.address}:{guest.lab.vcenter.port}/screen?id="
    status, picture = fetch(url + guest.vm._moId, headers=cookie(guest))
    assert status == 200
    assert distinct_pixels(picture) > 1
    assert fetch(url + guest.vm._moId)[0] == 401
    assert fetch(url + "vm-0", headers=cookie(guest))[0] == 404


def test_the_screen_is_a_png_in_the_machines_folder(guest: GuestLab) -> None:
    """Named by the task's result, and not black."""
    result = done(guest.vm.CreateScreenshot_Task())
    assert result == "[ds1] guest/guest-1.png"
    picture = (guest.lab.folder / "ds1" / "guest" / "guest-1.png").read_bytes()

    assert distinct_pixels(picture) > 1


def test_a_machine_moves_while_its_journal_goes_on(guest: GuestLab) -> None:
    """No acknowledged record is lost, the snapshot and the tracking move along."""
    kept = snapped(guest.vm, "kept")
    change_id = disks_of(kept.config)[0].backing.changeId
    frozen = guest.content(kept)
    old, target = guest.home, guest.elsewhere()
    done(guest.vm.RelocateVM_Task(vim.vm.RelocateSpec(datastore=target.ref)))
    assert guest.vm.config.files.vmPathName == f"[{target.name}] guest/guest.vmx"
    assert [one.name for one in guest.vm.datastore] == [target.name]
    assert not old.exists()
    assert guest.content(kept) == frozen
    mark = guest.mark()
    guest.expect("ACK", since=mark)
    guest.say("change 1", "CHANGED")
    later = snapped(guest.vm, "later")
    blocks, _ = changed_blocks(guest.vm, later, change_id)
    assert differing_blocks(frozen, guest.content(later)) <= blocks
    removed(kept, children=True)


def test_a_failed_move_leaves_the_machine_where_it_was(guest: GuestLab) -> None:
    """With nothing at the target."""
    guest.lab.faults.arm(FaultName.RELOCATE_FAILURE)
    before, target = guest.vm.config.files.vmPathName, guest.elsewhere()
    with pytest.raises(vim.fault.FileFault):
        done(guest.vm.RelocateVM_Task(vim.vm.RelocateSpec(datastore=target.ref)))
    assert guest.vm.config.files.vmPathName == before
    assert list((guest.lab.folder / target.name).iterdir()) == []
    guest.say("sum", "SUM")


def test_a_killed_machine_starts_its_tracking_over(guest: GuestLab) -> None:
    """As after a power loss of the host: old changeIds get FileFault, the log says why."""
    snapshot = snapped(guest.vm)
    change_id = disks_of(snapshot.config)[0].backing.changeId
    removed(snapshot)
    acknowledged = int(guest.expect(r"ACK (\d+)", since=guest.mark())[1])
    assert guest.engine.machine is not None
    os.kill(guest.engine.machine.pid, 9)
    guest.lab.wait_power(guest.engine, PowerState.OFF)
    assert guest.lab.library.site.locks.all_locks() == []
    numbers = read_journal(guest.home / "guest-flat.vmdk")
    assert numbers[-1] >= acknowledged
    snapshot = snapped(guest.vm)
    with pytest.raises(vim.fault.FileFault):
        guest.vm.QueryChangedDiskAreas(snapshot, 2000, 0, change_id)
    removed(snapshot)
    log = (guest.home / "vmware.log").read_text()
    assert "is invalid, re-initialized" in log


def test_a_moved_machine_asks_before_it_starts_and_shuts_down_by_its_tools(guest: GuestLab) -> None:
    """The power-on task waits for the answer; a shutdown ends with the tracking written."""
    if guest.engine.on:
        done(guest.vm.PowerOffVM_Task())
    guest.lab.faults.arm(FaultName.QUESTION)
    task = guest.vm.PowerOnVM_Task()
    question = guest.lab.wait_question(guest.vm)
    assert task.info.state == "running"
    assert question.message[0].id == "msg.uuid.altered"
    with pytest.raises(Exception, match="answerChoice"):
        guest.vm.AnswerVM(question.id, "nonsense")
    moved = next(c for c in question.choice.choiceInfo if "moved" in c.label.lower())
    guest.vm.AnswerVM(question.id, moved.key)
    done(task)
    guest.expect("HOLDFAST-READY", since=0, timeout_s=READY_TIMEOUT_S)
    guest.vm.ShutdownGuest()
    guest.lab.wait_power(guest.engine, PowerState.OFF)
    assert guest.vm.runtime.powerState == "poweredOff"
    assert guest.vm.guest.toolsRunningStatus == "guestToolsNotRunning"
    assert not guest.engine.tracking[2000].open
    assert guest.engine.tracking[2000].pending
