"""Hot-add: the right disk, attached without touching its file, and always given back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support.guest_scsi import GuestScsi
from tests.support.inventories import a_disk, a_vm
from tests.support.scripted_appliance import (
    PRODUCT_UUID,
    SWAPPED_UUID,
    BackingFile,
    ScriptedAppliance,
    ScriptedSearch,
)
from tests.support.scripted_vcenter import ScriptedVcenter
from vmware.datastores import DatastoreFacts
from vmware.errors import FileFaultError, TransportError, UnsupportedError, VsphereError
from vmware.patience import Patience
from vmware.transports import hot_add
from vmware.transports.appliance_disks import (
    ApplianceDisks,
    DeviceNotFoundError,
    NoSlotError,
)
from vmware.transports.appliance_vm import readings
from vmware.transports.attach_intent import AttachIntent, parse_intent
from vmware.transports.contract import DiskRequest
from vmware.transports.hot_add import HotAdd

FILE = "[ds] web/web.vmdk"
UUID = "6000C29a-b3d1-4a01-9c5f-0123456789ab"
CONTENT = bytes(range(256)) * 64
DISK = a_disk(file_name=FILE, backing_uuid=UUID, capacity_bytes=len(CONTENT))
VM = a_vm(disks=(DISK,))


class Journal:
    """Intents in the order of events: `+` recorded, `-` forgotten."""

    def __init__(self, appliance: ScriptedAppliance) -> None:
        self.open: list[AttachIntent] = []
        self.seen: list[AttachIntent] = []
        self._appliance = appliance

    def __call__(self, intent: AttachIntent) -> Callable[[], None]:
        assert intent.file_name not in self._appliance.attached, "recorded after the call"
        self.open.append(intent)
        self.seen.append(intent)
        return lambda: self.open.remove(intent)


class World:
    def __init__(self, root: Path) -> None:
        self.server = ScriptedVcenter()
        self.guest = GuestScsi(root, product_uuid=PRODUCT_UUID)
        self.appliance = ScriptedAppliance(self.server, self.guest)
        self.appliance.files[FILE] = BackingFile(content=CONTENT, uuid=UUID)
        self.journal = Journal(self.appliance)
        self.waited = 0
        disks = ApplianceDisks(device_root=root, patience=Patience(wait=self._wait))
        self.transport = HotAdd(disks, run_id="run-1", record=self.journal)

    def _wait(self, seconds: float) -> None:
        self.waited += 1
        if self.on_wait:
            self.on_wait()

    on_wait: Callable[[], None] | None = None

    def request(self, **disk: Any) -> DiskRequest:
        return DiskRequest(
            session=self.server.session(),
            vm=VM,
            snapshot_moref="snapshot-1",
            disk=replace(DISK, **disk),
        )

    def is_clean(self) -> bool:
        return self.appliance.attached == [] and self.journal.open == []


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class TestReading:
    def test_the_disk_is_read_and_given_back(self, world: World) -> None:
        """Attached nonpersistent, read whole, forgotten by the kernel, detached, intent closed."""
        reader = world.transport.open(world.request())
        assert reader.read_at(0, len(CONTENT)) == CONTENT
        assert world.appliance.attached == [FILE]
        assert world.appliance.modes == ["independent_nonpersistent"]
        assert [i.run_id for i in world.journal.open] == ["run-1"]
        reader.close()
        assert world.guest.let_go == ["sdb"]
        assert world.is_clean()

    def test_several_disks_hang_at_once(self, world: World) -> None:
        """Each on a place of its own."""
        readers = []
        for number in range(3):
            name = f"[ds] web/web_{number}.vmdk"
            content = bytes([number]) * 8192
            uuid = UUID[:-1] + str(number)
            world.appliance.files[name] = BackingFile(content=content, uuid=uuid)
            request = world.request(file_name=name, backing_uuid=uuid, capacity_bytes=8192)
            readers.append((world.transport.open(request), content))
        for reader, content in readers:
            assert reader.read_at(0, 8192) == content
            reader.close()
        assert len({intent.slot for intent in world.journal.seen}) == 3
        assert world.is_clean()

    def test_a_device_that_comes_late_is_waited_for(self, world: World) -> None:
        """Rescans help; up to a minute."""
        world.appliance.appears = False

        def appear() -> None:
            if world.waited == 20:
                world.guest.plug(CONTENT, unit=1, uuid=UUID)
                world.appliance.appears = True

        world.on_wait = appear
        reader = world.transport.open(world.request())
        assert world.guest.rescans() == 2
        reader.close()
        assert world.is_clean()

    def test_a_device_that_never_comes_is_given_up(self, world: World) -> None:
        """The disk is taken off again, so the VM's snapshot can be removed."""
        world.appliance.appears = False
        with pytest.raises(DeviceNotFoundError):
            world.transport.open(world.request())
        assert world.is_clean()

    @pytest.mark.parametrize(
        "shown", [{"shown_uuid": UUID[:-1] + "0"}, {"shown_size": len(CONTENT) + 512}]
    )
    def test_another_disk_is_never_read(self, world: World, shown: dict[str, Any]) -> None:
        """A device in the right place with the wrong uuid or size is somebody else's."""
        world.appliance.files[FILE] = BackingFile(content=CONTENT, uuid=UUID, **shown)
        with pytest.raises(DeviceNotFoundError):
            world.transport.open(world.request())
        assert world.is_clean()

    def test_a_device_that_cannot_be_read_leaves_nothing(self, world: World) -> None:
        """The first bytes are read at once, so that another transport can take over."""
        world.appliance.files[FILE] = BackingFile(
            content=CONTENT[:512], uuid=UUID, shown_size=len(CONTENT)
        )
        with pytest.raises(TransportError):
            world.transport.open(world.request())
        assert world.is_clean()

    def test_closing_twice_detaches_once(self, world: World) -> None:
        """`close` is idempotent."""
        reader = world.transport.open(world.request())
        reader.close()
        reader.close()
        assert [m for _, m in world.server.calls].count("ReconfigVM_Task") == 2

    def test_a_disk_that_cannot_be_detached_stays_in_the_journal(self, world: World) -> None:
        """`close` does not raise; the orphan clean-up has its intent."""
        reader = world.transport.open(world.request())
        world.server.fail("ReconfigVM_Task", *[vim.fault.NoPermission()] * 10)
        reader.close()
        assert world.appliance.attached == [FILE]
        assert len(world.journal.open) == 1


