"""Making and removing our snapshot, whatever goes wrong on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from tests.support.scripted_vcenter import ScriptedVcenter, ScriptedVm
from vmware.consolidation import TRIES, Consolidation
from vmware.errors import (
    BusyError,
    CancelledError,
    NoSpaceError,
    PrivilegeError,
    QuiesceError,
    SnapshotError,
    UnreachableError,
    VsphereError,
)
from vmware.marker import Marker, Purpose
from vmware.patience import Patience
from vmware.quiesce import Consistency, Ladder, Rung, VssBackupType
from vmware.snapshot_tree import list_snapshots
from vmware.snapshots import (
    ForeignSnapshotError,
    Removal,
    RemovalOutcome,
    TakenSnapshot,
    create_snapshot,
    remove_snapshot,
)

MARKER = Marker(appliance_id="ours", run_id="run-1")
CRASH_ONLY = Ladder(top=Rung.CRASH)
NO_CRASH = Ladder(bottom=Rung.FILE_SYSTEM)
APPLICATION_FAULT = vim.fault.ApplicationQuiesceFault()
EX, PLAIN = "CreateSnapshotEx_Task", "CreateSnapshot_Task"


class World:
    """One VM, and the pauses that were made."""

    def __init__(self) -> None:
        self.server = ScriptedVcenter()
        self.vm = ScriptedVm(self.server)
        self.waited: list[float] = []
        self.cancelled = False

    @property
    def patience(self) -> Patience:
        return Patience(cancelled=lambda: self.cancelled, wait=self.waited.append)

    def windows(self) -> World:
        self.vm.values["guest.guestFamily"] = "windowsGuest"
        self.vm.writers_manifest = "snap/vss_manifests1.zip"
        return self

    def create(self, ladder: Ladder | None = None, marker: Marker = MARKER) -> TakenSnapshot:
        session = self.server.session()
        return create_snapshot(session, "vm-1", marker, ladder=ladder, patience=self.patience)

    def remove(self, moref: str) -> RemovalOutcome:
        session = self.server.session()
        return remove_snapshot(session, "vm-1", moref, appliance_id="ours", patience=self.patience)

    def morefs(self) -> list[str]:
        return [entry.moref for entry in list_snapshots(self.server.session(), "vm-1")]


@pytest.fixture
def world() -> World:
    return World()


def codes(taken: TakenSnapshot | RemovalOutcome) -> list[str]:
    return [finding.code for finding in taken.findings]


class TestConsistency:
    """What is recorded is what was true."""

    def test_windows_with_writers_is_application_consistent(self, world: World) -> None:
        """The manifest of the VSS writers proves it, and its place is kept."""
        taken = world.windows().create()
        assert taken.consistency is Consistency.APPLICATION
        assert taken.backup_manifest == "snap/vss_manifests1.zip"
        assert codes(taken) == []

    def test_windows_without_writers_is_not(self, world: World) -> None:
        """A frozen guest alone says nothing of its applications."""
        world.windows().vm.writers_manifest = None
        taken = world.create()
        assert taken.consistency is Consistency.FILE_SYSTEM
        assert codes(taken) == ["snapshot.no-writer-manifest"]

    def test_linux_is_file_system_consistent(self, world: World) -> None:
        """The tools freeze the file systems there."""
        taken = world.create()
        assert taken.consistency is Consistency.FILE_SYSTEM
        assert codes(taken) == ["snapshot.scripts-unknown"]

    def test_a_vm_that_is_off_is_offline(self, world: World) -> None:
        """Nothing runs, so nothing needs to be brought to rest."""
        world.vm.values["runtime.powerState"] = "poweredOff"
        taken = world.create(NO_CRASH)
        assert taken.consistency is Consistency.OFFLINE
        assert world.vm.quiesce_specs == [False]

    def test_without_running_tools_the_wish_to_quiesce_is_not_believed(self, world: World) -> None:
        """vSphere ignores the wish then; so it is not made, and the reason is told."""
        world.vm.values["guest.toolsRunningStatus"] = "guestToolsNotRunning"
        taken = world.create()
        assert taken.consistency is Consistency.CRASH
        assert codes(taken) == ["snapshot.tools-not-running"]
        assert world.vm.quiesce_specs == [False]

    def test_a_suspended_vm_is_crash_consistent(self, world: World) -> None:
        """Its memory is not in the snapshot."""
        world.vm.values["runtime.powerState"] = "suspended"
        taken = world.create()
        assert (taken.consistency, codes(taken)) == (Consistency.CRASH, ["snapshot.suspended"])

    def test_a_snapshot_that_says_it_was_not_quiesced_is_believed(self, world: World) -> None:
        """Tools may stop between the look and the snapshot."""
        world.server.hook(EX, stop_tools(world))
        taken = world.create()
        assert taken.consistency is Consistency.CRASH
        assert codes(taken) == ["snapshot.not-quiesced"]

    def test_less_than_the_policy_allows_is_removed_again(self, world: World) -> None:
        """No snapshot stays, and no crash-consistent point is made in secret."""
        for _ in range(4):
            world.server.hook(EX, stop_tools(world))
        with pytest.raises(QuiesceError):
            world.create(NO_CRASH)
        assert world.morefs() == []

    def test_a_policy_without_crash_fails_before_any_snapshot_of_a_guest_without_tools(
        self, world: World
    ) -> None:
        """It could only be crash consistent."""
        world.vm.values["guest.toolsRunningStatus"] = None
        with pytest.raises(QuiesceError, match="VMware Tools"):
            world.create(NO_CRASH)
        assert world.server.calls == []

    def test_the_guest_id_tells_windows_when_the_tools_do_not(self, world: World) -> None:
        """The family is known only after the tools have run once."""
        world.windows().vm.values["guest.guestFamily"] = None
        world.vm.values["config.guestId"] = "windows2019srv_64Guest"
        assert world.create().consistency is Consistency.APPLICATION


def stop_tools(world: World) -> Callable[[Callable[[], Any]], Any]:
    def hook(real: Callable[[], Any]) -> Any:
        before = world.vm.values["guest.toolsRunningStatus"]
        world.vm.values["guest.toolsRunningStatus"] = "guestToolsNotRunning"
        try:
            return real()
        finally:
            world.vm.values["guest.toolsRunningStatus"] = before

    return hook


class TestLadder:
    def test_a_failed_quiesce_is_tried_again_after_a_minute(self, world: World) -> None:
        """VSS writers often come back by themselves."""
        world.windows().server.fail_task(EX, APPLICATION_FAULT)
        taken = world.create()
        assert taken.consistency is Consistency.APPLICATION
        assert codes(taken) == ["snapshot.quiesce-failed"]
        assert sum(world.waited) == 60

    def test_then_file_systems_then_nothing(self, world: World) -> None:
        """Windows: application twice, file systems without writers, crash."""
        world.windows().server.fail_task(EX, *[APPLICATION_FAULT] * 3)
        taken = world.create()
        assert taken.consistency is Consistency.CRASH
        assert codes(taken) == ["snapshot.quiesce-failed"] * 3
        assert [m for _, m in world.server.calls] == [EX, EX, EX, PLAIN]

    def test_linux_has_no_separate_file_system_rung(self, world: World) -> None:
        """It would be the same request a third time."""
        world.server.fail_task(EX, APPLICATION_FAULT, vim.fault.FilesystemQuiesceFault())
        assert world.create().consistency is Consistency.CRASH
        assert [m for _, m in world.server.calls] == [EX, EX, PLAIN]

    def test_it_ends_where_the_policy_says(self, world: World) -> None:
        """Without crash in the policy, the last quiesce failure is the run's."""
        world.windows().server.fail_task(EX, *[APPLICATION_FAULT] * 3)
        with pytest.raises(QuiesceError):
            world.create(NO_CRASH)
        assert [m for _, m in world.server.calls] == [EX, EX, EX]

    def test_the_specs_say_how_to_freeze(self, world: World) -> None:
        """Writers take part on the application rung only; the time-out is in minutes."""
        world.windows().server.fail_task(EX, APPLICATION_FAULT, APPLICATION_FAULT)
        world.create(Ladder(freeze_timeout_minutes=7, backup_type=VssBackupType.FULL))
        world.vm.values["guest.guestFamily"] = "linuxGuest"
        world.create(Ladder(freeze_timeout_minutes=8))
        files, linux = world.vm.quiesce_specs
        assert isinstance(files, vim.vm.WindowsQuiesceSpec)
        assert (files.timeout, files.vssBackupContext) == (7, "ctx_file_share_backup")
        assert type(linux) is vim.vm.GuestQuiesceSpec
        assert linux.timeout == 8

    def test_the_application_rung_asks_for_the_writers(self, world: World) -> None:
        """ctx_auto might leave them out."""
        world.windows().create(Ladder(backup_type=VssBackupType.FULL))
        (spec,) = world.vm.quiesce_specs
        assert (spec.vssBackupContext, spec.vssBackupType) == ("ctx_backup", 1)
        assert spec.vssBootableSystemState

    def test_a_server_without_quiesce_specs_gets_the_old_call(self, world: World) -> None:
        """vSphere before 6.5."""
        world.vm.has_ex = False
        assert world.create().consistency is Consistency.FILE_SYSTEM
        assert world.vm.quiesce_specs == [True]

    def test_a_vm_that_wants_no_quiesce_gets_none(self, world: World) -> None:
        """The policy may start at crash."""
        taken = world.create(CRASH_ONLY)
        assert (taken.consistency, codes(taken)) == (Consistency.CRASH, [])
        assert world.vm.quiesce_specs == [False]

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            (vim.fault.NoDiskSpace(file="x", datastore="d"), NoSpaceError),
            (vim.fault.NoPermission(), PrivilegeError),
        ],
    )
    def test_what_no_lower_rung_would_help_is_raised_at_once(
        self, world: World, fault: Exception, error: type[Exception]
    ) -> None:
        """No space for a quiesced snapshot is no space for any."""
        world.server.fail(EX, fault)
        with pytest.raises(error):
            world.create()
        assert len(world.server.calls) == 1

    def test_a_failing_crash_consistent_snapshot_is_the_end(self, world: World) -> None:
        """There is nothing below it."""
        world.server.fail_task(PLAIN, vim.fault.TooManySnapshotLevels())
        with pytest.raises(SnapshotError):
            world.create(CRASH_ONLY)

    @pytest.mark.parametrize("minutes", [4, 241])
    def test_a_ladder_out_of_range_is_refused(self, minutes: int) -> None:
        """vSphere takes 5 to 240 minutes."""
        with pytest.raises(ValueError, match="minutes"):
            Ladder(freeze_timeout_minutes=minutes)
        with pytest.raises(ValueError, match="ladder"):
            Ladder(top=Rung.CRASH, bottom=Rung.APPLICATION)


