"""Reading ahead: what is planned comes in pieces, what is not comes by itself, all of it right."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.base.units import KIB, MIB, TIB
from tests.contract.block_reader import sample_content
from vmware.errors import TransportError
from vmware.transports.http_range import OnProgress
from vmware.transports.read_plan import ReadPlan
from vmware.transports.read_window import ReadWindow

_CONTENT = sample_content(2 * MIB)
_PIECE = 64 * KIB


class _Source:
    """Counts what is fetched; hands out in small steps."""

    def __init__(self, step: int = 10_000) -> None:
        self.fetched: list[tuple[int, int]] = []
        self._step = step

    def fetch(self, offset: int, buffer: memoryview, on_progress: OnProgress) -> None:
        self.fetched.append((offset, len(buffer)))
        for start in range(0, len(buffer), self._step):
            end = min(start + self._step, len(buffer))
            buffer[start:end] = _CONTENT[offset + start : offset + end]
            on_progress(end)


def _plan(planned: Sequence[tuple[int, int]] | None, gap_bytes: int = 0) -> ReadPlan:
    return ReadPlan(planned, len(_CONTENT), piece_bytes=_PIECE, gap_bytes=gap_bytes)


def _pieces(plan: ReadPlan) -> list[tuple[int, int, int]]:
    found = []
    piece = plan.next_piece(0)
    while piece is not None:
        found.append((piece.offset, piece.length, piece.wanted_bytes))
        piece = plan.next_piece(piece.end)
    return found


def test_a_whole_disk_is_cut_at_multiples_of_the_piece() -> None:
    """From wherever reading begins; a disk of any size costs no memory."""
    plan = ReadPlan(None, 62 * TIB, piece_bytes=32 * MIB, gap_bytes=0)
    piece = plan.next_piece(5 * MIB)
    assert piece is not None
    assert (piece.offset, piece.end) == (5 * MIB, 32 * MIB)
    last = plan.next_piece(62 * TIB - 1)
    assert last is not None
    assert (last.length, plan.next_piece(62 * TIB)) == (1, None)
    assert ReadPlan(None, 0, piece_bytes=_PIECE, gap_bytes=0).next_piece(0) is None


def test_small_gaps_are_read_and_large_ones_are_not() -> None:
    """Extents are rounded to 4 KiB and joined over gaps within a piece."""
    plan = _plan([(100, 200), (12 * KIB, 4 * KIB), (40 * KIB, 1), (63 * KIB, 2 * KIB)], 8 * KIB)
    assert _pieces(plan) == [
        (0, 16 * KIB, 8 * KIB),
        (40 * KIB, 4 * KIB, 4 * KIB),
        (60 * KIB, 4 * KIB, 4 * KIB),
        (64 * KIB, 4 * KIB, 4 * KIB),
    ]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), max_size=20), st.integers(0, 9))
def test_pieces_cover_the_plan_once(places: list[tuple[int, int]], gap: int) -> None:
    """Every planned byte is in exactly one piece; pieces ascend and keep their bounds."""
    planned, end = [], 0
    for offset, length in sorted(places):
        start = max(offset * KIB, end)
        planned.append((start, length * KIB))
        end = start + length * KIB
    planned = [(at, size) for at, size in planned if at + size <= len(_CONTENT)]
    pieces = _pieces(_plan(planned, gap * KIB))
    covered = bytearray(len(_CONTENT))
    last = 0
    for offset, length, wanted in pieces:
        assert last <= offset
        assert 0 < wanted <= length <= _PIECE
        assert offset // _PIECE == (offset + length - 1) // _PIECE
        covered[offset : offset + length] = b"\x01" * length
        last = offset + length
    assert all(all(covered[at : at + size]) for at, size in planned)
    assert sum(wanted for _, _, wanted in pieces) >= sum(size for _, size in planned)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_reads_by_any_threads_give_the_disk(data: st.DataObject) -> None:
    """Followed or not, planned or not: the bytes are those of the disk."""
    rng = random.Random(data.draw(st.integers(0, 10_000)))
    cuts = sorted(rng.sample(range(len(_CONTENT)), 2 * rng.randrange(1, 10)))
    planned = (
        None
        if rng.random() < 0.3
        else list(zip(cuts[::2], map(int.__sub__, cuts[1::2], cuts[::2]), strict=True))
    )
    reads = [(at, size) for at, size in planned or [] if rng.random() < 0.8]
    reads += [(rng.randrange(len(_CONTENT) - 9000), rng.randrange(9000)) for _ in range(10)]
    rng.shuffle(reads)
    window = ReadWindow(
        _plan(planned, 4 * KIB), _Source().fetch, window_bytes=3 * _PIECE, threads=2
    )

    def read(place: tuple[int, int]) -> bool:
        offset, length = place
        buffer = bytearray(length)
        window.read_into(offset, memoryview(buffer))
        return buffer == _CONTENT[offset : offset + length]

    try:
        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(read, reads))
    finally:
        window.close()


def test_each_planned_byte_is_fetched_once_when_the_plan_is_followed() -> None:
    """However small the reads, and although several threads share them."""
    source = _Source()
    window = ReadWindow(_plan(None), source.fetch, window_bytes=4 * _PIECE, threads=3)

    def read(offset: int) -> None:
        window.read_into(offset, memoryview(bytearray(8 * KIB)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(0, len(_CONTENT), 8 * KIB)))
    window.close()
    assert sorted(source.fetched) == [(at, _PIECE) for at in range(0, len(_CONTENT), _PIECE)]


def test_an_error_reaches_who_needs_the_bytes_and_nobody_else() -> None:
    """A later read of the same place tries by itself; what came before the break is good."""
    source = _Source()
    broken = {2 * _PIECE}

    def fetch(offset: int, buffer: memoryview, on_progress: OnProgress) -> None:
        if offset in broken:
            broken.discard(offset)
            source.fetch(offset, buffer[:20_000], on_progress)
            raise TransportError("cut")
        source.fetch(offset, buffer, on_progress)

    window = ReadWindow(_plan(None), fetch, window_bytes=8 * _PIECE, threads=1)
    buffer = memoryview(bytearray(_PIECE))
    for number in (0, 1, 3):
        window.read_into(number * _PIECE, buffer)
        assert buffer == _CONTENT[number * _PIECE : (number + 1) * _PIECE]
    try:
        window.read_into(2 * _PIECE, buffer)  # the broken piece may have left the window already
    except TransportError:
        window.read_into(2 * _PIECE, buffer)
    assert buffer == _CONTENT[2 * _PIECE : 3 * _PIECE]
    window.close()


def test_nothing_planned_means_nothing_ahead() -> None:
    """Random reads cost exactly their own bytes."""
    source = _Source()
    window = ReadWindow(_plan([]), source.fetch, window_bytes=_PIECE, threads=2)
    for offset in (1 * MIB, 5, 300_000):
        window.read_into(offset, memoryview(bytearray(1000)))
    window.close()
    assert source.fetched == [(1 * MIB, 1000), (5, 1000), (300_000, 1000)]


def test_a_window_smaller_than_a_piece_is_a_mistake() -> None:
    """It could never hold one."""
    with pytest.raises(ValueError, match="window"):
        ReadWindow(_plan(None), _Source().fetch, window_bytes=_PIECE - 1, threads=1)


def test_closing_before_the_first_read_starts_no_thread() -> None:
    """A disk that is opened and not read costs nothing."""
    before = threading.active_count()
    window = ReadWindow(_plan(None), _Source().fetch, window_bytes=_PIECE, threads=4)
    window.close()
    window.close()
    assert threading.active_count() == before
