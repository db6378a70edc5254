"""Backups of a running VM of the practice Hyper-V host, over WinRM and SMB."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from appliance.base.consistency import Consistency, GuestLogs
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.catalog.job import JOB
from appliance.catalog.job_runs import JobRun
from appliance.catalog.policy import Policy
from appliance.catalog.runs import RunOutcome
from appliance.jobs.vm_backup import VmResult
from appliance.service.job_service import JobService
from appliance.sources.contract import ConsistencyPolicy
from hyperv.checkpoints import (
    BackupType,
    Level,
    list_checkpoints,
    remove_checkpoint,
    take_checkpoint,
)
from hyperv.inventory import read_vm
from hyperv.marker import Marker
from hyperv.reference_points import list_reference_points
from hyperv.shadows import list_shadows, make_shadow
from hyperv.shares import list_shares, share_drives
from hyperv.smb_files import SmbFile
from lab.faults import FaultName
from lab.hyperv_host.virtual_machine import HypervVm
from tests.support import holdfast_program
from tests.support.hyperv_backups import (
    HOST,
    HypervAppliance,
    disk_digest,
    hyperv_appliance,
    write_disk,
)
from tests.support.hyperv_lab import PATIENCE, HypervLab, hyperv_lab

pytestmark = pytest.mark.integration

MIB = 1 << 20
READY_S = 280.0  # a guest without KVM on a busy machine


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HypervLab]:
    with hyperv_lab(tmp_path_factory.mktemp("volumes")) as started:
        yield started


@pytest.fixture(scope="module")
def vm(lab: HypervLab) -> HypervVm:
    """Off: what its guest would write is written by the test, at once."""
    return lab.add_tiny("web", start=False)


@pytest.fixture(scope="module")
def live(lab: HypervLab) -> HypervVm:
    """Runs, and reports."""
    machine = lab.add_tiny("live")
    end_s = time.monotonic() + READY_S
    while machine.heartbeat != 5:
        assert time.monotonic() < end_s, "the guest does not report"
        time.sleep(0.1)
    return machine


@pytest.fixture(scope="module")
def appliance(lab: HypervLab, vm: HypervVm) -> Iterator[HypervAppliance]:
    with hyperv_appliance(lab) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(lab: HypervLab, vm: HypervVm) -> Iterator[None]:
    """After every test: no checkpoint, no shadow copy, the VM on its own disk file again."""
    yield
    lab.practice.faults.disarm()
    assert list_checkpoints(lab.session, "", PATIENCE) == []
    for machine in lab.practice.host.vms():
        with machine.opened_disks() as disks:
            assert [len(disk.paths) for disk in disks.values()] == [1]


def points(lab: HypervLab, vm: HypervVm) -> list[str]:
    found = list_reference_points(lab.session, vm.settings.vm_id, PATIENCE)
    return [point.id for point in found]


def codes(result: VmResult) -> set[str]:
    return {reason.code for reason in result.reasons}


def base(appliance: HypervAppliance, lab: HypervLab, vm: HypervVm) -> None:
    """A point with a reference point, and something written since."""
    [result] = appliance.back_up("web")
    assert result.status is not RunOutcome.FAILED, result.error
    assert len(points(lab, vm)) == 1
    write_disk(vm, 100 * MIB, random.randbytes(MIB))


def test_an_operator_registers_a_host_and_backs_up_a_running_vm(
    appliance: HypervAppliance, lab: HypervLab, live: HypervVm
) -> None:
    """host test, vm list, a full and an incremental backup; only what changed is read."""
    tested = appliance.holdfast("host", "test", HOST)
    assert tested["product"].startswith("Hyper-V on ") and tested["missing_privileges"] == []
    listed = {each["vm"]: each for each in appliance.holdfast("vm", "list")}
    assert (listed["live"]["power"], listed["live"]["change_tracking"]) == ("on", "enabled")
    [disk] = listed["live"]["disks"]
    assert disk["size_bytes"] == 256 * MIB and disk["obstacle"] is None

    [full] = appliance.holdfast("backup", "vm", "live")["vms"]
    assert full["consistency"] == "application"
    lab.say(live, "change 2", "CHANGED")
    [after] = appliance.holdfast("backup", "vm", "live")["vms"]
    assert after["disks"][0]["read_bytes"] < 32 * MIB < full["disks"][0]["size_bytes"]
    assert len(points(lab, live)) == 1
    listed = {each["vm"]: each for each in appliance.holdfast("vm", "list")}
    assert listed["live"]["protected"] and not listed["web"]["protected"]


def test_the_stored_disk_of_a_running_vm_is_the_frozen_one(
    appliance: HypervAppliance, lab: HypervLab, live: HypervVm
) -> None:
    """Full and incremental, judged by the lab's own reader; the guest goes on writing meanwhile."""
    for _ in range(2):
        lab.say(live, "change 1", "CHANGED")
        [result] = appliance.back_up("live")
        assert result.backup is not None, result.error
        assert not [reason for reason in result.reasons if reason.warning]
        assert appliance.stored("live") == appliance.frozen["live", 0]


