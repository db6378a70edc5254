"""Recovery points become VMs again in the practice vCenter: new ones, and the one they are of."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyVmomi import vim

from appliance.base.errors import ApplianceError
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.jobs.cbt_audit import AuditPolicy
from appliance.jobs.disk_transfer import DiskOutcome
from appliance.jobs.read_plan import ReadMode
from appliance.jobs.rollback_checks import (
    DisksDifferError,
    HalfRolledBackError,
    OriginalGoneError,
    VmHasSnapshotsError,
    VmRunsError,
)
from appliance.jobs.rollback_contract import RollbackMode
from appliance.jobs.vm_restore import NotAVmPointError
from appliance.repository.manifest import Manifest
from appliance.sources.vsphere_transports import SourceTools
from appliance.targets.contract import NoSuchPlaceError, NoWriterError, WantedVmPlace
from lab.esx.vm_state import PowerState
from lab.faults import FaultName
from lab.guests import GuestKind, build
from lab.vcenter.local_call import call_method
from tests.support.lab_machines import disks_of, done, reconfigured, removed, snapped
from tests.support.needs import needs
from tests.support.restoring import (
    Restoring,
    appliance_tools,
    disk_content,
    left_overs,
    machine_named,
    restoring,
)
from tests.support.vm_lab import Guest, VmLab, backing_up, quick_tools, vm_lab

pytestmark = pytest.mark.integration

MIB = 1 << 20
WAYS = ["hot-add", "nfc-lease"]
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def lab() -> Iterator[VmLab]:
    needs("qemu-system-x86_64", "qemu-img", "qemu-storage-daemon", "losetup")
    with vm_lab() as running:
        yield running


@pytest.fixture(scope="module")
def tools(lab: VmLab, tmp_path_factory: pytest.TempPathFactory) -> SourceTools:
    """With an appliance that can take disks."""
    return appliance_tools(lab, tmp_path_factory.mktemp("appliance") / "root")


@pytest.fixture(scope="module")
def here(
    lab: VmLab, tools: SourceTools, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Restoring]:
    """With a point of a VM that has two disks."""
    image = tmp_path_factory.mktemp("images") / "disk.raw"
    noise = random.Random(5)
    image.write_bytes(
        noise.randbytes(3 * MIB) + bytes(9 * MIB) + noise.randbytes(MIB) + bytes(3 * MIB)
    )
    lab.add_machine("cold", image, extra_disks_bytes=(2 * MIB,))
    with backing_up(lab, tools) as backup:
        (result,) = backup.back_up("cold")
        assert result.backup is not None, result.error
    with restoring(lab, tools) as opened:
        yield opened


@pytest.mark.parametrize("way", WAYS)
def test_a_new_vm_has_the_points_disks_and_configuration(
    here: Restoring, lab: VmLab, way: str
) -> None:
    """Both ways of writing; nothing but the VM is new, and it carries no mark of ours."""
    before = left_overs(lab, here.catalog)
    point = here.point("cold")
    name = f"again-{way}"
    result = here.restore(point, name=name, transports=(way,))
    assert result.transport == way
    assert [disk.number for disk in result.disks] == [0, 1]
    assert disk_content(lab, name, 0) == here.content(point, 0)
    assert disk_content(lab, name, 1) == here.content(point, 1)
    old, new = machine_named(lab, "cold").engine.config, machine_named(lab, name).engine.config
    assert new.annotation == old.annotation
    assert (new.cpus, new.memory_mib, new.guest_id, new.firmware) == (
        old.cpus, old.memory_mib, old.guest_id, old.firmware
    )  # fmt: skip
    assert [(d.controller_key, d.unit) for d in new.disks] == [
        (d.controller_key, d.unit) for d in old.disks
    ]
    assert [(n.kind, n.network) for n in new.nics] == [(n.kind, n.network) for n in old.nics]
    assert {n.mac for n in new.nics} & {n.mac for n in old.nics} == set(), "the original is there"
    assert new.instance_uuid != old.instance_uuid and new.uuid != old.uuid
    after = left_overs(lab, here.catalog)
    assert set(after["vms"]) - set(before["vms"]) == {name}
    assert after["leases"] == after["intents"] == 0
    assert after["disks"]["appliance"] == before["disks"]["appliance"]


def test_a_lost_vm_comes_back_as_itself(here: Restoring, lab: VmLab, tmp_path: Path) -> None:
    """With its uuids and addresses, where the captured configuration says it was."""
    image = tmp_path / "disk.raw"
    image.write_bytes(random.Random(7).randbytes(MIB))
    machine = lab.add_machine("lost", image)
    with backing_up(lab) as backup:
        (result,) = backup.back_up("lost")
        assert result.backup is not None, result.error
    old = machine.engine.config
    done(lab.client_of(machine).Destroy_Task())
    here.restore(here.point("lost"), transports=("nfc-lease",))
    new = machine_named(lab, "lost").engine.config
    assert (new.uuid, new.instance_uuid) == (old.uuid, old.instance_uuid)
    assert [nic.mac for nic in new.nics] == [nic.mac for nic in old.nics]
    assert [disk.uuid for disk in new.disks] == [disk.uuid for disk in old.disks]
    assert new.vmx_path.datastore == old.vmx_path.datastore


def test_networks_are_mapped_by_name_or_left_unconnected(here: Restoring, lab: VmLab) -> None:
    """One that is not there is an error that names it and what there is, and nothing is made."""
    point = here.point("cold")
    before = left_overs(lab, here.catalog)
    with pytest.raises(NoSuchPlaceError, match=r"no network 'Nowhere'.*DC0_DVPG0"):
        here.restore(point, name="mapped", networks=(("VM Network", "Nowhere"),))
    with pytest.raises(NoSuchPlaceError, match="no network 'Elsewhere'"):
        here.restore(point, name="mapped", networks=(("Elsewhere", "VM Network"),))
    assert left_overs(lab, here.catalog) == before
    here.restore(point, name="mapped", networks=(("VM Network", "DC0_DVPG0"),))
    (nic,) = machine_named(lab, "mapped").engine.config.nics
    assert (nic.network, nic.start_connected) == ("DC0_DVPG0", True)
    here.restore(point, name="unconnected", unconnected=frozenset({"VM Network"}))
    (nic,) = machine_named(lab, "unconnected").engine.config.nics
    assert not nic.start_connected


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (WantedVmPlace(datastore="ds9"), "'ds9'"),
        (WantedVmPlace(folder="DC0/vm/nowhere"), "no folder"),
        (WantedVmPlace(folder="DC0/host"), "no folder for VMs"),
        (WantedVmPlace(machine="esx9"), "no host 'esx9'"),
        (WantedVmPlace(pool="DC0/host/DC0_C0/Silver"), "no resource pool"),
    ],
)
def test_a_place_that_is_not_there_is_refused_before_anything_is_made(
    here: Restoring, lab: VmLab, place: WantedVmPlace, message: str
) -> None:
    """By name, so that a typing error never sends a VM somewhere else."""
    before = left_overs(lab, here.catalog)
    with pytest.raises(NoSuchPlaceError, match=message):
        here.restore(here.point("cold"), name="nowhere", place=place)
    assert left_overs(lab, here.catalog) == before


def test_a_vm_goes_where_it_is_sent(here: Restoring, lab: VmLab) -> None:
    """Datastore, folder and host; under its name, though a part of it looks like an escape."""
    vms = lab.inventory.datacenter.vm_folder
    call_method(lab.vcenter, vms, "CreateFolder", "Restored")
    host = lab.inventory.hosts[1].name
    place = WantedVmPlace(datastore="ds2", folder="DC0/vm/Restored", machine=host)
    here.restore(here.point("cold"), name="sent 50%2foff", place=place)
    machine = machine_named(lab, "sent 50%2foff")
    assert machine.engine.config.vmx_path.datastore == "ds2"
    assert machine.parent is not None and machine.parent.name == "Restored"
    assert machine.host.name == host


def test_an_image_point_is_no_vm(here: Restoring, lab: VmLab, tmp_path: Path) -> None:
    """Its disks come back with `restore image`."""
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(MIB))
    lab.holdfast("backup", "image", "--vm", "plain", str(image))
    with pytest.raises(NotAVmPointError):
        here.restore(here.point("plain"))


# Guests


@pytest.fixture(scope="module")
def guest(here: Restoring, lab: VmLab) -> Guest:
    return lab.add_guest("web")


def back_up(lab: VmLab, tools: SourceTools, vm: str, *, full: bool = False) -> DiskOutcome:
    with backing_up(lab, tools) as backup:
        (result,) = backup.back_up(vm, audit=AuditPolicy(percent=0), full=full)
    assert result.backup is not None, result.error
    return result.backup.disks[0]


def test_a_restored_guest_boots(
    here: Restoring, lab: VmLab, guest: Guest, tools: SourceTools
) -> None:
    """Beside its original, which goes on running."""
    guest.write(2)
    back_up(lab, tools, "web")
    result = here.restore(here.point("web"), name="web-2", power_on=True)
    assert result.powered_on and result.transport == "hot-add"
    copy = Guest(lab, machine_named(lab, "web-2"))
    copy.wait_until_ready()
    guest.ask("sum", "SUM .*")
    done(copy.vm.PowerOffVM_Task())
    done(copy.vm.Destroy_Task())


def test_a_guest_is_rolled_back_by_writing_what_changed(
    here: Restoring, lab: VmLab, guest: Guest, tools: SourceTools
) -> None:
    """It holds exactly the point's bytes then, boots, and is read whole by the next backup."""
    back_up(lab, tools, "web")
    point = here.point("web")
    good = guest.ask("sum", "SUM .*")
    guest.write(3)
    assert guest.ask("sum", "SUM .*") != good
    with pytest.raises(VmRunsError):
        here.roll_back(point)
    result = here.roll_back(point, power_off=True)
    (disk,) = result.disks
    assert result.verified and disk.mode is RollbackMode.CHANGED
    assert 3 * MIB <= disk.written_bytes <= 16 * MIB
    assert disk_content(lab, "web") == here.content(point)
    assert lab.snapshots_of(guest.machine) == []
    done(guest.vm.PowerOnVM_Task(None))
    guest.wait_until_ready()
    assert guest.ask("sum", "SUM .*") == good
    assert back_up(lab, tools, "web").mode is ReadMode.COMPARED
    assert back_up(lab, tools, "web").mode is ReadMode.CHANGED


