"""Hot-add against the practice vCenter: its refusals, its devices and its faults are its own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyVmomi import vim

from lab.faults import FaultName
from lab.vcenter.virtual_machine_setup import add_appliance, add_guest
from tests.support.lab_machines import Practice, practice
from tests.support.needs import needs
from vmware.disks import DiskInfo
from vmware.disks import disks_of as disk_infos
from vmware.inventory import VmInfo, find_vms, read_vm
from vmware.marker import Marker
from vmware.orphans import OrphanOutcome, look, plan_orphans, remove_orphans
from vmware.patience import Patience
from vmware.properties import fetch_one
from vmware.session import Endpoint, Session
from vmware.snapshot_tree import list_snapshots
from vmware.snapshots import create_snapshot, remove_snapshot
from vmware.transports import appliance_disks
from vmware.transports.appliance_disks import ApplianceDisks, DeviceNotFoundError
from vmware.transports.attach_intent import AttachIntent
from vmware.transports.contract import DiskRequest
from vmware.transports.hot_add import HotAdd

pytestmark = pytest.mark.integration

MIB = 1 << 20
CONTENT = random.Random(4).randbytes(MIB) + bytes(2 * MIB) + random.Random(5).randbytes(MIB + 512)
MARKER = Marker(appliance_id="ours", run_id="run-1")


@dataclass
class World:
    lab: Practice
    session: Session
    disks: ApplianceDisks
    transport: HotAdd
    intents: list[AttachIntent]

    def vm(self, name: str = "web") -> VmInfo:
        (found,) = find_vms(self.session, [name])
        return found

    def frozen(self) -> tuple[str, DiskInfo]:
        """A snapshot of ours and the disk as it froze it."""
        taken = create_snapshot(self.session, self.vm().moref, MARKER)
        snapshot = self.session.object(vim.vm.Snapshot, taken.moref)
        path = "config.hardware.device"
        read = fetch_one(self.session, "read the snapshot", snapshot, (path,)).values
        return taken.moref, disk_infos(read[path])[0]

    def request(self) -> DiskRequest:
        snapshot, disk = self.frozen()
        return DiskRequest(session=self.session, vm=self.vm(), snapshot_moref=snapshot, disk=disk)

    def attached(self) -> int:
        """Disks on the appliance beside its own."""
        return len(self.vm("appliance").disks) - 1

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.lab.folder / "ds1/web").iterdir())

    def clean_up(self) -> None:
        for entry in list_snapshots(self.session, self.vm().moref):
            remove_snapshot(self.session, self.vm().moref, entry.moref, appliance_id="ours")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Practice, Path]]:
    needs("losetup", "qemu-storage-daemon", "qemu-img")
    image = tmp_path_factory.mktemp("image") / "web.raw"
    image.write_bytes(CONTENT)
    root = tmp_path_factory.mktemp("appliance") / "root"
    with practice("ds1", "ds2") as running:
        add_guest(running.inventory, "web", image)
        add_appliance(running.inventory, "appliance", root)
        yield running, root


def brief(seconds: float) -> None:
    time.sleep(min(seconds, 0.05))


@pytest.fixture
def world(lab: tuple[Practice, Path]) -> Iterator[World]:
    running, root = lab
    vcenter = running.vcenter
    endpoint = Endpoint(
        address=vcenter.address,
        port=vcenter.port,
        user=vcenter.user,
        fingerprint_sha256=vcenter.fingerprint,
    )
    intents: list[AttachIntent] = []

    def record(intent: AttachIntent) -> Callable[[], None]:
        intents.append(intent)
        return lambda: intents.remove(intent)

    disks = ApplianceDisks(device_root=root, patience=Patience(wait=brief))
    transport = HotAdd(disks, run_id="run-1", record=record)
    with Session.connect(endpoint, lambda: vcenter.password) as session:
        world = World(running, session, disks, transport, intents)
        before = world.files()
        yield world
        running.faults.disarm()
        assert world.attached() == 0
        assert world.intents == []
        world.clean_up()
        assert world.files() == before


def test_the_frozen_disk_is_read_whole_and_given_back(world: World) -> None:
    """Byte for byte what the datastore has; no disk and no redo log stays."""
    request = world.request()
    assert world.transport.refusal(request) is None
    reader = world.transport.open(request)
    assert reader.size_bytes == len(CONTENT)
    assert reader.read_at(0, len(CONTENT)) == CONTENT
    for offset in (1, 4095, MIB - 3, len(CONTENT) - 700):
        assert reader.read_at(offset, 700) == CONTENT[offset : offset + 700]
    assert world.attached() == 1
    reader.close()


def test_two_snapshots_of_one_disk_are_told_apart(world: World) -> None:
    """The same uuid and size twice, each on its own address."""
    readers = [world.transport.open(world.request()) for _ in range(2)]
    assert world.attached() == 2
    for reader in readers:
        assert reader.read_at(0, MIB) == CONTENT[:MIB]
        reader.close()


def test_a_device_that_never_appears_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reconfigure succeeded, so it is undone."""
    monkeypatch.setattr(appliance_disks, "APPEAR_WITHIN_S", 2.0)
    world.lab.faults.arm(FaultName.HOT_ADD_NEVER_APPEARS)
    with pytest.raises(DeviceNotFoundError):
        world.transport.open(world.request())


