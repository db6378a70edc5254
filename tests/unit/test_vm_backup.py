"""The job that backs up VMs, over a fake hypervisor: what it promises of several VMs at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.base.errors import ApplianceError
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.blocks.extents import Extent
from appliance.catalog.runs import RunOutcome
from appliance.jobs.backup_limits import LimitPolicy
from appliance.jobs.cbt_audit import AuditPolicy
from appliance.jobs.read_plan import ReadMode
from appliance.jobs.vm_backup import VmBackupOptions, VmResult
from appliance.repository.gc import collect_garbage
from appliance.sources.contract import DiskNotCoverableError
from appliance.sources.errors import SourceReadError
from appliance.sources.frozen import Access
from tests.support.check_repository import check_repository
from tests.support.fake_source import FakeDisk, FakeSource, FakeVm
from tests.support.small_backups import random_disk
from tests.support.vm_backups import AT_ONCE, NO_AUDIT, Place, place

SEGMENT = 8 << 20


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path) as opened:
        yield opened


def big_disk(seed: int, segments: int) -> bytearray:
    """A few distinct blocks in every segment, the rest zeros: cheap, and nothing deduplicates."""
    source = random.Random(seed)
    data = bytearray(segments * SEGMENT)
    for segment in range(segments):
        data[segment * SEGMENT : segment * SEGMENT + (64 << 10)] = source.randbytes(64 << 10)
    return data


def vm(name: str, seed: int = 1, blocks: int = 64, **more: object) -> FakeVm:
    return FakeVm(name, [FakeDisk(random_disk(seed, blocks))], **more)  # type: ignore[arg-type]


def codes(result: VmResult) -> set[str]:
    return {reason.code for reason in result.reasons}


def test_an_incremental_reads_only_the_changed_blocks(here: Place) -> None:
    """The second run reads what the source says has changed, and the point is the whole disk."""
    web = vm("web", blocks=512)
    source = FakeSource([web])
    here.back_up(source)
    disk = web.disks[0]
    disk.read_bytes = 0
    disk.data[40960:45056] = random.Random(7).randbytes(4096)
    (result,) = here.back_up(source)
    assert result.status is RunOutcome.SUCCESS
    assert result.backup is not None
    assert result.backup.disks[0].mode is ReadMode.CHANGED
    assert disk.read_bytes == 4096
    assert here.content("web") == bytes(disk.data)
    check_repository(here.repository)


def test_one_vm_that_fails_never_stops_the_others(here: Place) -> None:
    """Every VM ends by itself: the broken one failed, a defect too, the others succeeded."""
    source = FakeSource([vm("a", 1), vm("b", 2), vm("c", 3), vm("d", 4)])
    source.vms[1].disks[0].fail_after_bytes = 0
    source.vms[2].freeze_errors = [KeyError("a defect")]
    results = here.back_up(source)
    ends = {result.vm: result.status for result in results}
    assert ends == {
        "a": RunOutcome.SUCCESS,
        "b": RunOutcome.FAILED,
        "c": RunOutcome.FAILED,
        "d": RunOutcome.SUCCESS,
    }
    assert {result.vm: result.error.code for result in results if result.error} == {
        "b": "source.read-failed",
        "c": "run.unexpected",
    }
    assert not source.frozen
    assert {(run.vm, run.outcome) for run in here.catalog.runs.list()} >= set(ends.items())


def test_a_passing_error_is_tried_again_as_a_run_of_its_own(here: Place) -> None:
    """Each attempt has its own run id; the result says that there was more than one."""
    source = FakeSource([vm("web", freeze_errors=[SourceReadError("busy")])])
    (result,) = here.back_up(source)
    assert result.status is RunOutcome.SUCCESS
    assert result.attempts == 2
    assert len(set(source.run_ids)) == 2
    assert "run.repeated" in codes(result)


def test_cancelling_ends_every_vm_in_order(here: Place) -> None:
    """After a cancel no VM stays frozen, and none has a point."""
    context = RunContext(CancelToken(), Progress())
    source = FakeSource([vm(name, seed) for seed, name in enumerate("abc")])
    source.before_read = context.cancel.cancel
    results = here.back_up(source, context=context)
    assert {result.status for result in results} == {RunOutcome.CANCELLED}
    assert not source.frozen
    assert here.repository.points.ids() == []


def test_a_host_and_a_datastore_are_never_used_beyond_their_places(here: Place) -> None:
    """With two places of the datastore, at most two VMs are frozen, whatever else would fit."""
    source = FakeSource([vm(f"vm{number}", number) for number in range(8)])
    results = here.back_up(source, limits=LimitPolicy(vms=8, vms_per_host=8, vms_per_datastore=2))
    assert {result.status for result in results} == {RunOutcome.SUCCESS}
    assert source.most_frozen <= 2


def test_vms_run_at_the_same_time_within_the_limits(here: Place) -> None:
    """Two VMs meet in the middle of their transfers; run one after another they could not."""
    meeting = threading.Barrier(2, timeout=30)
    met = threading.Event()
    source = FakeSource([vm("a", 1), vm("b", 2)])

    def before_read() -> None:
        if not met.is_set():
            meeting.wait()
            met.set()

    source.before_read = before_read
    results = here.back_up(source, limits=LimitPolicy(vms=2))
    assert {result.status for result in results} == {RunOutcome.SUCCESS}
    assert met.is_set()


def test_a_disk_that_no_transport_reads_is_left_out_with_its_reason(here: Place) -> None:
    """The point is made with the other disks, and the run ends with a warning."""
    web = FakeVm("web", [FakeDisk(random_disk(1, 20)), FakeDisk(random_disk(2, 20))])
    refusal = Reason("transport.test", "not today", "wait")
    web.disks[0].uncoverable = DiskNotCoverableError("disk 0", (refusal,))
    (result,) = here.back_up(FakeSource([web]))
    assert result.status is RunOutcome.WARNING
    assert "skip.no-transport" in codes(result)
    assert result.backup is not None
    assert [disk.number for disk in result.backup.manifest.disks] == [1]
    assert here.content("web", 1) == bytes(web.disks[1].data)


def test_a_vm_with_no_readable_disk_fails(here: Place) -> None:
    """A point without disks would look like a backup."""
    web = vm("web")
    web.disks[0].uncoverable = DiskNotCoverableError("disk 0", ())
    (result,) = here.back_up(FakeSource([web]))
    assert result.status is RunOutcome.FAILED
    assert result.error is not None
    assert result.error.code == "backup.nothing-to-back-up"


@pytest.mark.parametrize("named", [True, False])
def test_a_vm_that_cannot_be_protected_fails_when_named_and_warns_in_a_glob(
    here: Place, named: bool
) -> None:
    """Whoever names it wants it; a glob over all VMs must not fail every night for it."""
    obstacle = Reason("vm.shared-bus", "disks on a shared bus", "shut it down first")
    source = FakeSource([vm("node", obstacles=(obstacle,))])
    (result,) = here.back_up(source, ["node" if named else "nod*"])
    assert result.status is (RunOutcome.FAILED if named else RunOutcome.WARNING)


def test_the_audit_finds_what_the_change_list_misses_and_heals_it(here: Place) -> None:
    """An unreported change raises an alarm, the point is right, and the change id is dropped."""
    web = vm("web", blocks=200)
    source = FakeSource([web])
    here.back_up(source)
    disk = web.disks[0]
    disk.data[409600:413696] = b"\1" * 4096
    disk.hide = [Extent(409600, 4096)]
    options = VmBackupOptions(backoff=AT_ONCE, audit=AuditPolicy(percent=100, seed=3))
    (result,) = here.back_up(source, options=options)
    assert result.status is RunOutcome.WARNING
    assert "cbt.audit-mismatch" in codes(result)
    assert here.content("web") == bytes(disk.data)
    manifest = here.repository.points.latest("web")
    assert manifest is not None
    assert manifest.disks[0].change_id is None
    assert manifest.hardware["backup"]["disks"][0]["change_id"] is not None
    (after,) = here.back_up(source, options=options)
    assert after.backup is not None
    assert after.backup.disks[0].mode is ReadMode.COMPARED


def test_without_an_audit_the_same_lie_goes_unnoticed(here: Place) -> None:
    """The audit is what finds it: with 0 percent the point is wrong."""
    web = vm("web", blocks=200)
    source = FakeSource([web])
    here.back_up(source)
    disk = web.disks[0]
    disk.data[409600:413696] = b"\1" * 4096
    disk.hide = [Extent(409600, 4096)]
    here.back_up(source)
    assert here.content("web") != bytes(disk.data)


def test_a_stream_transport_reads_the_whole_disk_and_compares_it(here: Place) -> None:
    """A change list saves nothing there, so it is not relied upon either."""
    web = vm("web", blocks=200)
    web.disks[0].access = Access.STREAM
    source = FakeSource([web])
    here.back_up(source)
    web.disks[0].data[409600:413696] = b"\1" * 4096
    web.disks[0].hide = [Extent(409600, 4096)]
    (result,) = here.back_up(source)
    assert result.backup is not None
    assert result.backup.disks[0].mode is ReadMode.COMPARED
    assert "read.stream-transport" in codes(result)
    assert here.content("web") == bytes(web.disks[0].data)


class TestABrokenTransferIsResumed:
    """What a broken run had stored is not read again, and what changed since is."""

    @pytest.mark.parametrize("before", [False, True], ids=["first", "incremental"])
    def test_only_the_rest_and_the_changes_are_read(self, here: Place, before: bool) -> None:
        """The next run reads what was missing, and blocks that changed meanwhile."""
        disk = FakeDisk(big_disk(1, 6))
        source = FakeSource([FakeVm("web", [disk])])
        if before:
            here.back_up(source)
            disk.data[:] = big_disk(2, 6)
            disk.read_bytes = 0
        disk.fail_after_bytes = 4 * (64 << 10)
        (broken,) = here.back_up(source)
        assert broken.status is RunOutcome.FAILED
        assert broken.attempts == 3
        assert disk.read_bytes == 4 * (64 << 10), "a later attempt read the first ones again"
        disk.fail_after_bytes = None
        disk.read_bytes = 0
        disk.data[4096:8192] = b"\7" * 4096  # in what was stored
        disk.data[5 * SEGMENT : 5 * SEGMENT + 4096] = b"\7" * 4096  # in what was not
        (result,) = here.back_up(source)
        assert result.status is RunOutcome.SUCCESS
        assert result.backup is not None
        assert result.backup.disks[0].resumed_bytes == 4 * SEGMENT
        assert disk.read_bytes == 2 * (64 << 10) + 4096
        assert here.content("web") == bytes(disk.data)
        check_repository(here.repository)

    def test_what_garbage_collection_took_is_read_again(self, here: Place) -> None:
        """The journal is a hint: chunks that are gone are not relied upon."""
        disk = FakeDisk(big_disk(1, 4))
        source = FakeSource([FakeVm("web", [disk])])
        disk.fail_after_bytes = 2 * (64 << 10)
        here.back_up(source)
        collect_garbage(here.repository)
        disk.fail_after_bytes = None
        disk.read_bytes = 0
        (result,) = here.back_up(source)
        assert result.status is RunOutcome.SUCCESS
        assert disk.read_bytes == 4 * (64 << 10)
        assert here.content("web") == bytes(disk.data)
        check_repository(here.repository)

    def test_a_full_run_asked_for_reads_everything(self, here: Place) -> None:
        """`--full` builds on nothing, not on a broken run either."""
        disk = FakeDisk(big_disk(1, 4))
        source = FakeSource([FakeVm("web", [disk])])
        disk.fail_after_bytes = 2 * (64 << 10)
        here.back_up(source)
        disk.fail_after_bytes = None
        disk.read_bytes = 0
        here.back_up(source, options=VmBackupOptions(full=True, backoff=AT_ONCE, audit=NO_AUDIT))
        assert disk.read_bytes == 4 * (64 << 10)

    @pytest.mark.parametrize("seed", range(6))
    def test_whatever_breaks_and_changes_the_point_is_the_disk(
        self, here: Place, seed: int
    ) -> None:
        """Rounds of changes and breaks at random places; every point made equals the disk."""
        print(f"seed {seed}")
        rng = random.Random(seed)
        disks = [FakeDisk(big_disk(seed, 3)), FakeDisk(big_disk(seed + 100, 2))]
        source = FakeSource([FakeVm("web", disks)])
        for _ in range(6):
            for disk in disks:
                for _ in range(rng.randrange(4)):
                    at = rng.randrange(len(disk.data) // 4096) * 4096
                    disk.data[at : at + 4096] = rng.randbytes(4096)
                limit = disk.read_bytes + rng.randrange(3 * (64 << 10))
                disk.fail_after_bytes = rng.choice([None, limit])
            (result,) = here.back_up(source)
            if result.status is RunOutcome.SUCCESS:
                for number, disk in enumerate(disks):
                    assert here.content("web", number) == bytes(disk.data)
            else:
                assert isinstance(result.error, ApplianceError)
        check_repository(here.repository)