class TestAttaching:
    def test_a_busy_appliance_is_waited_for(self, world: World) -> None:
        """Reconfigures of one VM exclude each other."""
        world.server.fail_task("ReconfigVM_Task", vim.fault.TaskInProgress())
        world.server.fail("ReconfigVM_Task", vim.fault.TaskInProgress())
        world.transport.open(world.request()).close()
        assert world.is_clean()

    def test_a_lost_reply_is_an_attach(self, world: World) -> None:
        """The device list decides; nothing is attached twice."""

        def lost(real: Callable[[], Any]) -> Any:
            real()
            raise ConnectionResetError

        world.server.hook("ReconfigVM_Task", lost)
        reader = world.transport.open(world.request())
        assert world.appliance.attached == [FILE]
        reader.close()
        assert world.is_clean()

    def test_nothing_is_concluded_while_the_task_still_runs(self, world: World) -> None:
        """After a lost reply the disk may be attached only later: it would hang for ever."""
        running = world.server.task(kind="VirtualMachine.reconfigure")
        task = world.server.objects[running._GetMoId()]

        def lost(real: Callable[[], Any]) -> Any:
            task.values["info.state"] = "running"
            world.appliance.values["recentTask"] = [running]

            def later() -> None:
                if world.waited == 5:
                    real()
                    task.values["info.state"] = "success"

            world.on_wait = later
            raise ConnectionResetError

        world.server.hook("ReconfigVM_Task", lost)
        reader = world.transport.open(world.request())
        assert world.appliance.attached == [FILE]
        reader.close()
        assert world.is_clean()

    def test_a_detach_whose_reply_is_lost_is_a_detach(self, world: World) -> None:
        """The intent goes, as the disk has gone."""
        reader = world.transport.open(world.request())

        def lost(real: Callable[[], Any]) -> Any:
            real()
            raise ConnectionResetError

        world.server.hook("ReconfigVM_Task", lost)
        reader.close()
        assert world.is_clean()

    def test_a_detach_whose_task_vanished_is_looked_after(self, world: World) -> None:
        """A vCenter that restarts forgets its tasks; that is not the appliance being gone."""
        reader = world.transport.open(world.request())

        def forget(_: Callable[[], Any]) -> Any:
            task = world.server.task(kind="VirtualMachine.reconfigure")
            del world.server.objects[task._GetMoId()]
            return task

        world.server.hook("ReconfigVM_Task", forget)
        reader.close()
        assert world.is_clean()

    def test_a_server_that_stays_away_keeps_the_intent(self, world: World) -> None:
        """Nobody knows whether the disk hangs there; the clean-up will look."""

        def away(_: Callable[[], Any]) -> Any:
            del world.server.objects["vm-9"]
            raise ConnectionResetError

        world.server.hook("ReconfigVM_Task", away)
        with pytest.raises(VsphereError):
            world.transport.open(world.request())
        assert len(world.journal.open) == 1

    def test_a_place_that_another_process_took_is_left_to_it(self, world: World) -> None:
        """The next free place is tried, with an intent of its own."""
        theirs = "[ds] db/db.vmdk"
        world.appliance.files[theirs] = BackingFile(content=CONTENT, uuid=UUID[:-1] + "0")

        def quicker(real: Callable[[], Any]) -> Any:
            world.appliance._add(
                vim.vm.device.VirtualDisk(
                    key=-1,
                    controllerKey=1000,
                    unitNumber=1,
                    capacityInKB=len(CONTENT) // 1024,
                    backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                        fileName=theirs, diskMode="persistent"
                    ),
                )
            )
            return real()

        world.server.hook("ReconfigVM_Task", quicker)
        reader = world.transport.open(world.request())
        assert [intent.slot.unit_number for intent in world.journal.seen] == [1, 2]
        reader.close()
        assert world.appliance.attached == [theirs]
        assert world.journal.open == []

    def test_a_refused_attach_leaves_nothing(self, world: World) -> None:
        """A file that is not there is the server's to say."""
        with pytest.raises(FileFaultError):
            world.transport.open(world.request(file_name="[ds] gone.vmdk"))
        assert world.is_clean()

    def test_a_full_appliance_is_an_error_before_anything_is_recorded(self, world: World) -> None:
        """15 disks on one controller are all there can be."""
        world.appliance.appears = False
        for unit in [n for n in range(1, 16) if n != 7]:
            name = f"[ds] {unit}.vmdk"
            world.appliance.files[name] = BackingFile(content=b"")
            backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
                fileName=name, diskMode="persistent"
            )
            disk = vim.vm.device.VirtualDisk(
                key=-1, controllerKey=1000, unitNumber=unit, capacityInKB=0, backing=backing
            )
            assert world.appliance._add(disk) is None
        with pytest.raises(NoSlotError):
            world.transport.open(world.request())
        assert world.journal.seen == []

    def test_a_disk_in_our_place_that_is_not_our_file_is_never_detached(self, world: World) -> None:
        """Somebody may have taken ours off and put another one there."""
        reader = world.transport.open(world.request())
        devices = world.appliance.values["config.hardware.device"]
        devices[-1].backing.fileName = "[ds] other.vmdk"
        reader.close()
        assert world.appliance.attached == ["[ds] other.vmdk"]