def test_another_disk_of_the_same_size_is_never_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its world-wide name is not the disk's uuid."""
    monkeypatch.setattr(appliance_disks, "APPEAR_WITHIN_S", 2.0)
    world.lab.faults.arm(FaultName.HOT_ADD_WRONG_DISK)
    with pytest.raises(DeviceNotFoundError):
        world.transport.open(world.request())


def test_an_attach_whose_reply_is_lost_is_found(world: World) -> None:
    """And detached like any other, also when that reply is lost."""
    request = world.request()
    world.lab.faults.arm(FaultName.LOST_TASK_REPLY, method="ReconfigVM_Task")
    reader = world.transport.open(request)
    assert reader.read_at(0, 512) == CONTENT[:512]
    assert world.attached() == 1
    world.lab.faults.arm(FaultName.LOST_TASK_REPLY, method="ReconfigVM_Task")
    reader.close()


def test_a_busy_appliance_and_a_lost_session_are_survived(world: World) -> None:
    """The next try works."""
    request = world.request()
    world.lab.faults.arm(FaultName.TASK_IN_PROGRESS, method="ReconfigVM_Task")
    world.lab.faults.arm(FaultName.SESSION_DROP, method="ReconfigVM_Task")
    reader = world.transport.open(request)
    assert reader.read_at(MIB, 512) == bytes(512)
    reader.close()


def test_a_disk_that_cannot_be_detached_is_taken_off_by_the_clean_up(world: World) -> None:
    """Its intent stays; the snapshot waits for the disk, and nothing is deleted."""
    request = world.request()
    reader = world.transport.open(request)
    world.lab.faults.arm(FaultName.HOT_REMOVE_FAILURE, times=None)
    reader.close()
    assert (world.attached(), len(world.intents)) == (1, 1)
    disk, snapshot = clean(world)
    assert disk.failure
    assert snapshot.failure
    world.lab.faults.disarm()
    assert [outcome.failure for outcome in clean(world)] == ["", ""]
    assert list_snapshots(world.session, world.vm().moref) == ()
    world.intents.clear()


def test_after_a_kill_a_lost_journal_is_no_harm(world: World) -> None:
    """The disk hangs nonpersistently from a file that a dead snapshot of ours froze."""
    world.transport.open(world.request())
    world.intents.clear()
    assert [outcome.failure for outcome in clean(world)] == ["", ""]
    assert (world.attached(), list_snapshots(world.session, world.vm().moref)) == (0, ())


def clean(world: World) -> tuple[OrphanOutcome, ...]:
    sight = look(world.session, "ours", world.disks)
    plan = plan_orphans(sight, world.intents, lambda _: False)
    return remove_orphans(world.session, plan, "ours", world.disks)


def test_a_disk_of_a_vm_that_is_off_is_written(world: World) -> None:
    """Persistent: what was written is in the datastore after close, and the disk is free again."""
    vm = world.vm()
    flat = world.lab.folder / "ds1/web/web-flat.vmdk"
    writer = world.transport.open_writer(world.session, vm, vm.disks[0], empty=False)
    writer.write_at(MIB + 100, b"holdfast" * 1000)
    writer.zero_at(0, 4096)
    writer.close()
    expected = bytearray(CONTENT)
    expected[MIB + 100 : MIB + 8100] = b"holdfast" * 1000
    expected[:4096] = bytes(4096)
    assert flat.read_bytes() == expected
    writer = world.transport.open_writer(world.session, vm, vm.disks[0], empty=False)
    writer.write_at(0, CONTENT)
    writer.close()
    assert flat.read_bytes() == CONTENT
    assert read_vm(world.session, vm.moref).disks == vm.disks
