"""Backups of a guest that runs and writes, in the practice vCenter, over every transport."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.base.consistency import Consistency
from appliance.base.run_context import RunContext
from appliance.catalog.runs import RunOutcome
from appliance.jobs import stored_segments
from appliance.jobs.broken_run import BrokenRunJournal
from appliance.jobs.cbt_audit import AuditPolicy
from appliance.jobs.disk_transfer import DiskOutcome
from appliance.jobs.point_identity import known_state
from appliance.jobs.read_plan import ReadMode
from appliance.jobs.vm_backup import VmResult
from appliance.sources.contract import ConsistencyPolicy
from lab.data_plane.tags import TaggedObject
from lab.faults import FaultName
from lab.guests.journal import read_journal
from lab.vcenter.virtual_machine_setup import add_appliance
from tests.support.check_repository import check_repository
from tests.support.fake_vddk import FakeVddk
from tests.support.lab_machines import done, removed, snapped
from tests.support.needs import needs
from tests.support.vm_lab import Guest, InProcess, VmLab, backing_up, quick_tools, vm_lab
from vmware.transports.appliance_disks import ApplianceDisks

pytestmark = pytest.mark.integration

MIB = 1 << 20
HTTPS = ("datastore-https",)


@pytest.fixture(scope="module")
def lab() -> Iterator[VmLab]:
    needs("qemu-system-x86_64", "qemu-img")
    with vm_lab() as running:
        yield running


@pytest.fixture(scope="module")
def guest(lab: VmLab) -> Guest:
    return lab.add_guest("web")


@pytest.fixture
def here(lab: VmLab, guest: Guest) -> Iterator[InProcess]:
    with backing_up(lab) as opened:
        yield opened


def only(results: list[VmResult]) -> tuple[VmResult, DiskOutcome]:
    (result,) = results
    assert result.backup is not None, result.error
    (disk,) = result.backup.disks
    return result, disk


def assert_nothing_left(here: InProcess, guest: Guest) -> None:
    assert here.lab.snapshots_of(guest.machine) == []
    assert here.catalog.intents.open_intents() == []
    assert here.lab.plane.lease_table.open_leases() == []


def test_a_running_guest_is_backed_up_full_and_then_by_its_changes(
    here: InProcess, guest: Guest
) -> None:
    """It writes all the time; each point holds exactly what its snapshot held, and the second run
    reads little more than what has changed."""
    guest.ask("journal start", "JOURNAL start")
    _, full = only(here.back_up("web"))
    assert full.mode is ReadMode.FULL
    assert here.stored("web") == here.frozen["web", 0]
    guest.write(4)
    result, disk = only(here.back_up("web", audit=AuditPolicy(percent=0)))
    guest.ask("journal stop", "JOURNAL stop")
    assert result.status is RunOutcome.SUCCESS, result.reasons
    assert disk.mode is ReadMode.CHANGED
    assert 4 * MIB <= disk.image.read_bytes <= 16 * MIB
    assert here.stored("web") == here.frozen["web", 0]
    point = here.repository.points.latest("web")
    assert point is not None
    with contextlib.closing(here.repository.open_image(point, 0)) as image:
        assert read_journal(image), "the journal of the guest is not in the point"
    check_repository(here.repository)
    assert_nothing_left(here, guest)


def test_what_is_written_while_a_backup_runs_is_in_the_next_one(
    here: InProcess, guest: Guest
) -> None:
    """Changes that go into the snapshot's delta are not lost to the change list."""
    here.back_up("web")
    see = here.see

    def write_meanwhile(*args: object) -> None:
        see(*args)  # type: ignore[arg-type]
        guest.write(1)

    here.see = write_meanwhile  # type: ignore[method-assign]
    here.back_up("web")
    before = here.stored("web")
    here.see = see  # type: ignore[method-assign]
    _, disk = only(here.back_up("web"))
    assert disk.image.changed_bytes >= MIB
    assert here.stored("web") == here.frozen["web", 0] != before


@pytest.mark.parametrize("transport", ["hot-add", "vddk", "datastore-https", "nfc-lease"])
def test_every_transport_gives_the_snapshots_content(
    lab: VmLab, guest: Guest, transport: str, tmp_path: Path
) -> None:
    """A disk read whole over each transport, then its changes; the result names it."""
    tools = quick_tools()
    if transport == "hot-add":
        needs("losetup", "qemu-storage-daemon")
        root = tmp_path / "root"
        add_appliance(lab.inventory, "appliance", root)
        tools = quick_tools(appliance_disks=ApplianceDisks(device_root=root))
    if transport == "vddk":
        needs("nbdkit")
        fake = FakeVddk(tmp_path, b"", password=lab.vcenter.password)
        fake.serve(guest.flat)
        tools = quick_tools(vddk_folder=fake.library.folder, nbdkit=fake.library.program)
    with backing_up(lab, tools) as here:
        for full in (True, False)[transport == "vddk" :]:  # its stand-in, a shell script, is slow
            guest.write(1)
            result, disk = only(here.back_up("web", full=full, transports=(transport,)))
            assert result.status is RunOutcome.SUCCESS, result.reasons
            assert disk.transfer.transport == transport
            assert here.stored("web") == here.frozen["web", 0]
        assert_nothing_left(here, guest)