def test_only_changed_ranges_are_read(
    appliance: HypervAppliance, lab: HypervLab, vm: HypervVm
) -> None:
    """What was written since, rounded as the host tracks it; the result is the frozen disk."""
    base(appliance, lab, vm)
    [result] = appliance.back_up("web")
    assert result.backup is not None, result.error
    [disk] = result.backup.disks
    assert (disk.image.read_bytes, disk.mode) == (MIB, "changed")
    assert appliance.stored("web") == appliance.frozen["web", 0]
    assert len(points(lab, vm)) == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (FaultName.RCT_RESET, "rct.refused"),
        (FaultName.RCT_QUERY_FAILURE, "rct.refused"),
        (FaultName.RCT_STUCK_REGION, "rct.not-believed"),
    ],
)
def test_a_change_list_that_cannot_be_had_is_a_full_read(
    appliance: HypervAppliance, lab: HypervLab, vm: HypervVm, fault: FaultName, code: str
) -> None:
    """With the reason; nothing is missed, and the next backup asks again."""
    base(appliance, lab, vm)
    lab.practice.faults.arm(fault, times=1)
    [result] = appliance.back_up("web")
    assert lab.practice.faults.fired(fault)
    assert code in codes(result)
    assert appliance.stored("web") == appliance.frozen["web", 0]
    [again] = appliance.back_up("web")
    assert not codes(again) & {code}


def test_a_reference_point_without_an_id_is_not_kept(
    appliance: HypervAppliance, lab: HypervLab, vm: HypervVm
) -> None:
    """It could not be asked: it goes at once, and the next backup says why it reads everything."""
    lab.practice.faults.arm(FaultName.RCT_EMPTY_ID, times=1)
    [result] = appliance.back_up("web")
    assert "rct.no-reference-point" in codes(result)
    assert points(lab, vm) == []
    [again] = appliance.back_up("web")
    assert "rct.no-reference-point" in codes(again)
    assert appliance.stored("web") == appliance.frozen["web", 0]
    assert len(points(lab, vm)) == 1


def test_a_guest_that_cannot_be_brought_to_rest_gives_a_crash_consistent_point(
    appliance: HypervAppliance, lab: HypervLab, live: HypervVm
) -> None:
    """Recorded as what it is, with the reason; and refused where the policy wants more."""
    lab.practice.faults.arm(FaultName.QUIESCE_FAILURE, times=1)
    [result] = appliance.back_up("live")
    assert "consistency.downgraded" in codes(result)
    assert result.backup is not None
    assert result.backup.manifest.consistency is Consistency.CRASH
    lab.practice.faults.arm(FaultName.QUIESCE_FAILURE, times=1)
    policy = ConsistencyPolicy(least=Consistency.APPLICATION)
    [refused] = appliance.back_up("live", consistency=policy)
    assert refused.error is not None and refused.error.code == "hyperv.consistency"


def test_what_a_killed_run_left_is_removed_and_nothing_else(
    appliance: HypervAppliance, lab: HypervLab, vm: HypervVm
) -> None:
    """Its checkpoint goes by our marker; that of another appliance stays."""
    with appliance.catalog() as catalog:
        ours = Marker(appliance_id=catalog.appliance_id, run_id="20261120T031500Z-000000000001")
    other = lab.marker()
    taken = {
        marker.text: take_checkpoint(
            lab.session,
            vm.settings.vm_id,
            marker,
            levels=[Level.CRASH],
            backup_type=BackupType.COPY,
            patience=PATIENCE,
        ).id
        for marker in (ours, other)
    }
    [orphan] = appliance.clean_up()
    assert (orphan.run_id, orphan.failure) == (ours.run_id, "")
    left = list_checkpoints(lab.session, vm.settings.vm_id, PATIENCE)
    assert [found.id for found in left] == [taken[other.text]]
    remove_checkpoint(lab.session, vm.settings.vm_id, taken[other.text], PATIENCE)


