"""Boot profiles: what is recorded, and what reading them ahead may and may not do."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.base.errors import SourceError
from appliance.base.units import KIB, MIB
from appliance.blocks.extents import Extent, align, normalise
from appliance.blocks.layers import PROFILE_UNIT_BYTES, PrefetchReader, RecordingReader
from appliance.blocks.overlay import Overlay
from tests.support.faults import FaultyReader
from tests.support.zero_disk import ZeroDisk

UNIT = PROFILE_UNIT_BYTES
SIZE = 10 * MIB + 1000


def let_pass(offset: int, length: int) -> None:
    pass


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 300 * KIB)), max_size=30))
def test_a_profile_covers_exactly_the_units_that_were_read(reads: list[tuple[int, int]]) -> None:
    """Each unit once; together they are the reads, grown to units and clipped to the disk."""
    recorder = RecordingReader(ZeroDisk(SIZE))
    extents = []
    for offset, wanted in reads:
        length = min(wanted, SIZE - offset)
        recorder.read_at(offset, length)
        extents.append(Extent(offset, length))
    profile = recorder.profile()
    assert normalise(profile) == align(extents, UNIT, SIZE)
    assert sum(extent.length for extent in profile) == sum(
        extent.length for extent in normalise(profile)
    )
    assert recorder.read_bytes == sum(extent.length for extent in extents)


def test_a_profile_is_in_the_order_of_first_touch() -> None:
    """Reading again changes nothing; neighbours touched in a row are one extent."""
    recorder = RecordingReader(ZeroDisk(SIZE))
    recorder.read_at(9 * UNIT + 5, 10)
    recorder.read_into(3 * UNIT, memoryview(bytearray(10)))
    recorder.try_read_at(4 * UNIT, UNIT)
    recorder.read_at(9 * UNIT, UNIT)
    recorder.read_at(2 * UNIT, 3 * UNIT)
    recorder.read_at(SIZE - 1, 1)
    last = SIZE // UNIT * UNIT
    assert recorder.profile() == [
        Extent(9 * UNIT, UNIT),
        Extent(3 * UNIT, 2 * UNIT),
        Extent(2 * UNIT, UNIT),
        Extent(last, SIZE - last),
    ]


def test_a_profile_is_bounded_and_what_failed_is_not_in_it() -> None:
    """The first units are kept, the rest only read; a read that failed leaves no trace."""

    def refuse_one(offset: int, length: int) -> None:
        if offset == 0:
            raise SourceError("refused")

    recorder = RecordingReader(FaultyReader(ZeroDisk(SIZE), refuse_one), limit_units=3)
    with pytest.raises(SourceError):
        recorder.read_at(0, 10)
    assert recorder.try_read_at(8 * UNIT, 10) is None
    recorder.read_at(5 * UNIT, 10)
    recorder.read_at(10 * UNIT, 20 * UNIT)
    recorder.read_at(40 * UNIT, 1)
    assert recorder.profile() == [Extent(5 * UNIT, UNIT), Extent(10 * UNIT, 2 * UNIT)]


def test_a_guest_reading_its_own_writes_is_not_recorded(tmp_path: Path) -> None:
    """Under an overlay the recorder sees what comes from the recovery point only."""
    recorder = RecordingReader(ZeroDisk(SIZE))
    overlay = Overlay.create(tmp_path / "s", recorder, {})
    overlay.write_at(0, b"x" * UNIT)
    overlay.read_at(0, 2 * UNIT)
    overlay.read_at(0, 100)
    assert recorder.profile() == [Extent(UNIT, UNIT)]
    overlay.discard()


def test_a_profile_is_read_ahead_in_its_order() -> None:
    """Every byte of it once, in order, in reads of bounded size; a stale end is left out."""
    base = FaultyReader(ZeroDisk(SIZE), let_pass)
    profile = [Extent(5 * MIB, 600 * KIB), Extent(0, UNIT), Extent(SIZE - 10, UNIT)]
    prefetch = PrefetchReader(base, [*profile, Extent(2 * SIZE, UNIT)])
    prefetch.join()
    assert base.reads == [
        (5 * MIB, 256 * KIB),
        (5 * MIB + 256 * KIB, 256 * KIB),
        (5 * MIB + 512 * KIB, 88 * KIB),
        (0, UNIT),
        (SIZE - 10, 10),
    ]
    assert prefetch.fetched_bytes == 600 * KIB + UNIT + 10
    prefetch.close()


def test_closing_stops_reading_ahead_and_joins_the_thread() -> None:
    """After `close` no read of ours is under way, and at most the one that was is finished."""
    entered, go_on = threading.Event(), threading.Event()

    def wait(offset: int, length: int) -> None:
        entered.set()
        assert go_on.wait(30)

    base = FaultyReader(ZeroDisk(SIZE), wait)
    prefetch = PrefetchReader(base, [Extent(0, SIZE)])
    assert entered.wait(30)
    closer = threading.Thread(target=prefetch.close)
    closer.start()
    while not prefetch._cancelled.is_set():
        pass
    go_on.set()
    closer.join(30)
    assert not closer.is_alive()
    assert len(base.reads) == 1
    assert "prefetch" not in [thread.name for thread in threading.enumerate()]
    prefetch.close()


def test_an_error_while_reading_ahead_is_kept_and_hurts_nobody() -> None:
    """The guest's own reads go on; the one that meets the fault reports it."""

    def fail_first(offset: int, length: int) -> None:
        if offset == 0:
            raise SourceError("unreadable")

    prefetch = PrefetchReader(
        FaultyReader(ZeroDisk(SIZE), fail_first), [Extent(0, UNIT), Extent(MIB, UNIT)]
    )
    prefetch.join()
    assert isinstance(prefetch.failure, SourceError)
    assert prefetch.read_at(MIB, 10) == bytes(10)
    with pytest.raises(SourceError):
        prefetch.read_at(0, 10)
    prefetch.close()