def test_a_quiesced_backup_says_that_the_file_system_was_at_rest(
    here: InProcess, guest: Guest
) -> None:
    """On Linux that is the best that can be known from outside."""
    policy = ConsistencyPolicy(wanted=Consistency.APPLICATION)
    result, _ = only(here.back_up("web", consistency=policy))
    assert result.backup is not None
    assert result.backup.manifest.consistency is Consistency.FILE_SYSTEM


def test_a_snapshot_that_a_person_made_stays_and_tracking_goes_on(
    here: InProcess, guest: Guest
) -> None:
    """The frozen disk is a delta then, which ranges of the base cannot show."""
    here.back_up("web")
    snapshot = snapped(guest.vm, "before-the-update")
    try:
        guest.write(1)
        (result,) = here.back_up("web")
        assert result.backup is not None, result.error
        disk = result.backup.disks[0]
        assert disk.transfer.transport == "nfc-lease"
        assert "transport.delta-disk" in {reason.code for reason in disk.transfer.refusals}
        assert here.lab.snapshots_of(guest.machine) == ["before-the-update"]
    finally:
        removed(snapshot)
    guest.write(1)
    only(here.back_up("web"))
    assert here.stored("web") == here.frozen["web", 0]


def test_a_vm_that_is_off_is_backed_up_too(lab: VmLab, tmp_path: Path) -> None:
    """Its point says that it was off; several disks keep their numbers."""
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(range(256)) * (16 << 10))
    machine = lab.add_machine("cold", image, extra_disks_bytes=(2 * MIB,))
    with backing_up(lab) as here:
        for _ in range(2):
            (result,) = here.back_up("cold")
            assert result.status is RunOutcome.SUCCESS, (result.error, result.reasons)
            assert result.backup is not None
            assert result.backup.manifest.consistency is Consistency.OFFLINE
            assert [disk.number for disk in result.backup.manifest.disks] == [0, 1]
            assert here.stored("cold") == here.frozen["cold", 0]
        assert result.backup.disks[0].image.read_bytes == 0
    assert lab.snapshots_of(machine) == []


def test_an_audit_that_fails_ends_in_tracking_that_is_sound_again(
    here: InProcess, guest: Guest
) -> None:
    """Alarm and a healed point; then a reset and a full read; then changes only, as before."""
    everything = AuditPolicy(percent=100)
    here.back_up("web", transports=HTTPS)
    guest.write(1)
    here.lab.faults.arm(FaultName.CBT_EMPTY_LIST)
    alarmed, disk = only(here.back_up("web", transports=HTTPS, audit=everything))
    assert alarmed.status is RunOutcome.WARNING
    assert "cbt.audit-mismatch" in {reason.code for reason in disk.reasons}
    assert here.stored("web") == here.frozen["web", 0]
    _, disk = only(here.back_up("web", transports=HTTPS, audit=everything))
    assert disk.mode is ReadMode.COMPARED
    assert {reason.code for reason in disk.reasons} == {"cbt.mistrusted"}
    guest.write(1)
    sound, disk = only(here.back_up("web", transports=HTTPS, audit=everything))
    assert sound.status is RunOutcome.SUCCESS
    assert disk.mode is ReadMode.CHANGED
    assert here.stored("web") == here.frozen["web", 0]


def test_tracking_that_failed_an_audit_is_reset_by_a_full_run_too(
    here: InProcess, guest: Guest
) -> None:
    """A full run has no parent, but the tracking that it bases the next run on is the same."""
    here.back_up("web", transports=HTTPS)
    guest.write(1)
    here.lab.faults.arm(FaultName.CBT_EMPTY_LIST)
    _, alarmed = only(here.back_up("web", transports=HTTPS, audit=AuditPolicy(percent=100)))
    assert "cbt.audit-mismatch" in {reason.code for reason in alarmed.reasons}
    said = known_change_id(here)
    _, full = only(here.back_up("web", transports=HTTPS, full=True))
    assert full.change_id is not None
    assert full.change_id.partition("/")[0] != said.partition("/")[0]


def known_change_id(here: InProcess) -> str:
    """What the hypervisor said at the newest point, believed or not."""
    point = here.repository.points.latest("web")
    state = known_state(point) if point else None
    identity = state.disks[0].identity if state else None
    assert identity is not None and identity.change_id is not None
    return identity.change_id


