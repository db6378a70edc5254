"""The practice Hyper-V host against the product's client: the scripts' effects on real files."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator

import pytest

from hyperv.changed_blocks import Baseline, Changed, FullRead, changed_ranges
from hyperv.checkpoints import (
    Level,
    list_checkpoints,
    read_disks,
    remove_checkpoint,
)
from hyperv.config_capture import capture_vm
from hyperv.errors import CheckpointError, GoneError, HypervError, ScriptError, SharingError
from hyperv.inventory import host_facts, list_vms, read_vm, vm_state
from hyperv.reference_points import convert, list_reference_points, rct_id_of
from hyperv.script_types import Answer
from hyperv.shadows import list_shadows, make_shadow, read_shadow_disks, remove_shadow
from hyperv.shares import list_shares, share_drives, unshare
from hyperv.smb_files import SmbConnection
from hyperv.windows_path import base_name, shared_path
from lab.faults import FaultName
from lab.hyperv_host.errors import ParameterError
from lab.hyperv_host.vhdx_chain import create_disk
from lab.hyperv_host.virtual_machine import HypervVm
from lab.hyperv_host.vm_settings import WINDOWS_TEMPLATE, ControllerType, Drive, Memory, VmState
from lab.hyperv_host.windows_path import WindowsPath
from tests.support.hyperv_lab import PATIENCE, READY_S, HypervLab, hyperv_lab
from tests.support.lab_machines import wait_until

MIB = 1 << 20


class Swapped(Answer):
    swapped: int


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HypervLab]:
    with hyperv_lab(tmp_path_factory.mktemp("volumes")) as started:
        yield started


@pytest.fixture(scope="module")
def vm(lab: HypervLab) -> HypervVm:
    """A running guest that reports, with an empty second disk."""
    machine = lab.add_tiny("tiny", start=False)
    path = machine.settings.folder.joined("second.vhdx")
    create_disk(lab.practice.host.volumes.place(path), 8 * MIB, block_bytes=MIB)
    drive = Drive(controller=ControllerType.SCSI, controller_number=0, location=1, path=path)
    machine.update(machine.settings.with_drive(drive))
    machine.start()
    lab.wait_ready(machine)
    return machine


@pytest.fixture(autouse=True)
def nothing_armed(lab: HypervLab) -> Iterator[None]:
    yield
    assert lab.practice.faults.disarm() == 0, "a fault that was armed was not met"


def _image(lab: HypervLab, vm: HypervVm) -> bytes:
    """What the guest sees now; it must not write meanwhile."""
    with vm.opened_disks() as disks:
        disk = next(iter(disks.values()))
        return disk.read_at(0, disk.size_bytes)


def test_the_inventory_shows_the_running_guest(lab: HypervLab, vm: HypervVm) -> None:
    facts = host_facts(lab.session, PATIENCE)
    assert facts.hyperv and facts.reference_points and facts.administrator
    found = read_vm(lab.session, vm.settings.vm_id, PATIENCE)
    assert (found.name, found.generation, found.state) == ("tiny", 1, 2)
    disk = found.disks[0]
    assert (disk.format, disk.type, disk.size_bytes, disk.error) == (
        "vhdx",
        "dynamic",
        256 * MIB,
        "",
    )
    assert disk.path.startswith("D:\\Hyper-V\\tiny\\")
    state = vm_state(lab.session, vm.settings.vm_id, PATIENCE)
    assert (state.heartbeat, state.operational_status) == (5, [2])
    assert [one.id for one in list_vms(lab.session, PATIENCE)] == [vm.settings.vm_id]
    with pytest.raises(GoneError):
        vm_state(lab.session, "00000000-0000-0000-0000-000000000000", PATIENCE)


def test_a_backup_reads_the_frozen_disk_and_then_what_has_changed(
    lab: HypervLab, vm: HypervVm
) -> None:
    """Full over SMB, a reference point, writes, and ranges that hold every difference."""
    lab.say(vm, "change 2", "CHANGED")
    first = lab.take(vm)
    assert first.level is Level.APPLICATION
    frozen_disks = read_disks(lab.session, first.id, PATIENCE).disks
    assert [one.place for one in frozen_disks] == ["ide0:0", "scsi0:1"]
    disk = lab.disk(first)
    with lab.reader(disk) as reader:
        before = reader.read_at(0, reader.size_bytes)
        lab.say(vm, "change 3", "CHANGED")  # the guest goes on; the frozen disk does not
        assert reader.read_at(0, reader.size_bytes) == before
    converted = convert(lab.session, vm.settings.vm_id, first.id, PATIENCE)
    assert converted.point is not None
    assert vm.disks["ide0-0"].paths == [vm.settings.drives[0].path]

    second = lab.take(vm)
    frozen = lab.disk(second)
    base = Baseline(
        rct_id=rct_id_of(converted.point, frozen),
        virtual_disk_id=disk.virtual_disk_id,
        size_bytes=256 * MIB,
        frozen_name=base_name(disk.frozen.path),
    )
    changed = changed_ranges(lab.session, frozen, base, PATIENCE, region_bytes=96 * MIB)
    assert isinstance(changed, Changed)
    image = bytearray(before)
    with lab.reader(frozen) as reader:
        for offset, length in changed.ranges:
            image[offset : offset + length] = reader.read_at(offset, length)
        assert (
            hashlib.sha256(image).digest()
            == hashlib.sha256(reader.read_at(0, reader.size_bytes)).digest()
        )
    assert 0 < sum(length for _, length in changed.ranges) < 32 * MIB
    remove_checkpoint(lab.session, vm.settings.vm_id, second.id, PATIENCE)
    assert list_checkpoints(lab.session, vm.settings.vm_id, PATIENCE) == []
    folder = lab.practice.host.volumes.place(vm.settings.drives[0].path).parent  # type: ignore[arg-type]
    assert [one.name for one in folder.iterdir()] == ["tiny.vhdx"]


def test_the_running_leaf_is_held_and_the_frozen_file_is_not(lab: HypervLab, vm: HypervVm) -> None:
    """What SMB says of both, as with a real host's handles; configuration files can be read."""
    taken = lab.take(vm, Level.CRASH)
    disks = read_disks(lab.session, taken.id, PATIENCE)
    leaf = read_vm(lab.session, vm.settings.vm_id, PATIENCE).disks[0].path
    assert leaf.endswith(".avhdx")
    connection = SmbConnection(lab.smb_login())
    try:
        with pytest.raises(SharingError):
            connection.open_file(shared_path(leaf))
        frozen = connection.open_file(shared_path(disks.disks[0].chain[0].path))
        assert frozen.read_at(0, 8) == b"vhdxfile"
        assert connection.open_file(shared_path(disks.configuration[0])).size_bytes > 0

        # Removing it while the file is open: the checkpoint goes, the merge does not happen.
        with pytest.raises((CheckpointError, HypervError)):
            remove_checkpoint(lab.session, vm.settings.vm_id, taken.id, PATIENCE)
        assert len(vm.disks["ide0-0"].paths) == 2
    finally:
        connection.close()
    again = lab.take(vm, Level.CRASH)  # the next one merges what was left
    remove_checkpoint(lab.session, vm.settings.vm_id, again.id, PATIENCE)
    assert len(vm.disks["ide0-0"].paths) == 1


