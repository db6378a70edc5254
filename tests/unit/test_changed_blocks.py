"""Change lists: always a superset of what changed, or a full read with its reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyVmomi import vim, vmodl

from tests.support.inventories import a_disk
from tests.support.scripted_vcenter import ScriptedVcenter, ScriptedVm
from vmware import changed_blocks
from vmware.changed_blocks import (
    Baseline,
    ChangedAreas,
    FullRead,
    Remedy,
    allocated_areas,
    baseline_of,
    changed_areas,
)
from vmware.errors import BusyError, CancelledError, ObjectGoneError, UnreachableError
from vmware.inventory import DiskInfo
from vmware.patience import Patience

CAPACITY = 1 << 20
BLOCK = 4096
KEY = 2000
DISK = a_disk(key=KEY, capacity_bytes=CAPACITY, change_id="52 aa/9", backing_uuid="u-1")
BASE = Baseline(change_id="52 aa/7", capacity_bytes=CAPACITY, backing_uuid="u-1")
NOW = Patience(wait=lambda _: None)

Page = tuple[int, int, list[tuple[int, int]]]  # start, length, areas
Script = Callable[[int, str], Page]


class TrackedVm(ScriptedVm):
    """Answers QueryChangedDiskAreas from a script."""

    def __init__(self, script: Script) -> None:
        super().__init__(ScriptedVcenter())
        self.script = script
        self.asked: list[tuple[str, int, int, str]] = []

    def QueryChangedDiskAreas(self, snapshot: Any, key: int, start: int, change_id: str) -> Any:
        self.asked.append((snapshot._GetMoId(), key, start, change_id))
        at, length, areas = self.script(start, change_id)
        extent = vim.VirtualMachine.DiskChangeInfo.DiskChangeExtent
        return vim.VirtualMachine.DiskChangeInfo(
            startOffset=at,
            length=length,
            changedArea=[extent(start=a, length=n) for a, n in areas],
        )

    def ask(self, disk: DiskInfo = DISK, base: Baseline = BASE) -> ChangedAreas | FullRead:
        session = self.server.session()
        return changed_areas(session, "vm-1", "snapshot-1", disk, base, patience=NOW)


def truth_of(writes: list[tuple[int, int]]) -> set[int]:
    """The bytes' blocks that writes touched."""
    return {
        block
        for start, length in writes
        for block in range(start // BLOCK, (start + length - 1) // BLOCK + 1)
    }


def areas_of(blocks: set[int], start: int, end: int) -> list[tuple[int, int]]:
    """Blocks as areas, as a server would put them: in order, cut at the page's borders."""
    areas: list[tuple[int, int]] = []
    for block in sorted(blocks):
        low, high = max(block * BLOCK, start), min((block + 1) * BLOCK, end)
        if low < high:
            if areas and sum(areas[-1]) == low:
                areas[-1] = (areas[-1][0], areas[-1][1] + high - low)
            else:
                areas.append((low, high - low))
    return areas


def covered(result: ChangedAreas) -> set[int]:
    for offset, length in result.areas:
        assert 0 <= offset < offset + length <= CAPACITY
    for left, right in itertools.pairwise(result.areas):
        assert sum(left) < right[0], "sorted, disjoint, neighbours joined"
    return truth_of(list(result.areas))


WRITES = st.lists(
    st.tuples(st.integers(0, CAPACITY - 1), st.integers(1, 5 * BLOCK)).map(
        lambda pair: (pair[0], min(pair[1], CAPACITY - pair[0]))
    ),
    max_size=20,
)


@given(writes=WRITES, cuts=st.sets(st.integers(1, CAPACITY - 1), max_size=12))
def test_any_legal_paging_gives_what_was_written(
    writes: list[tuple[int, int]], cuts: set[int]
) -> None:
    """However the server cuts its answer, every write is in it and nothing else."""
    borders = sorted(cuts | {CAPACITY})
    truth = truth_of(writes)

    def script(start: int, _: str) -> Page:
        end = next(border for border in borders if border > start)
        return start, end - start, areas_of(truth, start, end)

    result = TrackedVm(script).ask()
    assert isinstance(result, ChangedAreas)
    assert covered(result) == truth


@st.composite
def corruptions(draw: st.DrawFn) -> Callable[[Page], Page]:
    kind = draw(st.sampled_from(["start", "length", "drop", "area", "swap", "grow", "none"]))
    amount = draw(st.integers(-3 * BLOCK, 3 * BLOCK))

    def corrupt(page: Page) -> Page:
        start, length, areas = page
        if kind == "start":
            return start + amount, length, areas
        if kind == "length":
            return start, amount, areas
        if kind == "grow":
            return start, length + abs(amount), areas
        if kind == "area":
            return start, length, [(at + amount, size) for at, size in areas]
        if kind == "drop":
            return start, length, [(at, size + amount) for at, size in areas]
        if kind == "swap":
            return start, length, areas[::-1]
        return page

    return corrupt


@settings(max_examples=300)
@given(writes=WRITES, page_blocks=st.integers(1, 80), at=st.integers(0, 3), corrupt=corruptions())
def test_an_illegal_page_is_refused_or_does_no_harm(
    writes: list[tuple[int, int]], page_blocks: int, at: int, corrupt: Callable[[Page], Page]
) -> None:
    """A page outside of the rules gives a full read. Every result has the form it must have."""
    truth = truth_of(writes)
    number = itertools.count()
    wrong: list[Page] = []

    def script(start: int, _: str) -> Page:
        end = min(start + page_blocks * BLOCK, CAPACITY)
        page = (start, end - start, areas_of(truth, start, end))
        if next(number) != at:
            return page
        bad = corrupt(page)
        if not legal(bad, start):
            wrong.append(bad)
        return bad

    result = TrackedVm(script).ask()
    if wrong:
        assert isinstance(result, FullRead), wrong
        assert result.remedy is Remedy.RESET
    else:
        assert isinstance(result, ChangedAreas)
        covered(result)


def legal(page: Page, asked: int) -> bool:
    start, length, areas = page
    inside = all(start <= a and a + n <= start + length and n > 0 for a, n in areas)
    ordered = all(a + n <= b for (a, n), (b, _) in itertools.pairwise(areas))
    return start == asked and length > 0 and inside and ordered


def test_the_question_is_about_the_snapshot_and_the_disk() -> None:
    """Snapshot, device key, offset and base change id go out as they are, page by page."""
    vm = TrackedVm(lambda start, _: (start, CAPACITY // 2, []))
    assert vm.ask() == ChangedAreas(areas=())
    assert vm.asked == [
        ("snapshot-1", KEY, 0, "52 aa/7"),
        ("snapshot-1", KEY, CAPACITY // 2, "52 aa/7"),
    ]


def test_what_lies_beyond_the_disk_is_cut_off() -> None:
    """Granularity may exceed an odd capacity; areas never do."""
    vm = TrackedVm(lambda start, _: (start, 2 * CAPACITY, [(CAPACITY - 512, 65536)]))
    assert vm.ask() == ChangedAreas(areas=((CAPACITY - 512, 512),))


def test_a_list_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers in crumbs cannot keep us for ever."""
    monkeypatch.setattr(changed_blocks, "_PAGES_LIMIT", 100)
    vm = TrackedVm(lambda start, _: (start, 1, []))
    result = vm.ask()
    assert isinstance(result, FullRead)
    assert result.finding.code == "cbt.endless"
    assert len(vm.asked) == 100


@given(blocks=st.sets(st.integers(0, CAPACITY // BLOCK - 1)))
def test_many_areas_are_joined_and_none_is_lost(blocks: set[int]) -> None:
    """Memory is bounded by joining over gaps, which only ever adds to what is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changed_blocks, "_AREAS_LIMIT", 5)
        patch.setattr(changed_blocks, "_FIRST_GAP_BYTES", BLOCK)
        result = TrackedVm(lambda s, _: (s, CAPACITY, areas_of(blocks, s, CAPACITY))).ask()
    assert isinstance(result, ChangedAreas)
    assert len(result.areas) <= 5
    assert covered(result) >= blocks


@pytest.mark.parametrize(
    ("disk", "base", "code", "remedy"),
    [
        (replace(DISK, change_id=None), BASE, "cbt.inactive", Remedy.ENABLE),
        (replace(DISK, change_id=""), BASE, "cbt.inactive", Remedy.ENABLE),
        (DISK, replace(BASE, change_id=None), "cbt.no-base", Remedy.NONE),
        (DISK, replace(BASE, change_id="*"), "cbt.no-base", Remedy.NONE),
        (DISK, replace(BASE, capacity_bytes=CAPACITY - 512), "cbt.capacity-changed", Remedy.RESET),
        (DISK, replace(BASE, backing_uuid="u-2"), "cbt.disk-replaced", Remedy.RESET),
        (DISK, replace(BASE, change_id="52 bb/7"), "cbt.epoch-changed", Remedy.NONE),
        (DISK, replace(BASE, change_id="52 aa/10"), "cbt.went-back", Remedy.NONE),
        # a snapshot's number is used again after a revert to the one before it
        (DISK, replace(BASE, change_id="52 aa/9"), "cbt.went-back", Remedy.NONE),
        (
            replace(DISK, change_id="odd"),
            replace(BASE, change_id="odd"),
            "cbt.went-back",
            Remedy.NONE,
        ),
    ],
)
def test_doubt_is_a_full_read_before_anything_is_asked(
    disk: DiskInfo, base: Baseline, code: str, remedy: Remedy
) -> None:
    """Each guard has its own code, and the server is not even asked."""
    vm = TrackedVm(lambda start, _: (start, CAPACITY, []))
    result = vm.ask(disk, base)
    assert isinstance(result, FullRead)
    assert (result.finding.code, result.remedy) == (code, remedy)
    assert vm.asked == []


@pytest.mark.parametrize(("now", "before"), [("odd", "other"), ("52 aa/x", "52 aa/y")])
def test_a_change_id_of_unknown_form_is_opaque(now: str, before: str) -> None:
    """The guards on its form guess nothing about another form."""
    vm = TrackedVm(lambda start, _: (start, CAPACITY, []))
    disk = replace(DISK, change_id=now)
    assert vm.ask(disk, replace(BASE, change_id=before)) == ChangedAreas(areas=())


@pytest.mark.parametrize(
    ("fault", "code", "remedy"),
    [
        (vim.fault.FileFault(file="x.vmdk"), "cbt.file-fault", Remedy.RESET),
        (vmodl.fault.InvalidArgument(), "cbt.invalid-argument", Remedy.RESET),
        (vmodl.fault.MethodNotFound(), "cbt.unsupported", Remedy.NONE),
        (vim.fault.NoPermission(), "cbt.privilege", Remedy.NONE),
        (vmodl.fault.SystemError(), "cbt.query-failed", Remedy.NONE),
    ],
)
def test_a_fault_is_a_full_read_with_its_code(fault: Exception, code: str, remedy: Remedy) -> None:
    """Every row of the fault table ends in a right backup, and says why."""
    vm = TrackedVm(lambda start, _: (start, CAPACITY, []))
    vm.server.fail("QueryChangedDiskAreas", fault)
    result = vm.ask()
    assert isinstance(result, FullRead)
    assert (result.finding.code, result.remedy) == (code, remedy)


def test_a_snapshot_that_is_gone_ends_the_attempt() -> None:
    """Without its snapshot nothing can be read at all."""
    vm = TrackedVm(lambda start, _: (start, CAPACITY, []))
    vm.server.fail("QueryChangedDiskAreas", vim.fault.NotFound())
    with pytest.raises(ObjectGoneError):
        vm.ask()


def test_what_passes_is_asked_again() -> None:
    """A locked file or a broken connection costs a pause, not a full read."""
    vm = TrackedVm(lambda start, _: (start, CAPACITY, []))
    vm.server.fail("QueryChangedDiskAreas", vim.fault.FileLocked(), ConnectionResetError())
    assert vm.ask() == ChangedAreas(areas=())


@pytest.mark.parametrize(
    ("fault", "error"),
    [(vim.fault.FileLocked(), BusyError), (ConnectionResetError(), UnreachableError)],
)
def test_what_does_not_pass_is_raised(fault: Exception, error: type[Exception]) -> None:
    """A server that is away is no reason to believe that everything changed."""
    vm = TrackedVm(lambda start, _: (start, CAPACITY, []))
    vm.server.fail("QueryChangedDiskAreas", *[fault] * 10)
    with pytest.raises(error):
        vm.ask()


def test_a_cancel_is_noticed_between_pages() -> None:
    """A long list does not hold up a cancel."""
    vm = TrackedVm(lambda start, _: (start, BLOCK, []))
    session, seen = vm.server.session(), vm.asked
    patience = Patience(cancelled=lambda: len(seen) >= 3, wait=lambda _: None)
    with pytest.raises(CancelledError):
        changed_areas(session, "vm-1", "snapshot-1", DISK, BASE, patience=patience)
    assert len(vm.asked) == 3


def test_the_baseline_is_what_the_snapshot_says() -> None:
    """What is kept today is compared tomorrow."""
    assert baseline_of(DISK) == replace(BASE, change_id="52 aa/9")
    assert baseline_of(replace(DISK, change_id="", backing_uuid="")) == Baseline(
        change_id=None, capacity_bytes=CAPACITY, backing_uuid=None
    )


class TestAllocatedAreas:
    def ask(self, script: Script, *faults: Exception, disk: DiskInfo = DISK) -> Any:
        vm = TrackedVm(script)
        vm.server.fail("QueryChangedDiskAreas", *faults)
        return allocated_areas(vm.server.session(), "vm-1", "snapshot-1", disk, patience=NOW)

    def test_they_are_asked_for_with_a_star(self) -> None:
        """The answer is a list like any other."""
        found = self.ask(lambda s, i: (s, CAPACITY, [(0, BLOCK)] if i == "*" else []))
        assert found == ChangedAreas(areas=((0, BLOCK),))

    @pytest.mark.parametrize(
        "areas", [[(0, CAPACITY)], [], [(0, BLOCK), (BLOCK, CAPACITY - BLOCK)], [(BLOCK, 0)]]
    )
    def test_an_answer_that_says_nothing_is_none(self, areas: list[tuple[int, int]]) -> None:
        """All, nothing, or nonsense: the whole disk is read then."""
        assert self.ask(lambda s, _: (s, CAPACITY, areas)) is None

    @pytest.mark.parametrize(
        "fault", [vim.fault.FileFault(file="x"), vmodl.fault.InvalidArgument()]
    )
    def test_any_fault_is_none(self, fault: Exception) -> None:
        """It is an optimisation, so no fault of it may fail a backup."""
        assert self.ask(lambda s, _: (s, CAPACITY, [(0, BLOCK)]), fault) is None

    def test_without_tracking_nothing_is_asked(self) -> None:
        """An untracked disk has no such list."""
        disk = replace(DISK, change_id=None)
        assert self.ask(lambda s, _: (s, CAPACITY, [(0, BLOCK)]), disk=disk) is None