# A VM without a guest: quick, and what is written to its files is in no change list


@pytest.fixture
def soft(here: Restoring, lab: VmLab, tools: SourceTools, tmp_path: Path) -> Iterator[Manifest]:
    """A VM whose first point this is; its disk was changed since."""
    name = f"soft-{next(_numbers)}"
    image = tmp_path / "disk.raw"
    image.write_bytes(random.Random(8).randbytes(16 * MIB))
    machine = lab.add_machine(name, image)
    back_up(lab, tools, name)
    scribble(lab, name, 1)
    yield here.point(name)
    vm = lab.client_of(machine)
    if machine.engine.power is PowerState.ON:
        done(vm.PowerOffVM_Task())
    done(vm.Destroy_Task())


def scribble(lab: VmLab, name: str, seed: int) -> None:
    noise = random.Random(seed)
    with (lab.folder / "ds1" / name / f"{name}-flat.vmdk").open("r+b") as file:
        for offset in (MIB, 9 * MIB):
            file.seek(offset + seed * 4096)
            file.write(noise.randbytes(5000))


def test_what_a_change_list_missed_is_found_and_written(
    here: Restoring, lab: VmLab, soft: Manifest
) -> None:
    """The comparison afterwards does not believe it. Without it nobody would know."""
    blind = here.roll_back(soft, verify=False)
    assert not blind.verified and blind.disks[0].written_bytes == 0
    assert disk_content(lab, soft.vm) != here.content(soft)
    lab.faults.arm(FaultName.CBT_PARTIAL_LIST, None)
    try:
        result = here.roll_back(soft, power_on=True)
    finally:
        lab.faults.disarm()
    assert "restore.change-list-missed" in {reason.code for reason in result.reasons}
    assert result.verified and result.powered_on
    done(lab.client_of(machine_named(lab, soft.vm)).PowerOffVM_Task())
    assert disk_content(lab, soft.vm) == here.content(soft)