class TestWriting:
    def test_what_is_written_is_on_the_disk(self, world: World, tmp_path: Path) -> None:
        """Attached persistent; durable and detached once closed."""
        target = tmp_path / "target-flat"
        target.write_bytes(bytes(len(CONTENT)))
        world.appliance.files[FILE] = BackingFile(content=target, uuid=UUID)
        request = world.request()
        with fixed_facts():
            writer = world.transport.open_writer(request.session, VM, request.disk, empty=True)
        assert world.appliance.modes == ["persistent"]
        writer.write_at(100, CONTENT[100:5000])
        writer.zero_at(1000, 500)
        writer.flush()
        writer.close()
        expected = bytes(100) + CONTENT[100:1000] + bytes(500) + CONTENT[1500:5000]
        assert target.read_bytes() == expected.ljust(len(CONTENT), b"\0")
        assert world.is_clean()

    def test_a_disk_that_cannot_be_detached_is_an_error(self, world: World) -> None:
        """A VM is not started on a disk that hangs elsewhere too."""
        request = world.request()
        with fixed_facts():
            writer = world.transport.open_writer(request.session, VM, request.disk, empty=True)
        world.server.fail("ReconfigVM_Task", *[vim.fault.NoPermission()] * 10)
        with pytest.raises(VsphereError):
            writer.close()

    def test_what_is_refused_for_reading_is_refused_for_writing(self, world: World) -> None:
        """The same places are out of reach."""
        disk = world.request(controller_family="ide").disk
        with pytest.raises(UnsupportedError, match="IDE"):
            world.transport.open_writer(world.server.session(), VM, disk, empty=True)


STORE = DatastoreFacts(
    moref="datastore-1",
    name="ds",
    kind="VMFS",
    accessible=True,
    free_bytes=1 << 40,
    capacity_bytes=1 << 41,
    writable_hosts=frozenset({"host-1", "host-2"}),
    url="",
)
APPLIANCE = a_vm(moref="vm-9", name="appliance", host_moref="host-2")