def test_a_user_checkpoint_makes_the_frozen_file_a_differencing_disk(
    lab: HypervLab, vm: HypervVm
) -> None:
    """The product reads it through the chain; ours goes, the user's stays."""
    host = lab.practice.host
    job = host.start_checkpoint(vm, recovery=False, consistency=2)
    wait_until(lambda: job.state != 4, "the checkpoint is not made")
    lab.say(vm, "change 1", "CHANGED")
    taken = lab.take(vm, Level.CRASH)
    disk = lab.disk(taken)
    assert [file.type for file in disk.chain] == ["differencing", "dynamic"]
    with lab.reader(disk) as reader:
        frozen = reader.read_at(0, reader.size_bytes)
    remove_checkpoint(lab.session, vm.settings.vm_id, taken.id, PATIENCE)
    assert [one.kind for one in list_checkpoints(lab.session, vm.settings.vm_id, PATIENCE)] == [
        "standard"
    ]
    assert len(frozen) == 256 * MIB
    removal = host.start_removal(vm, vm.checkpoints[0])
    wait_until(lambda: removal.state != 4, "the checkpoint is not removed")
    assert removal.error == ""
    assert len(vm.disks["ide0-0"].paths) == 1


@pytest.mark.parametrize(
    ("fault", "level"),
    [(FaultName.QUIESCE_FAILURE, Level.CRASH), (None, Level.APPLICATION)],
)
def test_a_guest_that_does_not_freeze_allows_a_crash_consistent_checkpoint(
    lab: HypervLab, vm: HypervVm, fault: FaultName | None, level: Level
) -> None:
    if fault is not None:
        lab.practice.faults.arm(fault, vm_name="tiny")
    taken = lab.take(vm, Level.APPLICATION, Level.CRASH)
    assert taken.level is level
    remove_checkpoint(lab.session, vm.settings.vm_id, taken.id, PATIENCE)