class TestNothingIsLeftOrDoneTwice:
    def test_a_half_made_snapshot_is_removed_before_the_next_attempt(self, world: World) -> None:
        """A failed task may leave its snapshot in the tree."""
        world.server.hook(EX, fail_after(world, APPLICATION_FAULT))
        taken = world.create()
        assert world.morefs() == [taken.moref]

    def test_a_lost_reply_is_not_a_second_snapshot(self, world: World) -> None:
        """The server had understood: the snapshot is found by its marker and used."""
        world.server.hook(EX, reply_lost)
        taken = world.create()
        assert world.morefs() == [taken.moref]
        assert "snapshot.reply-lost" in codes(taken)
        assert [m for _, m in world.server.calls] == [EX]

    def test_a_lost_request_is_made_again(self, world: World) -> None:
        """The server had not understood: there is nothing to find."""
        world.server.fail(EX, ConnectionResetError())
        taken = world.create()
        assert world.morefs() == [taken.moref]
        assert [m for _, m in world.server.calls] == [EX, EX]

    def test_a_task_that_vanishes_is_looked_for_by_its_snapshot(self, world: World) -> None:
        """Servers forget finished tasks."""

        def forget(real: Callable[[], Any]) -> Any:
            task = real()
            del world.server.objects[task._GetMoId()]
            return task

        world.server.hook(EX, forget)
        taken = world.create()
        assert world.morefs() == [taken.moref]

    def test_a_lost_reply_with_a_server_away_for_long_is_not_a_second_snapshot(
        self, world: World
    ) -> None:
        """Who could not look for the first one at once looks for it before asking again."""
        world.server.hook(EX, reply_lost_while_away(world, reads=1))
        taken = world.create()
        assert world.morefs() == [taken.moref]
        assert [m for _, m in world.server.calls] == [EX]

    def test_a_snapshot_that_may_have_been_made_is_told(self, world: World) -> None:
        """The server never came back: the error says that something may be left."""
        world.server.hook(EX, reply_lost_while_away(world, reads=1000))
        with pytest.raises(UnreachableError) as caught:
            world.create()
        assert "could not be removed" in caught.value.__notes__[0]
        assert len(world.vm.snapshots) == 1

    def test_nothing_is_concluded_while_a_snapshot_task_still_runs(self, world: World) -> None:
        """After a lost reply the snapshot may appear only later."""
        running = world.server.task(kind="VirtualMachine.createSnapshotEx")
        task = world.server.objects[running._GetMoId()]

        def later(_: Callable[[], Any]) -> Any:
            task.values["info.state"] = "running"
            world.vm.values["recentTask"] = [running]
            raise ConnectionResetError

        def wait(seconds: float) -> None:
            world.waited.append(seconds)
            if len(world.waited) == 3:
                world.vm.add_snapshot("late", MARKER.text, quiesced=True)
                task.values["info.state"] = "success"

        world.server.hook(EX, later)
        session = world.server.session()
        taken = create_snapshot(session, "vm-1", MARKER, patience=Patience(wait=wait))
        assert world.morefs() == [taken.moref]
        assert [m for _, m in world.server.calls] == [EX]

    @pytest.mark.parametrize("fault", [vim.fault.TaskInProgress(), vim.fault.SnapshotLocked()])
    def test_a_busy_vm_is_waited_for(self, world: World, fault: Exception) -> None:
        """Another task on the VM is no failure of the guest: the rung stays."""
        world.windows().server.fail(EX, fault, fault)
        assert world.create().consistency is Consistency.APPLICATION

    def test_a_vm_that_stays_busy_fails(self, world: World) -> None:
        """Not for ever."""
        world.server.fail(EX, *[vim.fault.TaskInProgress()] * 20)
        with pytest.raises(BusyError):
            world.create()

    def test_a_cancel_while_waiting_for_the_next_attempt_leaves_nothing(self, world: World) -> None:
        """The pause before the second attempt notices it."""
        world.server.hook(EX, fail_after(world, APPLICATION_FAULT, cancel=True))
        with pytest.raises(CancelledError):
            world.create()
        assert world.morefs() == []

    def test_a_server_that_is_gone_is_reported(self, world: World) -> None:
        """Neither a snapshot nor a wrong claim."""
        world.server.fail(EX, *[ConnectionResetError()] * 20)
        with pytest.raises(UnreachableError):
            world.create()
        assert world.morefs() == []

    def test_what_cannot_be_cleaned_up_is_said(self, world: World) -> None:
        """The error that matters stays, with a note of what it left."""
        world.server.hook(PLAIN, fail_after(world, vim.fault.TooManySnapshotLevels()))
        world.server.fail("RemoveSnapshot_Task", vim.fault.NoPermission())
        with pytest.raises(SnapshotError) as caught:
            world.create(CRASH_ONLY)
        assert "could not be removed" in caught.value.__notes__[0]

    def test_another_marker_of_ours_is_not_adopted(self, world: World) -> None:
        """Only exactly this run and purpose is this snapshot."""
        world.vm.add_snapshot("x", Marker(appliance_id="ours", run_id="run-0").text)
        world.server.fail(EX, ConnectionResetError())
        taken = world.create()
        assert len(world.morefs()) == 2
        assert taken.moref == world.morefs()[1]

    def test_the_marker_and_the_name_are_on_the_snapshot(self, world: World) -> None:
        """So that it can be found after a crash, by us and by people."""
        taken = world.create(CRASH_ONLY)
        (entry,) = list_snapshots(world.server.session(), "vm-1")
        assert entry.marker == MARKER
        assert entry.name == "holdfast-run-1-backup"
        assert entry.created_at == taken.created_at


