"""Machines of the practice vCenter that are off: what it takes, what it refuses, what it keeps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from lab.esx.datastore import LabDatastore
from lab.esx.exported_disk import release_dead_exports
from lab.esx.loop_devices import release_loops_below
from lab.faults import FaultName
from lab.vcenter.inventory import build_inventory
from lab.vcenter.virtual_machine_setup import add_appliance, give_library
from tests.support.lab_machines import (
    Practice,
    added,
    disk,
    disks_of,
    done,
    practice,
    reconfigured,
    removed,
    snapped,
)
from tests.support.needs import needs, needs_loop_devices

pytestmark = pytest.mark.integration

MIB = 1 << 20


@pytest.fixture
def lab() -> Iterator[Practice]:
    needs("qemu-img", "qemu-storage-daemon")
    with practice("ds1", "ds2") as made:
        yield made


def write(lab: Practice, path: str, offset: int, data: bytes) -> None:
    """As somebody with the datastore in his hands."""
    with (lab.folder / path).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def files(lab: Practice, folder: str) -> list[str]:
    return sorted(one.name for one in (lab.folder / folder).iterdir())


def test_a_machine_is_made_with_what_was_asked_for_and_destroyed_with_its_files(
    lab: Practice,
) -> None:
    """Its disk is a flat one with VMware's keys, and nothing stays behind."""
    vm = lab.create("web", disk(size_bytes=8 * MIB), numCPUs=2, memoryMB=64, annotation="mine")
    config = vm.config
    assert (config.hardware.numCPU, config.hardware.memoryMB) == (2, 64)
    assert (config.annotation, config.files.vmPathName) == ("mine", "[ds1] web/web.vmx")
    (made,) = disks_of(config)
    assert (made.key, made.controllerKey, made.unitNumber) == (2000, 1000, 0)
    assert made.backing.fileName == "[ds1] web/web.vmdk"
    assert (lab.folder / "ds1/web/web-flat.vmdk").stat().st_size == 8 * MIB
    assert [one.name for one in vm.datastore] == ["ds1"]
    kinds = {one.type for one in vm.layoutEx.file}
    assert kinds >= {"config", "nvram", "diskDescriptor", "diskExtent", "log", "snapshotList"}
    assert vm.storage.perDatastoreUsage[0].committed > 0
    done(vm.Destroy_Task())
    assert files(lab, "ds1") == []
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        print(vm.name)


def test_a_machine_that_cannot_be_made_leaves_nothing(lab: Practice) -> None:
    """The folder is gone, too."""
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        lab.create("bad", disk(unit=0), disk(unit=0))
    with pytest.raises(vim.fault.FileNotFound):
        lab.create("bad", disk(file="[ds1] nowhere/x.vmdk"))
    assert files(lab, "ds1") == []


def test_refusals_of_device_changes_are_those_of_a_host(lab: Practice) -> None:
    """And a refused request changes nothing, also in what came before the refusal."""
    vm = lab.create("web", disk())
    other = lab.create("other", disk(size_bytes=4 * MIB))
    existing = disks_of(other.config)[0].backing.fileName
    ide = disk(controller=200, unit=0)

    def refused(fault: Any, *changes: Any) -> Any:
        with pytest.raises(fault) as caught:
            reconfigured(vm, *changes)
        assert len(disks_of(vm.config)) == 1
        return caught.value

    assert refused(vim.fault.InvalidDeviceSpec, disk(controller=1000, unit=7)).deviceIndex == 0
    refused(vim.fault.InvalidDeviceSpec, disk(controller=1000, unit=0))
    refused(vim.fault.InvalidDeviceSpec, disk(controller=1000, unit=99))
    refused(vim.fault.InvalidController, disk(controller=1003, unit=1))
    refused(vim.fault.FileNotFound, disk(controller=1000, file="[ds1] web/none.vmdk"))
    refused(vim.fault.InvalidDatastore, disk(controller=1000, file="[elsewhere] a/b.vmdk"))
    refused(vim.fault.InvalidDatastorePath, disk(controller=1000, file="[ds1] ../../b.vmdk"))
    refused(vim.fault.InvalidDeviceSpec, disk(controller=1000, file=existing, size_bytes=5 * MIB))
    refused(vim.fault.InvalidDeviceSpec, disk(controller=1000, file="[ds1] web/web.vmdk"))
    refused(
        vim.fault.InvalidDeviceSpec, disk(controller=1000, unit=3), disk(controller=1000, unit=7)
    )
    assert "web_1.vmdk" not in files(lab, "ds1/web")
    shrink = vim.vm.device.VirtualDisk(
        key=2000, controllerKey=1000, unitNumber=0, capacityInKB=1024
    )
    refused(
        vim.fault.InvalidDeviceSpec,
        vim.vm.device.VirtualDeviceSpec(operation="edit", device=shrink),
    )
    reconfigured(vm, ide)
    assert [one.controllerKey for one in disks_of(vm.config)] == [1000, 200]