@pytest.mark.parametrize("fault", [FaultName.RCT_RESET, FaultName.RCT_QUERY_FAILURE])
def test_lost_change_tracking_makes_the_next_read_a_full_one(
    lab: HypervLab, vm: HypervVm, fault: FaultName
) -> None:
    taken = lab.take(vm, Level.CRASH)
    converted = convert(lab.session, vm.settings.vm_id, taken.id, PATIENCE)
    assert converted.point is not None
    lab.practice.faults.arm(fault, vm_name="tiny")
    second = lab.take(vm, Level.CRASH)
    disk = lab.disk(second)
    base = Baseline(
        rct_id=rct_id_of(converted.point, disk),
        virtual_disk_id=disk.virtual_disk_id,
        size_bytes=256 * MIB,
        frozen_name=base_name(disk.frozen.path),
    )
    answer = changed_ranges(lab.session, disk, base, PATIENCE)
    assert isinstance(answer, FullRead) and answer.finding.code == "rct.refused"
    remove_checkpoint(lab.session, vm.settings.vm_id, second.id, PATIENCE)


def test_an_empty_tracking_id_is_no_reference_point(lab: HypervLab, vm: HypervVm) -> None:
    lab.practice.faults.arm(FaultName.RCT_EMPTY_ID, vm_name="tiny")
    taken = lab.take(vm, Level.CRASH)
    points = len(list_reference_points(lab.session, vm.settings.vm_id, PATIENCE))
    converted = convert(lab.session, vm.settings.vm_id, taken.id, PATIENCE)
    assert converted.point is None and converted.findings
    assert len(list_reference_points(lab.session, vm.settings.vm_id, PATIENCE)) == points


def test_a_file_that_the_host_keeps_to_itself_can_be_read_later(
    lab: HypervLab, vm: HypervVm
) -> None:
    lab.practice.faults.arm(FaultName.SMB_FILE_BUSY, vm_name="tiny", amount=0.5)
    taken = lab.take(vm, Level.CRASH)
    path = lab.disk(taken).frozen.path
    connection = SmbConnection(lab.smb_login())
    try:
        with pytest.raises(SharingError):
            connection.open_file(shared_path(path))
        wait_until(lambda: _opens(connection, path), "the file stays busy")
    finally:
        connection.close()
    remove_checkpoint(lab.session, vm.settings.vm_id, taken.id, PATIENCE)


def _opens(connection: SmbConnection, path: str) -> bool:
    try:
        connection.open_file(shared_path(path)).close()
    except SharingError:
        return False
    return True


def test_a_shadow_copy_shows_the_disks_of_one_moment(lab: HypervLab, vm: HypervVm) -> None:
    """Its consistent leaf is the writer's child; it goes with its marker."""
    marker = lab.marker()
    disks = read_vm(lab.session, vm.settings.vm_id, PATIENCE).disks
    shadow = make_shadow(lab.session, vm.settings.vm_id, marker, disks, PATIENCE)
    found = read_shadow_disks(lab.session, shadow, disks, PATIENCE)
    assert [file.type for file in found[0].chain] == ["differencing", "dynamic"]
    with lab.reader(found[0]) as reader:
        assert reader.size_bytes == 256 * MIB
        frozen = reader.read_at(0, reader.size_bytes)
        lab.say(vm, "change 1", "CHANGED")
        assert reader.read_at(0, reader.size_bytes) == frozen
    assert [one.marker for one in list_shadows(lab.session, "holdfast-", PATIENCE)] == [marker.text]
    assert remove_shadow(lab.session, marker.text, PATIENCE) == 1
    assert list_shadows(lab.session, "holdfast-", PATIENCE) == []


def test_a_share_of_ours_shows_a_drive_until_it_is_taken_away(lab: HypervLab, vm: HypervVm) -> None:
    """For hosts without admin shares; read-only."""
    marker = lab.marker()
    share = share_drives(lab.session, ["D"], marker, PATIENCE)["D"]
    assert share_drives(lab.session, ["D"], marker, PATIENCE)["D"] == share
    assert list_shares(lab.session, "holdfast-", PATIENCE) == [marker.text]
    configuration = str(vm.settings.vmcx_path)
    connection = SmbConnection(lab.smb_login())
    try:
        wait_until(lambda: _is_shared(connection, configuration, share), "no share appears")
    finally:
        connection.close()
    assert unshare(lab.session, marker.text, PATIENCE) == 1
    assert list_shares(lab.session, "holdfast-", PATIENCE) == []


def _is_shared(connection: SmbConnection, path: str, share: str) -> bool:
    """A server that is told of a share needs a moment for the connections it has."""
    try:
        connection.open_file(shared_path(path, {"D": share})).close()
    except HypervError:
        return False
    return True


def test_a_checkpoint_that_fails_leaves_the_machine_as_it_was(lab: HypervLab, vm: HypervVm) -> None:
    lab.practice.faults.arm(FaultName.SNAPSHOT_FAILURE, vm_name="tiny")
    with pytest.raises(HypervError):
        lab.take(vm, Level.CRASH)
    assert vm.checkpoints == [] and len(vm.disks["ide0-0"].paths) == 1


