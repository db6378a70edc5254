"""Changed block tracking is turned on only where it cannot lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pyVmomi import vim

from tests.support.scripted_vcenter import ScriptedVcenter, ScriptedVm
from vmware.change_tracking import Tracking, TrackingOutcome, enable_tracking, reset_tracking
from vmware.errors import BusyError
from vmware.marker import Marker, Purpose, parse_marker
from vmware.patience import Patience

MARKER = Marker(appliance_id="ours", run_id="run-1")
NOW = Patience(wait=lambda _: None)


@pytest.fixture
def vm() -> ScriptedVm:
    return ScriptedVm(ScriptedVcenter())


def enable(vm: ScriptedVm) -> TrackingOutcome:
    return enable_tracking(vm.server.session(), "vm-1", MARKER, patience=NOW)


def reset(vm: ScriptedVm) -> TrackingOutcome:
    return reset_tracking(vm.server.session(), "vm-1", MARKER, patience=NOW)


def methods(vm: ScriptedVm) -> list[str]:
    return [m for _, m in vm.server.calls if m.endswith("_Task")]


def codes(outcome: TrackingOutcome) -> list[str]:
    return [finding.code for finding in outcome.findings]


STUN = ["CreateSnapshot_Task", "RemoveSnapshot_Task"]


def test_a_running_vm_is_stunned_once_so_that_tracking_starts(vm: ScriptedVm) -> None:
    """By a snapshot without memory or quiesce, which is gone afterwards."""
    assert enable(vm) == TrackingOutcome(tracking=Tracking.STARTED)
    assert vm.values["config.changeTrackingEnabled"]
    assert methods(vm) == ["ReconfigVM_Task", *STUN]
    assert vm.quiesce_specs == [False]
    assert vm.snapshots == []


def test_the_stun_snapshot_carries_a_marker_of_its_own(vm: ScriptedVm) -> None:
    """A kill between create and remove leaves something that is found."""
    seen: list[Any] = []

    def look(real: Callable[[], Any]) -> Any:
        seen.extend(parse_marker(entry.description) for entry in vm.snapshots)
        return real()

    vm.server.hook("RemoveSnapshot_Task", look)
    enable(vm)
    assert [(m.run_id, m.purpose) for m in seen] == [("run-1", Purpose.TRACKING)]


def test_a_vm_that_is_off_needs_no_stun(vm: ScriptedVm) -> None:
    """The flag is effective at once there."""
    vm.values["runtime.powerState"] = "poweredOff"
    assert enable(vm).tracking is Tracking.STARTED
    assert methods(vm) == ["ReconfigVM_Task"]


def test_it_is_never_enabled_above_a_snapshot(vm: ScriptedVm) -> None:
    """Tracking would miss changes, and nobody would be told."""
    vm.add_snapshot("theirs")
    outcome = enable(vm)
    assert (outcome.tracking, codes(outcome)) == (Tracking.OFF, ["cbt.has-snapshots"])
    assert methods(vm) == []


def test_a_snapshot_made_meanwhile_stops_it(vm: ScriptedVm) -> None:
    """Between look and reconfigure; the configuration's version has changed."""

    def quicker(real: Callable[[], Any]) -> Any:
        vm.add_snapshot("theirs")
        vm.values["config.changeVersion"] = "other"
        return real()

    vm.server.hook("ReconfigVM_Task", quicker)
    with pytest.raises(BusyError):
        enable(vm)
    assert not vm.values["config.changeTrackingEnabled"]


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"capability.changeTrackingSupported": False}, "cbt.not-supported"),
        ({"config.version": "vmx-04"}, "cbt.old-hardware"),
    ],
)
def test_a_vm_that_cannot_is_left_alone(vm: ScriptedVm, values: dict[str, Any], code: str) -> None:
    """With its reason."""
    vm.values |= values
    assert codes(enable(vm)) == codes(reset(vm)) == [code]
    assert methods(vm) == []


def test_what_is_on_stays_on(vm: ScriptedVm) -> None:
    """Snapshots do not matter then."""
    vm.values["config.changeTrackingEnabled"] = True
    vm.add_snapshot("theirs")
    assert enable(vm) == TrackingOutcome(tracking=Tracking.ACTIVE)
    assert methods(vm) == []


def test_a_disk_that_is_switched_off_is_told(vm: ScriptedVm) -> None:
    """The VM's flag says nothing of a disk's own."""
    disk = vim.vm.device.VirtualDisk(
        key=2000,
        controllerKey=1000,
        unitNumber=1,
        capacityInKB=4,
        deviceInfo=vim.Description(label="Hard disk 2", summary=""),
    )
    vm.values |= {
        "config.changeTrackingEnabled": True,
        "config.hardware.device": [
            vim.vm.device.ParaVirtualSCSIController(
                key=1000, busNumber=0, sharedBus="noSharing", scsiCtlrUnitNumber=7
            ),
            disk,
        ],
        "config.extraConfig": [vim.option.OptionValue(key="scsi0:1.ctkEnabled", value="FALSE")],
    }
    (finding,) = enable(vm).findings
    assert finding.code == "cbt.disk-switched-off"
    assert "Hard disk 2" in finding.text
    assert "scsi0:1.ctkEnabled" in finding.next_step


def test_a_failed_stun_is_no_failure(vm: ScriptedVm) -> None:
    """The snapshot of the next backup starts it."""
    vm.server.fail_task("CreateSnapshot_Task", vim.fault.TooManySnapshotLevels())
    outcome = enable(vm)
    assert (outcome.tracking, codes(outcome)) == (Tracking.STARTED, ["cbt.not-activated"])


def test_a_flag_that_does_not_stick_is_told(vm: ScriptedVm) -> None:
    """The task may succeed without effect."""
    vm.server.hook("ReconfigVM_Task", lambda _: vm.server.task())
    outcome = enable(vm)
    assert (outcome.tracking, codes(outcome)) == (Tracking.OFF, ["cbt.did-not-stick"])


def test_a_reset_turns_it_off_and_on_with_a_stun_each(vm: ScriptedVm) -> None:
    """Every earlier change id is void then."""
    vm.values["config.changeTrackingEnabled"] = True
    assert reset(vm).tracking is Tracking.STARTED
    assert methods(vm) == ["ReconfigVM_Task", *STUN, "ReconfigVM_Task", *STUN]
    assert vm.values["config.changeTrackingEnabled"]


def test_a_reset_above_a_snapshot_does_nothing(vm: ScriptedVm) -> None:
    """It would be turned on above it."""
    vm.values["config.changeTrackingEnabled"] = True
    vm.add_snapshot("theirs")
    assert codes(reset(vm)) == ["cbt.has-snapshots"]
    assert methods(vm) == []


def test_a_reset_that_meets_a_new_snapshot_leaves_it_off(vm: ScriptedVm) -> None:
    """Off is safe; the next backup turns it on."""
    vm.values["config.changeTrackingEnabled"] = True

    def then_theirs(real: Callable[[], Any]) -> Any:
        task = real()
        vm.add_snapshot("theirs")
        return task

    vm.server.hook("RemoveSnapshot_Task", then_theirs)
    outcome = reset(vm)
    assert (outcome.tracking, codes(outcome)) == (Tracking.OFF, ["cbt.has-snapshots"])
    assert not vm.values["config.changeTrackingEnabled"]