def test_a_disk_removed_without_a_file_operation_keeps_its_files(lab: Practice) -> None:
    """With `destroy` they go."""
    vm = lab.create("web", disk(), disk())
    first, second = disks_of(vm.config)

    def remove(device: Any, operation: str | None) -> None:
        reconfigured(
            vm,
            vim.vm.device.VirtualDeviceSpec(
                operation="remove", device=device, fileOperation=operation
            ),
        )

    remove(first, None)
    assert "web-flat.vmdk" in files(lab, "ds1/web")
    remove(second, "destroy")
    assert "web_1-flat.vmdk" not in files(lab, "ds1/web")


def test_tracking_of_a_machine_that_is_off_works_at_once(lab: Practice) -> None:
    """Without a snapshot the interval ends now; foreign ids and arguments get their faults."""
    vm = lab.create("web", disk(size_bytes=8 * MIB))
    with pytest.raises(vmodl.fault.InvalidArgument):
        vm.QueryChangedDiskAreas(None, 2000, 0, "*")
    reconfigured(vm, changeTrackingEnabled=True)
    write(lab, "ds1/web/web-flat.vmdk", 3 * MIB, b"x" * 1000)
    everything = vm.QueryChangedDiskAreas(None, 2000, 0, "*")
    assert [(one.start, one.length) for one in everything.changedArea] == [(3 * MIB, 65536)]
    assert everything.length == 8 * MIB
    snapshot = snapped(vm)
    change_id = disks_of(snapshot.config)[0].backing.changeId
    assert change_id.startswith("52 ") and change_id.endswith("/1")
    assert disks_of(vm.config)[0].backing.changeId is None
    answer = vm.QueryChangedDiskAreas(snapshot, 2000, 0, change_id)
    assert (answer.changedArea, answer.length) == ([], 8 * MIB)
    for arguments, name in (
        ((2001, 0, change_id), "deviceKey"),
        ((2000, 8 * MIB, change_id), "startOffset"),
        ((2000, 0, "nonsense"), "changeId"),
    ):
        with pytest.raises(vmodl.fault.InvalidArgument) as caught:
            vm.QueryChangedDiskAreas(snapshot, *arguments)
        assert caught.value.invalidProperty == name
    other = change_id.replace("52 ", "52 0", 1)[:50].replace("0", "1")
    with pytest.raises((vim.fault.FileFault, vmodl.fault.InvalidArgument)):
        vm.QueryChangedDiskAreas(snapshot, 2000, 0, other)
    lab.faults.arm(FaultName.CBT_RESET)
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(snapshot, 2000, 0, change_id)
    removed(snapshot)
    with pytest.raises((vim.fault.NotFound, vmodl.fault.ManagedObjectNotFound)):
        vm.QueryChangedDiskAreas(snapshot, 2000, 0, change_id)


def test_tracking_enabled_under_a_snapshot_refuses_the_allocated_areas(lab: Practice) -> None:
    """It is allowed, and bad, as on a real host."""
    vm = lab.create("web", disk())
    old = snapped(vm, "old")
    reconfigured(vm, changeTrackingEnabled=True)
    new = snapped(vm, "new")
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(new, 2000, 0, "*")
    removed(old, children=True)