def fixed_facts(
    appliance: Any = APPLIANCE, stores: tuple[DatastoreFacts, ...] = (STORE,), own: Any = None
) -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(hot_add, "read_vm", lambda *_: appliance)
    answers = {"vm-1": stores, "vm-9": own if own is not None else stores}
    patch.setattr(hot_add, "datastores_of", lambda _, moref: answers[moref])

    class Undo:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            patch.undo()

    return Undo()


class TestRefusal:
    def code(self, world: World, request: DiskRequest | None = None, **facts: Any) -> str | None:
        with fixed_facts(**facts):
            refusal = world.transport.refusal(request or world.request())
        return refusal.code if refusal else None

    def test_a_disk_within_reach_is_not_refused(self, world: World) -> None:
        """And nothing was attached to find out."""
        assert self.code(world) is None
        assert world.journal.seen == []

    @pytest.mark.parametrize(
        ("facts", "code"),
        [
            (
                {"appliance": replace(APPLIANCE, datacenter_moref="datacenter-2")},
                "transport.other-datacenter",
            ),
            ({"appliance": replace(APPLIANCE, moref="vm-1")}, "transport.own-disk"),
            (
                {"appliance": replace(APPLIANCE, host_moref="host-3")},
                "transport.datastore-out-of-reach",
            ),
            ({"stores": ()}, "transport.datastore-out-of-reach"),
            ({"stores": (replace(STORE, kind="NFS"),)}, "transport.nfs-other-host"),
            (
                {"stores": (replace(STORE, kind="vsan"),), "own": (STORE,)},
                "transport.appliance-not-on-vsan",
            ),
        ],
    )
    def test_what_would_fail_or_hurt_is_refused(
        self, world: World, facts: dict[str, Any], code: str
    ) -> None:
        """Each with its code and its next step."""
        assert self.code(world, **facts) == code

    @pytest.mark.parametrize(
        "facts",
        [
            {
                "stores": (replace(STORE, kind="NFS"),),
                "appliance": replace(APPLIANCE, host_moref="host-1"),
            },
            {"stores": (replace(STORE, kind="NFS41"),)},
            {"stores": (replace(STORE, kind="vsan"),)},
        ],
    )
    def test_what_works_is_not_refused(self, world: World, facts: dict[str, Any]) -> None:
        """NFS 3 on the VM's own host, NFS 4.1, and vSAN to vSAN."""
        assert self.code(world, **facts) is None

    @pytest.mark.parametrize(
        ("disk", "code"),
        [
            ({"controller_family": "ide"}, "transport.ide-disk"),
            ({"rdm_compatibility": "virtualMode"}, "transport.raw-device"),
            ({"chain": (FILE, "[elsewhere] base.vmdk")}, "transport.datastore-out-of-reach"),
        ],
    )
    def test_disks_that_cannot_be_added_are_refused(
        self, world: World, disk: dict[str, Any], code: str
    ) -> None:
        """The whole chain must be within reach."""
        assert self.code(world, world.request(**disk)) == code

    @pytest.mark.parametrize("found", [[], ["vm-9", "vm-10"]])
    def test_an_appliance_that_does_not_know_itself_is_refused(
        self, world: World, found: list[str]
    ) -> None:
        """In no VM of this vCenter, or a clone: nothing may be attached to the wrong VM."""
        search = ScriptedSearch(world.server, {PRODUCT_UUID: found})
        world.server.objects["search"] = search
        assert self.code(world) == "transport.appliance-not-here"
        with pytest.raises(UnsupportedError):
            world.transport.open(world.request())

    def test_both_byte_orders_of_the_uuid_find_it(self, world: World) -> None:
        """Newer firmware swaps the first three fields."""
        search = ScriptedSearch(world.server, {SWAPPED_UUID: ["vm-9"]})
        world.server.objects["search"] = search
        assert self.code(world) is None

    def test_a_server_that_fails_is_a_refusal(self, world: World) -> None:
        """Choosing goes on to the next transport."""
        world.server.fail("FindAllByUuid", vim.fault.NoPermission())
        assert self.code(world) == "vsphere.privilege"


@pytest.mark.parametrize("shown", ["", "no uuid", "0" * 32, "f" * 32])
def test_no_uuid_is_no_reading(shown: str) -> None:
    """All zeros and all ones mean: not set."""
    assert readings(shown) == ()


def test_an_intent_is_read_back_as_it_was_kept(world: World) -> None:
    """The journal's detail is all that is needed to take the disk off after a crash."""
    world.transport.open(world.request()).close()
    (intent,) = world.journal.seen
    assert parse_intent(intent.detail) == intent
    for other in ("", "[]", "{}", intent.detail[:-1], intent.detail + " ", "x" * 9999):
        assert parse_intent(other) is None