def test_tracking_that_does_not_start_costs_reading_only(lab: VmLab, tmp_path: Path) -> None:
    """The reason is given, and each run reads all of the disk."""
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(range(256)) * 4096)
    lab.add_machine("untracked", image)
    lab.faults.arm(FaultName.CBT_ENABLE_IGNORED, times=None, vm_name="untracked")
    with backing_up(lab) as here:
        for _ in range(2):
            (result,) = here.back_up("untracked")
            assert result.backup is not None
            assert result.backup.disks[0].mode is not ReadMode.CHANGED
            assert here.stored("untracked") == here.frozen["untracked", 0]
    lab.faults.disarm()
    assert any(reason.code.startswith("cbt.") for reason in result.reasons)


def test_a_cancelled_backup_leaves_nothing_and_the_next_one_goes_on(
    here: InProcess, guest: Guest
) -> None:
    """Cancelled while it reads: the snapshot goes, no point is made."""
    context = RunContext.quiet()
    see = here.see

    def cancel(*args: Any) -> None:
        see(*args)
        context.cancel.cancel()

    here.see = cancel  # type: ignore[method-assign]
    points = len(here.repository.points.list("web"))
    (result,) = here.back_up("web", context=context, transports=HTTPS)
    here.see = see  # type: ignore[method-assign]
    assert result.status is RunOutcome.CANCELLED
    assert len(here.repository.points.list("web")) == points
    assert_nothing_left(here, guest)


def test_a_broken_transfer_goes_on_where_it_broke(
    here: InProcess, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends half way: the next one reads the rest, and what changed meanwhile."""
    monkeypatch.setattr(stored_segments, "_SEGMENTS_PER_KEEP", 1)
    here.back_up("web", transports=HTTPS)
    context = RunContext.quiet()
    keep = BrokenRunJournal.keep

    def cancel_once_kept(journal: BrokenRunJournal, noted: Iterable[bytes]) -> None:
        keep(journal, noted)
        context.cancel.cancel()

    with monkeypatch.context() as patched:
        patched.setattr(BrokenRunJournal, "keep", cancel_once_kept)
        guest.write(12)
        (result,) = here.back_up("web", transports=HTTPS, context=context)
        assert result.status is RunOutcome.CANCELLED
    guest.write(1)
    result, disk = only(here.back_up("web", transports=HTTPS))
    assert disk.resumed_bytes >= 8 * MIB
    assert "resume.continued" in {reason.code for reason in disk.reasons}
    assert here.stored("web") == here.frozen["web", 0]
    check_repository(here.repository)


def test_several_vms_are_selected_by_tag_and_backed_up_together(lab: VmLab, tmp_path: Path) -> None:
    """Each becomes a point; a VM without the tag is left alone."""
    image = tmp_path / "disk.raw"
    tag = lab.plane.tags.create_tag(lab.plane.tags.create_category("tier").id, "gold")
    for name in ("a1", "a2", "a3", "b1"):
        image.write_bytes(name.encode() * (1 << 20))
        machine = lab.add_machine(name, image)
        if name != "b1":
            lab.plane.tags.attach(tag.id, TaggedObject("VirtualMachine", machine.moid))
    with backing_up(lab) as here:
        results = here.back_up(tags=("tier/gold",))
        assert {result.vm: result.status for result in results} == dict.fromkeys(
            ("a1", "a2", "a3"), RunOutcome.SUCCESS
        )
        for name in ("a1", "a2", "a3"):
            assert here.stored(name) == here.frozen[name, 0]


def test_the_command_prints_what_a_script_needs(lab: VmLab, guest: Guest) -> None:
    """One document with a point per VM, transport, refusals, reasons, consistency and rate."""
    document = lab.holdfast("backup", "vm", "we*", "--quiesce", "crash")
    (vm,) = document["vms"]
    assert vm["status"] == "success", vm
    (disk,) = vm["disks"]
    assert disk["transport"] == "datastore-https"
    assert disk["refusals"][0]["code"] == "transport.appliance-not-here"
    assert disk["read_bytes_per_s"] >= 0
    points = lab.holdfast("point", "list", "--vm", "web")
    assert points[-1]["point_id"] == vm["point_id"]
    missing = lab.holdfast("backup", "vm", "nobody", expect=2)
    assert missing["error"]["code"] == "source.vm-not-found"


def test_a_guest_boots_from_its_point(lab: VmLab, guest: Guest) -> None:
    """Crash-consistent or not: the file system comes up."""
    needs("qemu-system-x86_64")
    with backing_up(lab) as here:
        guest.write(1)
        only(here.back_up("web"))
    done(guest.vm.PowerOffVM_Task())
    lab.holdfast(
        *("verify", "--vm", "web", "--boot", "--disk-interface", "pvscsi"),
        *("--probe", "serial:^HOLDFAST-READY tiny"),
    )
    done(guest.vm.PowerOnVM_Task(None))
    guest.wait_until_ready()