def test_a_grown_disk_starts_its_tracking_over(lab: Practice) -> None:
    """Its old changeIds are of another disk."""
    vm = lab.create("web", disk(size_bytes=8 * MIB))
    reconfigured(vm, changeTrackingEnabled=True)
    snapshot = snapped(vm)
    change_id = disks_of(snapshot.config)[0].backing.changeId
    larger = disks_of(vm.config)[0]
    larger.capacityInKB, larger.capacityInBytes = 16384, 16 * MIB
    edit = vim.vm.device.VirtualDeviceSpec(operation="edit", device=larger)
    with pytest.raises(vim.fault.InvalidDeviceSpec):  # a disk with snapshots cannot grow
        reconfigured(vm, edit)
    removed(snapshot)
    larger.backing.fileName = disks_of(vm.config)[0].backing.fileName
    reconfigured(vm, edit)
    assert (lab.folder / "ds1/web/web-flat.vmdk").stat().st_size == 16 * MIB
    snapshot = snapped(vm)
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(snapshot, 2000, 0, change_id)


def test_snapshots_go_32_levels_deep_and_no_further(lab: Practice) -> None:
    """And all of them can be removed at once."""
    vm = lab.create("web", disk(size_bytes=MIB))
    for level in range(32):
        snapped(vm, f"level {level}")
    with pytest.raises(vim.fault.TooManySnapshotLevels):
        snapped(vm, "too deep")
    done(vm.RemoveAllSnapshots_Task())
    assert vm.snapshot is None
    assert disks_of(vm.config)[0].backing.fileName == "[ds1] web/web.vmdk"


def test_independent_and_shared_disks_are_not_part_of_a_snapshot(lab: Practice) -> None:
    """The one stays as it is, the other forbids the snapshot."""
    vm = lab.create("web", disk(), disk(mode="independent_persistent"))
    reconfigured(vm, changeTrackingEnabled=True)
    snapshot = snapped(vm)
    frozen = disks_of(snapshot.config)
    assert [bool(one.backing.changeId) for one in frozen] == [True, False]
    names = [one.backing.fileName for one in disks_of(vm.config)]
    assert names == ["[ds1] web/web-000001.vmdk", "[ds1] web/web_1.vmdk"]
    shared = disk()
    shared.device.backing.sharing = "sharingMultiWriter"
    other = lab.create("cluster", shared)
    with pytest.raises(vim.fault.SnapshotIncompatibleDeviceInVm):
        snapped(other)


def test_a_revert_brings_back_disk_and_settings(lab: Practice) -> None:
    """And what was written since is in no file."""
    vm = lab.create("web", disk(), annotation="before")
    write(lab, "ds1/web/web-flat.vmdk", 0, b"before")
    snapshot = snapped(vm)
    reconfigured(vm, annotation="after")
    second = snapped(vm, "second")
    done(snapshot.RevertToSnapshot_Task())
    assert vm.config.annotation == "before"
    assert vm.snapshot.currentSnapshot == snapshot
    removed(second)
    removed(snapshot)
    assert files(lab, "ds1/web").count("web.vmdk") == 1
    assert not [name for name in files(lab, "ds1/web") if "-0000" in name]
    assert disks_of(vm.config)[0].backing.fileName == "[ds1] web/web.vmdk"


def test_a_registered_machine_is_what_its_files_say(lab: Practice) -> None:
    """Devices, snapshots and change ids come back; bad files are refused."""
    vm = lab.create("web", disk(size_bytes=8 * MIB), annotation="kept")
    reconfigured(vm, changeTrackingEnabled=True)
    snapshot = snapped(vm, "kept too")
    change_id = disks_of(snapshot.config)[0].backing.changeId
    folder, pool = vm.parent, vm.resourcePool
    path, instance = vm.config.files.vmPathName, vm.config.instanceUuid

    def register(where: str, name: str | None = None) -> Any:
        return done(folder.RegisterVM_Task(where, name, False, pool, None))

    with pytest.raises(vim.fault.AlreadyExists):
        register(path)
    vm.UnregisterVM()
    for place, fault in (
        ("[ds1] web/none.vmx", vim.fault.NotFound),
        ("[ds1] web/web.vmsd", vim.fault.InvalidVmConfig),
        ("[none] web/web.vmx", vim.fault.InvalidDatastore),
        ("web.vmx", vim.fault.InvalidDatastorePath),
    ):
        with pytest.raises(fault):
            register(place)
    with pytest.raises(vim.fault.InvalidName):
        register(path, "n" * 81)
    again = register(path, "renamed")
    assert (again.name, again.config.annotation) == ("renamed", "kept")
    assert again.config.instanceUuid == instance and again._moId != vm._moId
    tree = again.snapshot.rootSnapshotList[0]
    assert tree.name == "kept too"
    assert disks_of(tree.snapshot.config)[0].backing.changeId == change_id
    again.QueryChangedDiskAreas(tree.snapshot, 2000, 0, change_id)
    (lab.folder / "ds1/web/web.vmx").write_text("not a setting\n")
    again.UnregisterVM()
    with pytest.raises(vim.fault.InvalidVmConfig):
        register(path)


