"""Whose session it is, who may open it, and what it costs."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from appliance.base.errors import UsageError
from appliance.base.units import GIB, KIB, MIB, TIB
from appliance.blocks import overlay_durability
from appliance.blocks.extents import ExtentKind, MappedExtent
from appliance.blocks.overlay import Overlay
from appliance.blocks.overlay_errors import (
    OverlayBusyError,
    OverlayCorruptError,
    OverlayExistsError,
    OverlayFailedError,
    OverlayMismatchError,
    OverlayMissingError,
    OverlayVersionError,
)
from appliance.blocks.overlay_map import Geometry
from appliance.blocks.overlay_session import Identity
from tests.support.memory_device import MemoryDevice
from tests.support.power_cut import without_syncs
from tests.support.zero_disk import ZeroDisk

IDENTITY: Identity = {"point_id": "20261120T031500Z-000000000001", "disk": 0}


def test_a_session_is_opened_by_one_at_a_time(tmp_path: Path) -> None:
    """A second open, and a second create, are refused while the first is open."""
    base = MemoryDevice(bytes(MIB))
    first = Overlay.create(tmp_path / "s", base, IDENTITY)
    with pytest.raises(OverlayBusyError):
        Overlay.open(tmp_path / "s", base, IDENTITY)
    with pytest.raises(OverlayBusyError):
        Overlay.create(tmp_path / "s", base, IDENTITY)
    first.close()
    Overlay.open(tmp_path / "s", base, IDENTITY).close()


def test_a_session_is_never_created_over_another(tmp_path: Path) -> None:
    """Creating where a session is leaves it as it was."""
    base = MemoryDevice(bytes(MIB))
    overlay = Overlay.create(tmp_path / "s", base, IDENTITY)
    overlay.write_at(5, b"kept")
    overlay.close()
    with pytest.raises(OverlayExistsError):
        Overlay.create(tmp_path / "s", base, IDENTITY)
    overlay = Overlay.open(tmp_path / "s", base, IDENTITY)
    assert overlay.read_at(5, 4) == b"kept"
    overlay.close()


@pytest.mark.parametrize("present", [True, False])
def test_a_folder_without_a_session_is_missing(tmp_path: Path, present: bool) -> None:
    """No folder, or one where `create` was cut short, is not a session; it can become one."""
    folder = tmp_path / "s"
    if present:
        folder.mkdir()
        (folder / "data").write_bytes(b"left by a crash")
        (folder / "journal").write_bytes(b"left by a crash")
    with pytest.raises(OverlayMissingError):
        Overlay.open(folder, MemoryDevice(bytes(10)), IDENTITY)
    overlay = Overlay.create(folder, MemoryDevice(bytes(10)), IDENTITY)
    assert overlay.read_at(0, 10) == bytes(10)
    overlay.close()


def test_another_base_is_refused(tmp_path: Path) -> None:
    """A different identity or size never gets its reads mixed with these writes."""
    Overlay.create(tmp_path / "s", MemoryDevice(bytes(MIB)), IDENTITY).close()
    with pytest.raises(OverlayMismatchError):
        Overlay.open(tmp_path / "s", MemoryDevice(bytes(MIB)), {**IDENTITY, "disk": 1})
    with pytest.raises(OverlayMismatchError):
        Overlay.open(tmp_path / "s", MemoryDevice(bytes(2 * MIB)), IDENTITY)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 2}, OverlayVersionError),
        ({"format": "something else"}, OverlayCorruptError),
        ({"segment_blocks": 0}, OverlayCorruptError),
        ({"block_bytes": 3000}, OverlayCorruptError),
        ({"session_id": "0" * 32}, OverlayCorruptError),  # the journal is of another session
        ({"unknown": 1}, OverlayCorruptError),
    ],
)
def test_a_wrong_session_file_is_refused(
    tmp_path: Path, change: dict[str, object], error: type[Exception]
) -> None:
    """What we did not write, or a newer version did, is not opened."""
    base = MemoryDevice(bytes(MIB))
    Overlay.create(tmp_path / "s", base, IDENTITY).close()
    path = tmp_path / "s" / "session.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error):
        Overlay.open(tmp_path / "s", base, IDENTITY)


@pytest.mark.parametrize("name", ["journal", "data"])
def test_a_session_that_lacks_a_file_is_corrupt(tmp_path: Path, name: str) -> None:
    """It is never taken for an empty one."""
    base = MemoryDevice(bytes(MIB))
    Overlay.create(tmp_path / "s", base, IDENTITY).close()
    (tmp_path / "s" / name).unlink()
    for _ in range(2):  # and the lock is free again
        with pytest.raises(OverlayCorruptError):
            Overlay.open(tmp_path / "s", base, IDENTITY)


def test_a_closed_session_refuses_writes(tmp_path: Path) -> None:
    """A write or flush that comes after `close` is an error, not a lost write."""
    overlay = Overlay.create(tmp_path / "s", MemoryDevice(bytes(MIB)), IDENTITY)
    overlay.close()
    with pytest.raises(OverlayFailedError):
        overlay.write_at(0, b"late")
    with pytest.raises(OverlayFailedError):
        overlay.zero_at(0, 4096)
    with pytest.raises(OverlayFailedError):
        overlay.flush()


def test_discarding_leaves_nothing_but_the_files_of_others(tmp_path: Path) -> None:
    """All files of the session go; the folder stays only if the caller has files there."""
    for name, kept in (("empty", False), ("shared", True)):
        folder = tmp_path / name
        overlay = Overlay.create(folder, MemoryDevice(bytes(MIB)), IDENTITY)
        overlay.write_at(0, b"x")
        if kept:
            (folder / "vm.vmx").write_text("")
        overlay.discard()
        overlay.close()
        assert folder.exists() == kept
        assert not kept or [path.name for path in folder.iterdir()] == ["vm.vmx"]


def test_a_62_tib_disk_is_zeroed_and_written_at_its_ends(tmp_path: Path) -> None:
    """State and files grow with what was touched, not with the disk."""
    size = 62 * TIB
    overlay = Overlay.create(tmp_path / "s", ZeroDisk(size), IDENTITY)
    overlay.write_at(size - 5000, b"e" * 5000)
    overlay.write_at(0, b"b" * 5000)
    overlay.zero_at(GIB + 1, 61 * TIB)
    overlay.write_at(30 * TIB, b"m")
    overlay.close()
    overlay = Overlay.open(tmp_path / "s", ZeroDisk(size), IDENTITY)
    assert overlay.read_at(size - 5001, 5001) == b"\0" + b"e" * 5000
    assert overlay.read_at(30 * TIB - 1, 3) == b"\0m\0"
    assert (tmp_path / "s" / "data").stat().st_size < 64 * MIB
    assert overlay.stats().allocated_bytes < 256 * KIB
    extents = overlay.map_extents(0, size)
    assert extents[-1].end == size
    assert sum(e.length for e in extents if e.kind is ExtentKind.DATA) == 7 * 4 * KIB
    overlay.close()


def test_a_disk_trimmed_in_pieces_costs_no_more_than_one_trimmed_at_once(tmp_path: Path) -> None:
    """State per block is given up as soon as a whole segment reads as zeros."""
    size = 16 * GIB
    overlay = Overlay.create(tmp_path / "s", ZeroDisk(size), IDENTITY)
    tracemalloc.start()
    try:
        for offset in range(0, size, 3 * MIB):
            overlay.zero_at(offset, min(3 * MIB, size - offset))
        overlay.flush()
        assert tracemalloc.get_traced_memory()[0] < MIB  # 2 KiB for each of 2048 segments: 4 MiB
    finally:
        tracemalloc.stop()
    overlay.close()


def test_a_disk_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """The map of it would not fit in memory."""
    with pytest.raises(UsageError):
        Overlay.create(tmp_path / "s", ZeroDisk(1 << 60), IDENTITY)


def test_space_of_zeroed_data_is_given_back(tmp_path: Path) -> None:
    """A guest's trim frees what its writes took, in memory figures and on the storage."""
    overlay = Overlay.create(tmp_path / "s", ZeroDisk(64 * MIB), IDENTITY)
    overlay.write_at(3 * MIB, b"x" * 20 * MIB)
    overlay.flush()
    before = overlay.stats()
    assert before.dirty_bytes == 20 * MIB
    assert before.free_bytes > 0
    overlay.zero_at(4 * MIB, 19 * MIB)
    overlay.flush()
    after = overlay.stats()
    assert after.dirty_bytes == MIB
    assert after.allocated_bytes <= before.allocated_bytes - 18 * MIB
    overlay.close()