def test_a_machine_that_is_off_is_backed_up_too(lab: HypervLab, vm: HypervVm) -> None:
    """From here on: the guest shuts down, and its disk is frozen and merged without it."""
    assert vm.machine is not None
    vm.machine.press_power_button()
    wait_until(lambda: vm.state is VmState.OFF, "the guest does not shut down")
    assert vm_state(lab.session, vm.settings.vm_id, PATIENCE).state == 3
    expected = _image(lab, vm)
    taken = lab.take(vm, Level.CRASH)
    with lab.reader(lab.disk(taken)) as reader:
        assert reader.read_at(0, reader.size_bytes) == expected
    converted = convert(lab.session, vm.settings.vm_id, taken.id, PATIENCE)
    assert converted.point is not None
    assert _image(lab, vm) == expected


def test_a_disk_that_was_replaced_has_no_change_tracking(lab: HypervLab, vm: HypervVm) -> None:
    """`swap_disks` of a restore in place: all or nothing, and older tracking ids are unknown."""
    taken = lab.take(vm, Level.CRASH)
    before = lab.disk(taken)
    converted = convert(lab.session, vm.settings.vm_id, taken.id, PATIENCE)
    assert converted.point is not None
    path = vm.settings.drives[0].path
    assert path is not None
    other = path.folder.joined("restored.vhdx")
    volumes = lab.practice.host.volumes
    shutil.copyfile(volumes.place(path), volumes.place(other))
    wanted = {"controller": "ide", "controller_number": 0, "location": 0, "path": str(other)}

    def swap(expected: str) -> None:
        disks = [{**wanted, "expected_path": expected}]
        lab.session.call("swap_disks", {"vm_id": vm.settings.vm_id, "disks": disks}, Swapped)

    with pytest.raises(ScriptError, match="disk-changed"):
        swap("D:\\other.vhdx")
    swap(str(path))
    assert vm.settings.drives[0].path == other
    second = lab.take(vm, Level.CRASH)
    base = Baseline(
        rct_id=rct_id_of(converted.point, before),
        virtual_disk_id=before.virtual_disk_id,
        size_bytes=256 * MIB,
        frozen_name=other.name,
    )
    assert isinstance(changed_ranges(lab.session, lab.disk(second), base, PATIENCE), FullRead)
    remove_checkpoint(lab.session, vm.settings.vm_id, second.id, PATIENCE)


def test_secure_boot_keeps_what_its_template_does_not_trust_from_booting(lab: HypervLab) -> None:
    """The windows-only template of a new machine knows no Linux; the firmware says so."""
    machine = lab.add_uefi("second", secure_boot=WINDOWS_TEMPLATE)
    vm_id = machine.settings.vm_id
    assert read_vm(lab.session, vm_id, PATIENCE).generation == 2
    firmware = capture_vm(lab.session, vm_id, PATIENCE).firmware
    assert firmware is not None and firmware.secure_boot
    assert firmware.secure_boot_template == WINDOWS_TEMPLATE
    machine.start()
    assert machine.machine is not None
    console = machine.machine.console
    assert console.wait_line(
        "failed to load Boot.*HARDDISK.*: Access Denied", since=0, timeout_s=READY_S
    )
    machine.turn_off()
    lab.practice.host.remove_vm(machine)


def test_a_machine_is_not_made_with_what_its_generation_has_not(lab: HypervLab) -> None:
    """Secure Boot for a BIOS, a template that nobody knows, IDE and .vhd under UEFI."""
    memory = Memory(
        startup_bytes=64 * MIB, minimum_bytes=64 * MIB, maximum_bytes=64 * MIB, dynamic=False
    )
    host = lab.practice.host
    first, second = (
        host.new_vm(
            f"generation {number}", WindowsPath("D:\\Hyper-V"), generation=number, memory=memory
        )
        for number in (1, 2)
    )
    assert second.settings.secure_boot_template == WINDOWS_TEMPLATE  # as New-VM has it
    for settings, template in ((first.settings, WINDOWS_TEMPLATE), (second.settings, "Mine")):
        with pytest.raises(ParameterError):
            settings.with_secure_boot(template)
    for kind, name in ((ControllerType.IDE, "a.vhdx"), (ControllerType.SCSI, "a.vhd")):
        path = second.settings.folder.joined(name)
        drive = Drive(controller=kind, controller_number=0, location=0, path=path)
        with pytest.raises(ParameterError):
            second.settings.with_drive(drive)
    for machine in (first, second):
        host.remove_vm(machine)
        assert not host.volumes.place(machine.settings.folder).exists()