def test_a_machine_that_is_off_moves_with_its_snapshots(lab: Practice) -> None:
    """One disk may go elsewhere than the rest."""
    vm = lab.create("web", disk(size_bytes=MIB), disk(size_bytes=MIB))
    write(lab, "ds1/web/web-flat.vmdk", 4096, b"content")
    snapshot = snapped(vm)
    target = next(one for one in lab.inventory.datastores if one.name == "ds2").ref
    home = next(one for one in lab.inventory.datastores if one.name == "ds1").ref
    locator = vim.vm.RelocateSpec.DiskLocator(diskId=2001, datastore=home)
    done(vm.RelocateVM_Task(vim.vm.RelocateSpec(datastore=target, disk=[locator])))
    assert vm.config.files.vmPathName == "[ds2] web/web.vmx"
    names = [one.backing.fileName for one in disks_of(vm.config)]
    assert names == ["[ds2] web/web-000001.vmdk", "[ds1] web/web_1-000001.vmdk"]
    assert [one.backing.fileName for one in disks_of(snapshot.config)] == [
        *("[ds2] web/web.vmdk", "[ds1] web/web_1.vmdk")
    ]
    assert (lab.folder / "ds2/web/web-flat.vmdk").read_bytes()[4096:4103] == b"content"
    assert not [name for name in files(lab, "ds1/web") if name.startswith("web-")]
    removed(snapshot)
    assert sorted(one.name for one in vm.datastore) == ["ds1", "ds2"]


def test_what_the_lab_does_not_have_is_said(lab: Practice) -> None:
    """Suspending, unknown devices, machines with EFI."""
    vm = lab.create("web", firmware="efi")
    for call in (vm.SuspendVM_Task, vm.ResetVM_Task):
        with pytest.raises((vmodl.fault.NotSupported, vim.fault.InvalidPowerState)):
            done(call())
    with pytest.raises(vim.fault.DeviceUnsupportedForVmPlatform):
        reconfigured(vm, added(vim.vm.device.VirtualTPM(key=-1)))
    with pytest.raises(vim.fault.GenericVmConfigFault):
        done(vm.PowerOnVM_Task())
    with pytest.raises(vim.fault.InvalidPowerState):
        vm.ShutdownGuest()


def test_an_operation_under_way_refuses_the_next_and_can_be_cancelled(lab: Practice) -> None:
    """With TaskInProgress; what was cancelled has changed nothing."""
    vm = lab.create("web", disk())
    lab.faults.arm(FaultName.SNAPSHOT_STUCK)
    stuck = vm.CreateSnapshot_Task("stuck", "", False, False)
    assert lab.faults.wait_fired(FaultName.SNAPSHOT_STUCK)
    with pytest.raises(vim.fault.TaskInProgress):
        snapped(vm)
    stuck.CancelTask()
    with pytest.raises(vmodl.fault.RequestCanceled):
        done(stuck)
    assert vm.snapshot is None
    removed(snapped(vm))


def test_a_move_is_an_event_and_a_summary_has_the_sizes(lab: Practice) -> None:
    """For clients that look there."""
    vm = lab.create("web", disk())
    target = next(one for one in lab.inventory.datastores if one.name == "ds2").ref
    done(vm.RelocateVM_Task(vim.vm.RelocateSpec(datastore=target)))
    by_entity = vim.event.EventFilterSpec.ByEntity(entity=vm, recursion="self")
    events = lab.instance.content.eventManager.QueryEvents(
        vim.event.EventFilterSpec(entity=by_entity)
    )
    assert any(isinstance(one, vim.event.VmRelocatedEvent) for one in events)
    summary = vm.summary
    assert summary.config.vmPathName == "[ds2] web/web.vmx"
    assert summary.config.numVirtualDisks == 1 and summary.storage.uncommitted >= 8 * MIB


