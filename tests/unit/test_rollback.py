"""What a roll-back is made of: comparing by hash, and the journal of what was touched."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.base.errors import CancelledError
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.blocks.extents import Extent
from appliance.jobs.disk_compare import differing_extents
from appliance.jobs.rollback_journal import RollbackJournal
from tests.support.fake_source import FakeDisk, FakeSource, FakeVm
from tests.support.memory_reader import MemoryReader
from tests.support.vm_backups import Place, place

MIB = 1 << 20
SIZE = 9 * MIB + 1536  # more than a segment, and no whole block at the end
CONTENT = random.Random(3).randbytes(2 * MIB) + bytes(6 * MIB) + b"x" * (SIZE - 8 * MIB)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("place")) as opened:
        opened.back_up(FakeSource([FakeVm("web", [FakeDisk(bytearray(CONTENT))])]))
        yield opened


def differences(here: Place, disk: bytes, context: RunContext | None = None) -> list[Extent]:
    point = here.repository.points.latest("web")
    assert point is not None
    with closing(here.repository.open_image(point, 0)) as image:
        return differing_extents(
            MemoryReader(disk), image.tree, here.repository.digester, context or RunContext.quiet()
        )


def test_a_disk_that_is_the_points_differs_nowhere(here: Place) -> None:
    """To the last byte, which is not at the end of a block."""
    assert differences(here, CONTENT) == []
    assert differences(here, CONTENT[:-1] + b"y") != []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=6))
def test_every_byte_that_differs_is_in_an_extent(here: Place, places: list[int]) -> None:
    """And writing the point's bytes there makes the disk the point's."""
    disk = bytearray(CONTENT)
    for at in places:
        disk[at] = CONTENT[at] ^ 0xFF
    found = differences(here, bytes(disk))
    for extent in found:
        assert extent.offset >= 0 and extent.end <= SIZE
        disk[extent.offset : extent.end] = CONTENT[extent.offset : extent.end]
    assert bytes(disk) == CONTENT
    assert sum(extent.length for extent in found) < 3 * MIB


def test_comparing_ends_at_a_cancel(here: Place) -> None:
    """Also in the middle of a large disk."""
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        differences(here, CONTENT, RunContext(cancel, Progress()))


def test_the_journal_remembers_until_it_is_told_to_forget(tmp_path: Path) -> None:
    """For one VM, across processes."""
    journal = RollbackJournal(tmp_path / "rollbacks", "server/vm")
    assert journal.touched(frozenset({0, 1})) == {}
    journal.write({0: [Extent(0, 4096), Extent(8192, 10)], 1: None})
    again = RollbackJournal(tmp_path / "rollbacks", "server/vm")
    assert again.touched(frozenset({0, 1})) == {0: [Extent(0, 4096), Extent(8192, 10)], 1: None}
    assert RollbackJournal(tmp_path / "rollbacks", "other").touched(frozenset({0})) == {}
    journal.forget()
    journal.forget()
    assert again.touched(frozenset({0})) == {}


def test_a_damaged_journal_stands_for_whole_disks(tmp_path: Path) -> None:
    """It is there, so something was written; nobody knows what."""
    journal = RollbackJournal(tmp_path, "server/vm")
    journal.write({0: [Extent(0, 4096)]})
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert journal.touched(frozenset({0, 3})) == {0: None, 3: None}