def test_without_a_change_list_the_disk_is_compared(
    here: Restoring, lab: VmLab, soft: Manifest
) -> None:
    """And only what differs is written all the same."""
    lab.faults.arm(FaultName.CBT_MISSING_LIST, None)
    try:
        result = here.roll_back(soft)
    finally:
        lab.faults.disarm()
    (disk,) = result.disks
    assert disk.mode is RollbackMode.COMPARED and disk.reasons
    assert 10_000 <= disk.written_bytes <= 4 * MIB
    assert disk_content(lab, soft.vm) == here.content(soft)
    assert left_overs(lab, here.catalog)["intents"] == 0


def test_a_broken_roll_back_is_ended_by_the_next_one(
    here: Restoring, lab: VmLab, tools: SourceTools, soft: Manifest
) -> None:
    """What the broken one may have written is written again, to whichever point."""
    lab.faults.arm(FaultName.CBT_MISSING_LIST, None)
    back_up(lab, tools, soft.vm, full=True)
    newer = here.point(soft.vm)
    assert here.content(newer) != here.content(soft)
    scribble(lab, soft.vm, 2)
    cancel = CancelToken()
    writes = CancellingWrites(cancel, after_bytes=16 * MIB)  # which comparing takes
    with pytest.raises(HalfRolledBackError):
        here.roll_back(soft, RunContext(cancel, writes))
    assert disk_content(lab, soft.vm) not in (here.content(soft), here.content(newer))
    assert lab.snapshots_of(machine_named(lab, soft.vm)) == []
    lab.faults.disarm()
    here.roll_back(newer, verify=False)
    assert disk_content(lab, soft.vm) == here.content(newer)
    here.roll_back(soft)
    assert disk_content(lab, soft.vm) == here.content(soft)