# ---------------------------------------------------------------- hot-add


@pytest.fixture
def device_root(lab: Practice) -> Path:
    needs_loop_devices()
    root = lab.folder / "root"
    add_appliance(lab.inventory, "appliance", root, controllers=2)
    return root


def hot_add(
    lab: Practice, file: str, mode: str, *, unit: int = 3, size_bytes: int = 8 * MIB
) -> None:
    change = disk(controller=1001, unit=unit, file=file, mode=mode, size_bytes=size_bytes)
    reconfigured(lab.machine("appliance"), change)


def hot_remove(lab: Practice, file: str) -> None:
    appliance = lab.machine("appliance")
    device = next(d for d in disks_of(appliance.config) if d.backing.fileName == file)
    reconfigured(appliance, vim.vm.device.VirtualDeviceSpec(operation="remove", device=device))


def test_a_hot_added_disk_is_a_block_device_with_the_frozen_content(
    lab: Practice, device_root: Path
) -> None:
    """Through the chain; what is written to a nonpersistent one never reaches the source."""
    vm = lab.create("web", disk(size_bytes=8 * MIB))
    write(lab, "ds1/web/web-flat.vmdk", MIB, b"base" * 1024)
    first = snapped(vm)
    delta = lab.folder / "ds1/web/web-000001-delta.vmdk"
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 2M 64k", str(delta)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    second = snapped(vm, "second")
    file = disks_of(second.config)[0].backing.fileName
    before = {name: (lab.folder / "ds1/web" / name).read_bytes() for name in files(lab, "ds1/web")}
    hot_add(lab, file, "independent_nonpersistent")
    node = device_root / "dev/sdb"
    assert node.resolve().is_block_device()
    assert (device_root / "sys/block/sdb/size").read_text() == f"{8 * MIB // 512}\n"
    with node.open("r+b") as device:
        content = device.read()
        assert content[MIB : MIB + 4096] == b"base" * 1024
        assert content[2 * MIB : 2 * MIB + 65536] == b"\7" * 65536
        assert len(content) == 8 * MIB and content[4 * MIB :] == bytes(4 * MIB)
        device.seek(0)
        device.write(b"scribble" * 512)
        device.flush()
        os.fsync(device.fileno())
    # Removing the snapshot under the reader leaves a redo log that nobody could merge.
    removed(second)
    assert vm.runtime.consolidationNeeded
    hot_remove(lab, file)
    assert not node.exists()
    for name, data in before.items():
        if name.endswith(("flat.vmdk", "delta.vmdk")):
            assert (lab.folder / "ds1/web" / name).read_bytes() == data
    assert not [name for name in files(lab, "ds1/web") if "REDO" in name]
    done(vm.ConsolidateVMDisks_Task())
    assert not vm.runtime.consolidationNeeded
    removed(first)
    assert release_loops_below(lab.folder) == []


def test_a_persistent_hot_add_writes_to_the_file_and_voids_its_tracking(
    lab: Practice, device_root: Path
) -> None:
    """While it is attached nobody else may have the disk."""
    vm = lab.create("web", disk(size_bytes=8 * MIB))
    reconfigured(vm, changeTrackingEnabled=True)
    snapshot = snapped(vm)
    change_id = disks_of(snapshot.config)[0].backing.changeId
    removed(snapshot)
    hot_add(lab, "[ds1] web/web.vmdk", "persistent")
    with (device_root / "dev/sdb").open("r+b") as device:
        device.write(b"restored" * 512)
        device.flush()
        os.fsync(device.fileno())
    with pytest.raises(vim.fault.FileLocked):
        done(vm.PowerOnVM_Task())
    with pytest.raises(vim.fault.FileLocked):
        done(vm.Destroy_Task())
    hot_remove(lab, "[ds1] web/web.vmdk")
    assert (lab.folder / "ds1/web/web-flat.vmdk").read_bytes()[:4096] == b"restored" * 512
    snapshot = snapped(vm)
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(snapshot, 2000, 0, change_id)


