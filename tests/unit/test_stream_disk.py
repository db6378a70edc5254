"""A disk that comes as a stream: holes cost nothing, memory is bounded, disorder is borne."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.base.units import GIB, KIB, MIB, TIB
from vmware.errors import TransportError
from vmware.stream_optimized_reader import Grain
from vmware.transports.contract import BehindWindowError, ExtentKind
from vmware.transports.stream_disk import StreamDisk

_GRAIN = 64 * KIB


def _grain(offset: int) -> Grain:
    data = random.Random(offset).randbytes(_GRAIN)
    return Grain(offset, _GRAIN, _GRAIN, zlib.compress(data, 0))


def _disk(size_bytes: int, grains: Iterator[Grain], window_bytes: int = 8 * MIB) -> StreamDisk:
    return StreamDisk(
        size_bytes,
        grains,
        window_bytes=window_bytes,
        on_position=lambda _position: None,
        on_close=lambda _finished: None,
    )


def test_a_hole_of_a_tebibyte_is_known_at_once() -> None:
    """A map leads from data to data; nothing is made of what lies between."""
    disk = _disk(TIB, iter([_grain(GIB), _grain(TIB - _GRAIN)]))
    extents = []
    at = 0
    while at < TIB:
        found = disk.map_extents(at, TIB - at)
        extents += found
        at = found[-1].end
    shape = [(extent.offset, extent.length, extent.kind) for extent in extents]
    assert shape == [
        (0, GIB, ExtentKind.ZERO),
        (GIB, _GRAIN, ExtentKind.DATA),
        (GIB + _GRAIN, TIB - GIB - 2 * _GRAIN, ExtentKind.ZERO),
        (TIB - _GRAIN, _GRAIN, ExtentKind.DATA),
    ]


def test_an_empty_disk_reads_as_zeros() -> None:
    """No grain at all is a legal stream."""
    disk = _disk(10 * MIB, iter([]))
    assert disk.read_at(5 * MIB, 1 * MIB) == bytes(1 * MIB)
    assert [extent.kind for extent in disk.map_extents(0, 10 * MIB)] == [ExtentKind.ZERO]


def test_what_was_read_does_not_stay() -> None:
    """A reader that keeps up needs far less than the window."""
    grains = 2048  # 128 MiB, incompressible
    disk = _disk(grains * _GRAIN, (_grain(n * _GRAIN) for n in range(grains)), 64 * MIB)
    most = 0
    for number in range(0, grains, 16):
        disk.read_at(number * _GRAIN, 16 * _GRAIN)
        most = max(most, disk._held_bytes)
    assert most <= 18 * MIB


def test_what_was_not_read_stays_up_to_the_window() -> None:
    """And no more than that, however far the stream is pulled."""
    grains = 512
    disk = _disk(grains * _GRAIN, (_grain(n * _GRAIN) for n in range(grains)), 8 * MIB)
    disk.read_at(grains * _GRAIN - 1, 1)
    assert disk._held_bytes <= 8 * MIB + 2 * _GRAIN
    within = (grains - 100) * _GRAIN
    assert disk.read_at(within, _GRAIN) == _grain(within).inflate()
    with pytest.raises(BehindWindowError):
        disk.read_at(0, 1)
    assert disk.map_extents(0, _GRAIN)[0].kind is ExtentKind.DATA  # nobody knows any more


@pytest.mark.parametrize("seed", range(3))
def test_workers_in_disorder_read_what_came(seed: int) -> None:
    """Threads that are some segments apart all get their bytes."""
    rng = random.Random(seed)
    size = 16 * MIB
    present = sorted(rng.sample(range(size // _GRAIN), 100))
    disk = _disk(size, (_grain(n * _GRAIN) for n in present), 16 * MIB)
    expected = bytearray(size)
    for number in present:
        expected[number * _GRAIN : (number + 1) * _GRAIN] = _grain(number * _GRAIN).inflate()
    segments = list(range(0, size, MIB))
    for start in range(0, len(segments), 4):  # each four in any order
        part = segments[start : start + 4]
        rng.shuffle(part)
        segments[start : start + 4] = part
    with ThreadPoolExecutor(4) as pool:
        read = dict(
            zip(segments, pool.map(lambda at: disk.read_at(at, MIB), segments), strict=True)
        )
    assert b"".join(read[at] for at in sorted(read)) == expected


def test_a_break_is_an_error_for_what_is_behind_it() -> None:
    """What came before stays readable."""

    def breaking() -> Iterator[Grain]:
        yield _grain(0)
        raise TransportError("cut")

    finished: list[bool] = []
    disk = StreamDisk(
        MIB,
        breaking(),
        window_bytes=MIB,
        on_position=lambda _position: None,
        on_close=finished.append,
    )
    assert disk.read_at(0, _GRAIN) == _grain(0).inflate()
    for _ in range(2):
        with pytest.raises(TransportError):
            disk.read_at(_GRAIN, 1)
    assert disk.read_at(0, _GRAIN) == _grain(0).inflate()
    disk.close()
    disk.close()
    assert finished == [False]
