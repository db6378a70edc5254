"""Reading ahead: who goes on where it ended is helped, everybody else is left alone."""

from __future__ import annotations

import random
import threading

from appliance.base.errors import SourceError
from appliance.base.units import KIB, MIB
from appliance.blocks.read_ahead import ReadAheadReader
from tests.support.faults import FaultyReader
from tests.support.zero_disk import ZeroDisk

SIZE = 100 * MIB
PIECE = 256 * KIB
WINDOW = 8 * MIB
STEP = MIB


def let_pass(offset: int, length: int) -> None:
    pass


class Watched:
    """A disk that sets `reached` when a read of the byte `last` is asked for."""

    def __init__(self, last: int) -> None:
        self.reached = threading.Event()
        self._last = last
        self.disk = FaultyReader(ZeroDisk(SIZE), self._watch)

    def _watch(self, offset: int, length: int) -> None:
        if offset <= self._last < offset + length:
            self.reached.set()


def test_a_stream_is_read_ahead_for_one_window() -> None:
    """Two reads in a row: the next window is fetched, each byte of it once and in order."""
    watched = Watched(2 * PIECE + WINDOW - 1)
    reader = ReadAheadReader(watched.disk)
    reader.read_at(0, PIECE)
    reader.read_at(PIECE, PIECE)
    assert watched.reached.wait(30)
    reader.close()
    ahead = [read for read in watched.disk.reads if read[1] == STEP]
    assert ahead == [(2 * PIECE + number * STEP, STEP) for number in range(WINDOW // STEP)]


def test_a_stream_ends_with_the_disk() -> None:
    """Nothing past the last byte is asked for."""
    watched = Watched(SIZE - 1)
    reader = ReadAheadReader(watched.disk)
    start = SIZE - 3 * MIB
    reader.read_at(start, PIECE)
    reader.read_at(start + PIECE, PIECE)
    assert watched.reached.wait(30)
    reader.close()
    assert all(offset + length <= SIZE for offset, length in watched.disk.reads)


def test_random_and_small_reads_start_nothing() -> None:
    """Neither thread nor read beyond what was asked for."""
    disk = FaultyReader(ZeroDisk(SIZE), let_pass)
    reader = ReadAheadReader(disk)
    rng = random.Random(4)
    asked = [(slot * 20 * MIB, 512 * KIB) for slot in rng.sample(range(5), 5)]
    asked += [(number * 4 * KIB, 4 * KIB) for number in range(200)]
    for offset, length in asked:
        reader.read_at(offset, length)
    assert disk.reads == asked
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]
    reader.close()


def test_an_error_ahead_is_the_clients_to_meet() -> None:
    """A fault in the window is swallowed; the client's own read of it reports it; others go on."""
    met = threading.Event()

    def fail(offset: int, length: int) -> None:
        if offset <= 3 * MIB < offset + length:
            met.set()
            raise SourceError("unreadable")

    reader = ReadAheadReader(FaultyReader(ZeroDisk(SIZE), fail))
    reader.read_at(0, PIECE)
    reader.read_at(PIECE, PIECE)
    assert met.wait(30)
    assert reader.read_at(2 * PIECE, PIECE) == bytes(PIECE)
    reader.close()


def test_closing_joins_the_thread() -> None:
    """`close` returns after the read that is under way, and no other follows."""
    entered, go_on = threading.Event(), threading.Event()

    def hold(offset: int, length: int) -> None:
        if length == STEP:
            entered.set()
            assert go_on.wait(30)

    disk = FaultyReader(ZeroDisk(SIZE), hold)
    reader = ReadAheadReader(disk)
    reader.read_at(0, PIECE)
    reader.read_at(PIECE, PIECE)
    assert entered.wait(30)
    closer = threading.Thread(target=reader.close)
    closer.start()
    while not reader._closed:
        pass
    go_on.set()
    closer.join(30)
    assert not closer.is_alive()
    assert [length for _, length in disk.reads].count(STEP) <= 2  # one step of each thread
    assert "read-ahead" not in [thread.name for thread in threading.enumerate()]