def test_hot_add_refusals_and_faults(lab: Practice, device_root: Path) -> None:
    """IDE and double attachment are refused; a device may not appear, or be another disk's."""
    vm = lab.create("web", disk(size_bytes=8 * MIB))
    frozen = disks_of(snapped(vm).config)[0].backing.fileName
    appliance = lab.machine("appliance")
    with pytest.raises(vim.fault.DeviceHotPlugNotSupported):
        reconfigured(appliance, disk(controller=200, unit=0, file=frozen))
    with pytest.raises(vmodl.fault.NotSupported):
        snapped(appliance)
    hot_add(lab, frozen, "independent_nonpersistent")
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        hot_add(lab, frozen, "independent_nonpersistent", unit=4)
    lab.faults.arm(FaultName.HOT_REMOVE_FAILURE)
    with pytest.raises(vim.fault.DeviceHotPlugNotSupported):
        hot_remove(lab, frozen)
    assert (device_root / "dev/sdb").exists()
    hot_remove(lab, frozen)
    lab.faults.arm(FaultName.HOT_ADD_NEVER_APPEARS)
    hot_add(lab, frozen, "independent_nonpersistent")
    assert not (device_root / "dev/sdb").exists()
    hot_remove(lab, frozen)
    lab.faults.arm(FaultName.HOT_ADD_WRONG_DISK)
    hot_add(lab, frozen, "independent_nonpersistent")
    wwid = (device_root / "sys/block/sdb/device/wwid").read_text().strip()
    real = disks_of(vm.config)[0].backing.uuid.replace("-", "")
    assert wwid != f"naa.{real}"


def test_the_end_of_the_lab_takes_every_loop_device_with_it(tmp_path: Path) -> None:
    """Also those of disks that were still attached."""
    needs_loop_devices()
    with practice("ds1") as lab:
        vm = lab.create("web", disk(size_bytes=8 * MIB))
        add_appliance(lab.inventory, "appliance", lab.folder / "root", controllers=2)
        hot_add(lab, disks_of(vm.config)[0].backing.fileName, "persistent")
        folder = lab.folder
    assert str(folder) not in loops()
    assert str(folder) not in Path("/proc/mounts").read_text()
    assert not folder.exists()


@pytest.mark.timeout(60)
def test_what_a_killed_lab_left_goes_when_the_next_one_starts(tmp_path: Path) -> None:
    """Its loop device and its mount; those of a living lab stay."""
    needs_loop_devices()
    script = """
import sys
from tests.integration.test_lab_machines import *
with practice("ds1") as lab:
    vm = lab.create("web", disk(size_bytes=8 * MIB))
    add_appliance(lab.inventory, "appliance", lab.folder / "root", controllers=2)
    hot_add(lab, disks_of(vm.config)[0].backing.fileName, "persistent")
    print(lab.folder, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        left = killed.stdout.readline().strip()
        try:
            assert left in loops()
            release_dead_exports()
            assert left in loops()
        finally:
            killed.kill()
            killed.wait()
    (export,) = re.findall(rf"{left}\S+", loops())
    while not_dead(export):  # the kernel tears the daemon down in its own time
        os.sched_yield()
    with practice("ds1") as lab:
        add_appliance(lab.inventory, "appliance", lab.folder / "root")
        assert left not in loops()
        assert left not in Path("/proc/mounts").read_text()
    shutil.rmtree(left)


def not_dead(export: str) -> bool:
    try:
        Path(export).stat()
    except OSError:
        return False
    return True


def loops() -> str:
    listed = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True)
    return listed.stdout


def test_another_datacenters_disk_cannot_be_attached(lab: Practice, tmp_path: Path) -> None:
    """Its datastore is no datastore here."""
    place = tmp_path / "far"
    place.mkdir()
    far = build_inventory(lab.vcenter, datacenter="DC1", stores=[LabDatastore("far", place)])
    library = give_library(far, lab.folder / "run2")
    try:
        vm = lab.create("web")
        with pytest.raises(vim.fault.InvalidDatastore):
            reconfigured(vm, disk(controller=1000, file="[far] x/x.vmdk"))
    finally:
        library.close()