def test_a_run_that_is_killed_is_cleaned_up_after(
    appliance: HypervAppliance, lab: HypervLab, vm: HypervVm
) -> None:
    """kill -9 while its checkpoint stands: a clean-up removes it, the next backup is good."""
    words = holdfast_program.command("backup", "vm", "web")
    run = subprocess.Popen(
        words,
        env=holdfast_program.environment(appliance.home),
        cwd=holdfast_program.ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end_s = time.monotonic() + READY_S
        while not any(found.name.startswith("holdfast-") for found in vm.checkpoints):
            assert run.poll() is None and time.monotonic() < end_s
            time.sleep(0.02)
    finally:
        run.kill()
        run.wait()
    [orphan] = appliance.clean_up()
    assert orphan.failure == ""
    assert list_checkpoints(lab.session, "", PATIENCE) == []
    [result] = appliance.back_up("web")
    assert result.backup is not None, result.error
    assert appliance.stored("web") == appliance.frozen["web", 0]


def test_a_cancelled_run_leaves_no_checkpoint(appliance: HypervAppliance) -> None:
    """Readers are closed and the checkpoint goes, as at the end of a good run."""
    cancel = CancelToken()
    context = RunContext(cancel, Progress())
    follow = appliance._see

    def stop(*_args: object) -> None:
        cancel.cancel()

    appliance._see = stop  # type: ignore[method-assign, assignment]
    try:
        [result] = appliance.back_up("web", context=context)
    finally:
        appliance._see = follow  # type: ignore[method-assign]
    assert result.status is RunOutcome.CANCELLED


@pytest.mark.parametrize(
    "method", ["create_checkpoint", "convert_to_reference_point", "name_checkpoint"]
)
def test_a_shell_that_is_lost_at_a_step_leaves_nothing(
    appliance: HypervAppliance, lab: HypervLab, vm: HypervVm, method: str
) -> None:
    """Whether the step was carried out is found out by looking; the point is good."""
    lab.practice.faults.arm(FaultName.LOST_TASK_REPLY, times=1, method=f"Receive:{method}")
    [result] = appliance.back_up("web")
    assert lab.practice.faults.fired(FaultName.LOST_TASK_REPLY)
    assert result.backup is not None, result.error
    assert appliance.stored("web") == appliance.frozen["web", 0]
    assert len(points(lab, vm)) == 1


def test_a_merge_that_fails_is_said_and_healed_by_the_next_backup(
    appliance: HypervAppliance, lab: HypervLab, vm: HypervVm
) -> None:
    """The point is good; the next one reads the chain as it is, and leaves one file."""
    lab.practice.faults.arm(FaultName.MERGE_FAILURE, times=1)
    [result] = appliance.back_up("web")
    assert result.backup is not None and result.status is RunOutcome.WARNING
    assert codes(result) & {"rct.not-converted", "checkpoint.not-merged"}
    [again] = appliance.back_up("web")
    assert again.backup is not None, again.error
    assert appliance.stored("web") == appliance.frozen["web", 0]


def test_a_script_that_breaks_fails_the_backup_and_leaves_nothing(
    appliance: HypervAppliance, lab: HypervLab, vm: HypervVm
) -> None:
    """An exception that nobody foresaw, after the checkpoint was made."""
    before = set(points(lab, vm))
    lab.practice.faults.arm(FaultName.SCRIPT_FAILURE, times=1, method="checkpoint_disks")
    [broken] = appliance.back_up("web")
    assert lab.practice.faults.fired(FaultName.SCRIPT_FAILURE)
    assert broken.backup is None and broken.error is not None
    [result] = appliance.back_up("web")
    assert result.backup is not None, result.error
    assert appliance.stored("web") == appliance.frozen["web", 0]
    assert len(set(points(lab, vm)) - before) == 1


def test_a_host_without_reference_points_is_backed_up_by_a_shadow_copy(
    appliance: HypervAppliance, lab: HypervLab, vm: HypervVm
) -> None:
    """Whole disks, compared with what is stored; the shadow copy goes with the run."""
    appliance.lacking = {"reference_points": False}
    try:
        for _ in range(2):
            write_disk(vm, 50 * MIB, random.randbytes(MIB))
            [result] = appliance.back_up("web")
            assert result.backup is not None, result.error
            assert "rct.not-supported" in codes(result)
            assert not [reason for reason in result.reasons if reason.warning]
            assert appliance.stored("web") == disk_digest(vm)
        [disk] = result.backup.disks
        assert disk.mode == "compared" and disk.image.stored_bytes < 4 * MIB
        assert list_shadows(lab.session, "holdfast-", PATIENCE) == []
    finally:
        appliance.lacking = {}


def test_a_policy_says_whether_guests_may_truncate_their_logs(
    appliance: HypervAppliance, lab: HypervLab, live: HypervVm
) -> None:
    """The guest's applications hear of a copy, or of a full backup; of diskshadow always of a full
    one, with a warning where that was not asked for."""
    for asked, heard in ((GuestLogs.KEEP, "copy"), (GuestLogs.TRUNCATE, "full")):
        run = backed_up_by_job(appliance, "live", guest_logs=asked)
        assert run.outcome is RunOutcome.SUCCESS, (run.error, run.result)
        assert live.backups_told[-1] == heard
    appliance.lacking = {"reference_points": False}
    try:
        [result] = appliance.back_up("live")
        assert "guest-logs.may-be-truncated" in codes(result)
        assert live.backups_told[-1] == "full"
        [result] = appliance.back_up("live", guest_logs=GuestLogs.TRUNCATE)
        assert "guest-logs.may-be-truncated" not in codes(result)
    finally:
        appliance.lacking = {}


def backed_up_by_job(appliance: HypervAppliance, vm: str, **policy: Any) -> JobRun:
    with appliance.catalog() as catalog, appliance.repository() as repository:
        jobs = JobService(catalog, repository, appliance.home, frozenset)
        try:
            jobs.book.save(
                [Policy.model_validate({"name": "p", "retries": {"attempts": 0}} | policy)],
                [
                    JOB.validate_python(
                        {"name": "j", "kind": "backup", "policy": "p", "select": {"names": [vm]}}
                    )
                ],
            )
            run = jobs.run_now("j")
            jobs.scheduler.look()
            assert jobs.engine.wait_idle(READY_S)
            return catalog.job_runs.get(run.run_id)
        finally:
            jobs.stop()


def test_what_a_killed_run_left_of_shadow_copies_and_shares_is_removed(
    appliance: HypervAppliance, lab: HypervLab, vm: HypervVm
) -> None:
    """By the marker in the folder's name and in the share's description."""
    with appliance.catalog() as catalog:
        marker = Marker(appliance_id=catalog.appliance_id, run_id="20261120T031500Z-000000000002")
    disks = read_vm(lab.session, vm.settings.vm_id, PATIENCE).disks
    make_shadow(lab.session, vm.settings.vm_id, marker, disks, PATIENCE)
    share_drives(lab.session, ["D"], marker, PATIENCE)
    orphans = appliance.clean_up()
    assert sorted(orphan.what.partition(" holdfast")[0] for orphan in orphans) == [
        "shadow copy",
        "share",
    ]
    assert not [orphan for orphan in orphans if orphan.failure]
    assert list_shadows(lab.session, "holdfast-", PATIENCE) == []
    assert list_shares(lab.session, "holdfast-", PATIENCE) == []


def test_a_host_without_admin_shares_is_read_by_a_share_of_ours(
    appliance: HypervAppliance, lab: HypervLab, vm: HypervVm
) -> None:
    """It is there for the run only."""
    appliance.lacking = {"admin_shares": False}
    try:
        [result] = appliance.back_up("web", full=True)
        assert result.backup is not None, result.error
        assert appliance.stored("web") == appliance.frozen["web", 0]
        assert list_shares(lab.session, "holdfast-", PATIENCE) == []
    finally:
        appliance.lacking = {}


def test_a_smb_connection_that_breaks_is_made_anew(
    appliance: HypervAppliance, lab: HypervLab, vm: HypervVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transfer goes on where it had stopped; the point is whole."""
    reads = iter(range(1_000_000))
    read_many_into = SmbFile.read_many_into

    def breaks(file: SmbFile, wanted: Sequence[tuple[int, memoryview]]) -> None:
        if next(reads) == 12:
            file._connection._connection.transport.close()
        read_many_into(file, wanted)

    monkeypatch.setattr(SmbFile, "read_many_into", breaks)
    [result] = appliance.back_up("web", full=True)
    assert result.backup is not None, result.error
    assert "transfer.retried" in codes(result)
    assert appliance.stored("web") == appliance.frozen["web", 0]