def test_the_map_joins_neighbours_and_stops_where_the_base_stops(tmp_path: Path) -> None:
    """Zeros of overlay and base are one extent; a base that answers in part ends the answer."""

    class ShortMap(ZeroDisk):
        def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
            return super().map_extents(offset, min(length, 64 * KIB))

    overlay = Overlay.create(tmp_path / "s", ZeroDisk(MIB), IDENTITY)
    overlay.zero_at(100 * KIB, 100 * KIB)
    assert overlay.map_extents(0, MIB) == [MappedExtent(0, MIB, ExtentKind.ZERO)]
    overlay.discard()
    overlay = Overlay.create(tmp_path / "s", ShortMap(MIB), IDENTITY)
    overlay.write_at(0, b"x")
    assert overlay.map_extents(0, MIB) == [
        MappedExtent(0, 4 * KIB, ExtentKind.DATA),
        MappedExtent(4 * KIB, 64 * KIB, ExtentKind.ZERO),
    ]
    overlay.close()


def test_a_long_session_keeps_its_journal_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing and trimming the same blocks for ever does not grow the journal for ever."""
    monkeypatch.setattr(overlay_durability, "_COMPACT_MIN_RECORDS", 64)
    without_syncs(monkeypatch)
    tiny = Geometry(block_bytes=512, segment_blocks=8)
    base = ZeroDisk(64 * KIB)
    overlay = Overlay.create(tmp_path / "s", base, IDENTITY, tiny)
    for turn in range(1000):
        block = turn * 7 % 128 * 512
        overlay.write_at(block, b"x" * 512)
        overlay.zero_at((turn * 11 % 128) * 512, 512)
        overlay.flush()
        assert overlay.stats().journal_bytes < 32 * 1024
    expected = overlay.read_at(0, 64 * KIB)
    overlay.close()
    overlay = Overlay.open(tmp_path / "s", base, IDENTITY)
    assert overlay.read_at(0, 64 * KIB) == expected
    overlay.close()


def test_a_flush_costs_no_more_fsyncs_than_it_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None when nothing was written, one for writes in place, two when a block changed place."""
    synced: list[int] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        synced.append(fd)
        real(fd)

    overlay = Overlay.create(tmp_path / "s", ZeroDisk(MIB), IDENTITY)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    overlay.flush()
    assert len(synced) == 0
    overlay.write_at(0, b"x")
    overlay.flush()
    assert len(synced) == 2
    overlay.write_at(0, b"y")
    overlay.flush()
    overlay.flush()
    assert len(synced) == 3
    overlay.close()
    assert len(synced) == 3