def fail_after(
    world: World, fault: Exception, *, cancel: bool = False
) -> Callable[[Callable[[], Any]], Any]:
    def hook(real: Callable[[], Any]) -> Any:
        real()
        world.cancelled = world.cancelled or cancel
        return world.server.task(error=fault)

    return hook


def reply_lost(real: Callable[[], Any]) -> Any:
    real()
    raise ConnectionResetError


def reply_lost_while_away(world: World, *, reads: int) -> Callable[[Callable[[], Any]], Any]:
    def hook(real: Callable[[], Any]) -> Any:
        world.server.away_for_reads = reads
        return reply_lost(real)

    return hook


class TestRemoval:
    def test_ours_is_removed_and_nothing_else(self, world: World) -> None:
        """Foreign snapshots above and below stay."""
        first = world.vm.add_snapshot("theirs")
        ours = world.create().moref
        last = world.vm.add_snapshot("theirs too", '{"holdfast": 1}')
        outcome = world.remove(ours)
        assert world.morefs() == [first, last]
        assert outcome.removal is Removal.REMOVED
        assert outcome.consolidation is Consolidation.CLEAN

    @pytest.mark.parametrize(
        "text", ["", "holdfast", Marker(appliance_id="theirs", run_id="run-1").text]
    )
    def test_one_that_is_not_ours_is_never_removed(self, world: World, text: str) -> None:
        """Not even when it is asked for by its id and has our name."""
        foreign = world.vm.add_snapshot("holdfast-run-1-backup", text)
        with pytest.raises(ForeignSnapshotError):
            world.remove(foreign)
        assert world.morefs() == [foreign]
        assert world.server.calls == []

    def test_one_that_is_gone_counts_as_removed(self, world: World) -> None:
        """Removing may be repeated after any crash."""
        assert world.remove("snapshot-99").removal is Removal.ALREADY_GONE

    def test_a_lost_reply_of_a_removal_is_a_removal(self, world: World) -> None:
        """The tree decides, not the reply."""
        ours = world.create().moref
        world.server.hook("RemoveSnapshot_Task", reply_lost)
        assert world.remove(ours).removal is Removal.REMOVED
        assert world.morefs() == []

    def test_a_locked_file_is_waited_for(self, world: World) -> None:
        """Another product may be reading."""
        ours = world.create().moref
        world.server.fail_task(
            "RemoveSnapshot_Task", vim.fault.FileLocked(), vim.fault.FileLocked()
        )
        assert world.remove(ours).removal is Removal.REMOVED
        assert world.morefs() == []

    def test_a_removal_that_fails_is_an_error(self, world: World) -> None:
        """It is still there, and somebody must know."""
        ours = world.create().moref
        world.server.fail_task("RemoveSnapshot_Task", *[vmodl.fault.SystemError()] * 20)
        with pytest.raises(VsphereError):
            world.remove(ours)
        assert world.morefs() == [ours]

    def test_what_is_not_merged_is_consolidated(self, world: World) -> None:
        """The snapshot is out of the tree, but its delta is still in the chain."""
        ours = world.create().moref
        world.vm.leave_unconsolidated = 2
        world.server.fail_task("ConsolidateVMDisks_Task", vim.fault.FileLocked())
        outcome = world.remove(ours)
        assert outcome.consolidation is Consolidation.DONE
        assert outcome.findings == ()

    def test_a_consolidation_that_stays_pending_is_told(self, world: World) -> None:
        """The VM works, but its chain grows: an alarm, not a failed backup."""
        ours = world.create().moref
        world.vm.leave_unconsolidated = 1
        world.server.fail_task("ConsolidateVMDisks_Task", *[vim.fault.FileLocked()] * 20)
        outcome = world.remove(ours)
        assert outcome.removal is Removal.REMOVED
        assert outcome.consolidation is Consolidation.PENDING
        assert codes(outcome) == ["snapshot.consolidation-pending"]
        asked = [m for _, m in world.server.calls if m == "ConsolidateVMDisks_Task"]
        assert len(asked) == TRIES

    def test_a_server_that_cannot_consolidate_leaves_it_pending(self, world: World) -> None:
        """Some cannot; that is no reason to fail."""
        ours = world.create().moref
        world.vm.leave_unconsolidated = 1
        world.server.fail("ConsolidateVMDisks_Task", vmodl.fault.MethodNotFound())
        assert world.remove(ours).consolidation is Consolidation.PENDING


class TestTree:
    def test_it_is_read_parents_first_with_depth(self, world: World) -> None:
        """Depth is what the limit of 32 counts."""
        for name in "abc":
            world.vm.add_snapshot(name)
        entries = list_snapshots(world.server.session(), "vm-1")
        assert [(entry.name, entry.depth) for entry in entries] == [("a", 1), ("b", 2), ("c", 3)]

    def test_a_vm_without_snapshots_has_none(self, world: World) -> None:
        """The property is unset then."""
        assert list_snapshots(world.server.session(), "vm-1") == ()

    def test_every_purpose_is_found(self, world: World) -> None:
        """Debris of any kind is debris."""
        for purpose in Purpose:
            text = Marker(appliance_id="ours", run_id="r", purpose=purpose).text
            world.vm.add_snapshot("x", text)
        found = [entry.marker for entry in list_snapshots(world.server.session(), "vm-1")]
        assert [marker.purpose for marker in found if marker] == list(Purpose)