def test_a_roll_back_that_fails_before_it_writes_leaves_the_vm_running(
    here: Restoring, lab: VmLab, soft: Manifest
) -> None:
    """Here no snapshot can be made; the VM was powered off for it and is started again."""
    machine = machine_named(lab, soft.vm)
    done(lab.client_of(machine).PowerOnVM_Task(None))
    lab.faults.arm(FaultName.SNAPSHOT_FAILURE, None)
    try:
        with pytest.raises(ApplianceError):
            here.roll_back(soft, power_off=True)
    finally:
        lab.faults.disarm()
    assert machine.engine.power is PowerState.ON


def test_processors_memory_and_networks_are_set_back_if_wanted(
    here: Restoring, lab: VmLab, soft: Manifest
) -> None:
    """Only with `--configuration`."""
    machine = machine_named(lab, soft.vm)
    before = machine.engine.config
    reconfigured(lab.client_of(machine), memoryMB=before.memory_mib * 2, numCPUs=2)
    here.roll_back(soft)
    assert machine.engine.config.memory_mib == before.memory_mib * 2
    here.roll_back(soft, configuration=True)
    now = machine.engine.config
    assert (now.memory_mib, now.cpus) == (before.memory_mib, before.cpus)
    assert [(n.network, n.mac) for n in now.nics] == [(n.network, n.mac) for n in before.nics]


def test_a_vm_that_is_not_the_points_any_more_is_not_written(here: Restoring, lab: VmLab) -> None:
    """With a snapshot of somebody, with another disk size, or gone."""
    point = here.point("cold")
    machine = machine_named(lab, "cold")
    vm = lab.client_of(machine)
    before = disk_content(lab, "cold")
    snapshot = snapped(vm, "by-hand")
    with pytest.raises(VmHasSnapshotsError):
        here.roll_back(point)
    removed(snapshot)
    second = next(d for d in disks_of(vm.config) if d.unitNumber == 1)
    second.capacityInKB, second.capacityInBytes = 4 << 10, 4 << 20
    reconfigured(vm, vim.vm.device.VirtualDeviceSpec(operation="edit", device=second))
    with pytest.raises(DisksDifferError):
        here.roll_back(point)
    assert disk_content(lab, "cold") == before
    done(vm.Destroy_Task())
    with pytest.raises(OriginalGoneError):
        here.roll_back(point)


def test_without_a_way_to_write_a_roll_back_is_refused(
    lab: VmLab, guest: Guest, here: Restoring
) -> None:
    """The guest goes on; the error says what would allow it."""
    with (
        restoring(lab, quick_tools()) as elsewhere,
        pytest.raises(NoWriterError, match="appliance"),
    ):
        elsewhere.roll_back(here.point("web"), power_off=True)
    guest.ask("sum", "SUM .*")


def test_the_command_restores_and_prints_what_a_script_needs(
    lab: VmLab, guest: Guest, here: Restoring, soft: Manifest
) -> None:
    """This process is no VM of the lab for the child, so it imports, and says why."""
    words = ("restore", "vm", soft.point_id, "--host", "lab")
    document = lab.holdfast(*words, "--name", "by-hand")
    assert (document["vm"], document["transport"], document["in_place"]) == (
        "by-hand", "nfc-lease", False
    )  # fmt: skip
    assert "transport.appliance-not-here" in {reason["code"] for reason in document["reasons"]}
    assert disk_content(lab, "by-hand") == here.content(soft)
    runs = here.point("web").point_id
    refused = lab.holdfast("restore", "vm", runs, "--in-place", expect=1)
    assert refused["error"]["code"] == "restore.vm-runs"
    wrong = lab.holdfast(*words, "--power-off", expect=2)
    assert wrong["error"]["code"] == "usage"


class CancellingWrites(Progress):
    """Cancels once more than so many bytes were worked on."""

    def __init__(self, cancel: CancelToken, after_bytes: int) -> None:
        super().__init__()
        self._cancel = cancel
        self._after_bytes = after_bytes

    def advance(self, done_bytes: int) -> None:
        super().advance(done_bytes)
        if self.snapshot().done_bytes > self._after_bytes:
            self._cancel.cancel()


@pytest.mark.timeout(900)  # the first run builds the image
def test_a_restored_debian_boots(
    here: Restoring, lab: VmLab, tools: SourceTools, tmp_path: Path
) -> None:
    """Imported as a stream, with most of its 8 GiB never written."""
    if os.geteuid() != 0:
        pytest.skip("building the debian guest needs root")
    machine = lab.add_machine("debian", build(GuestKind.DEBIAN), memory_mib=512)
    back_up(lab, tools, "debian")
    done(lab.client_of(machine).Destroy_Task())
    result = here.restore(here.point("debian"), transports=("nfc-lease",), power_on=True)
    assert result.powered_on and result.disks[0].written_bytes < 2 << 30
    again = Guest(lab, machine_named(lab, "debian"))
    again.wait_until_ready()
    done(again.vm.PowerOffVM_Task())
