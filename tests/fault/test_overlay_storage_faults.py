"""The overlay on storage that is full, lies or breaks."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.base.errors import ApplianceError, StorageError, StorageFullError
from appliance.base.units import KIB, MIB
from appliance.blocks import overlay_durability, overlay_files
from appliance.blocks.overlay import Overlay
from appliance.blocks.overlay_errors import OverlayCorruptError, OverlayFailedError
from appliance.blocks.overlay_journal import HEADER_BYTES, RECORD_BYTES
from appliance.blocks.overlay_map import Geometry
from tests.support.memory_device import MemoryDevice
from tests.support.needs import needs
from tests.support.power_cut import without_syncs
from tests.support.zero_disk import ZeroDisk

TINY = Geometry(block_bytes=512, segment_blocks=8)
SIZE = 64 * KIB


def tiny(folder: Path) -> Overlay:
    return Overlay.create(folder, ZeroDisk(SIZE), {}, TINY)


def reopen(folder: Path) -> Overlay:
    return Overlay.open(folder, ZeroDisk(SIZE), {})


def three_flushes(folder: Path) -> list[bytes]:
    """Make a session of several groups of several records; return the disk after each flush."""
    overlay = tiny(folder)
    states = [overlay.read_at(0, SIZE)]
    for group in range(1, 4):
        for block in range(0, 40 * group, 3):
            overlay.write_at(block * 512, bytes((group,)) * 512)
        overlay.zero_at(50 * 512, 512 * group)
        overlay.flush()
        states.append(overlay.read_at(0, SIZE))
    overlay.close()
    return states


def assert_blocks_of(found: bytes, *allowed: bytes) -> None:
    """A second write to a block goes in place, so it may be there before its flush is."""
    for start in range(0, SIZE, 512):
        assert found[start : start + 512] in [image[start : start + 512] for image in allowed]


# a damaged journal


def test_a_flipped_bit_never_loses_an_acknowledged_write_silently(tmp_path: Path) -> None:
    """A flip anywhere is an error; in the very last record, it may look like a torn flush."""
    folder = tmp_path / "s"
    states = three_flushes(folder)
    journal = folder / "journal"
    good = journal.read_bytes()
    assert len(good) > HEADER_BYTES + 20 * RECORD_BYTES
    rng = random.Random(5)
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << rng.randrange(8)
        journal.write_bytes(bad)
        if position < len(good) - RECORD_BYTES:
            with pytest.raises(OverlayCorruptError):
                reopen(folder)
            assert journal.read_bytes() == bad, "evidence must stay"
        else:
            overlay = reopen(folder)
            assert_blocks_of(overlay.read_at(0, SIZE), states[2], states[3])
            assert overlay.read_at(52 * 512, 512) == states[2][52 * 512 : 53 * 512]
            assert overlay.stats().discarded_journal_bytes > 0
            overlay.close()


def test_a_flush_torn_at_any_byte_is_dropped_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut inside the last group, the session shows the flush before it, and goes on from there."""
    without_syncs(monkeypatch)
    folder = tmp_path / "s"
    states = three_flushes(folder)
    journal = folder / "journal"
    good = journal.read_bytes()
    ends = [HEADER_BYTES]
    starts = range(HEADER_BYTES, len(good), RECORD_BYTES)
    ends += [start + RECORD_BYTES for start in starts if good[start + 3]]  # the flag LAST
    assert len(ends) == 4
    for length in range(ends[2], ends[3]):
        journal.write_bytes(good[:length])
        overlay = reopen(folder)
        assert overlay.stats().discarded_journal_bytes == length - ends[2]
        assert_blocks_of(overlay.read_at(0, SIZE), states[2], states[3])
        assert overlay.read_at(52 * 512, 512) == states[2][52 * 512 : 53 * 512]
        overlay.write_at(125 * 512, b"on")
        overlay.close()
        overlay = reopen(folder)
        assert overlay.read_at(125 * 512, 2) == b"on"
        assert overlay.stats().discarded_journal_bytes == 0
        overlay.close()


def test_a_lost_sector_of_an_earlier_flush_is_corruption(tmp_path: Path) -> None:
    """Zeros in the middle are no torn end when a later flush follows them."""
    folder = tmp_path / "s"
    three_flushes(folder)
    journal = folder / "journal"
    bad = bytearray(journal.read_bytes())
    bad[HEADER_BYTES + RECORD_BYTES : HEADER_BYTES + 3 * RECORD_BYTES] = bytes(2 * RECORD_BYTES)
    journal.write_bytes(bad)
    with pytest.raises(OverlayCorruptError):
        reopen(folder)


@pytest.mark.parametrize("garbage", [b"", b"\0" * 31, b"x" * 31, b"\0" * 5000, b"x" * 5000])
def test_rubbish_behind_the_journal_is_a_torn_end(tmp_path: Path, garbage: bytes) -> None:
    """Whatever a torn append left after the last whole group, nothing before it is affected."""
    folder = tmp_path / "s"
    states = three_flushes(folder)
    with open(folder / "journal", "ab") as file:
        file.write(garbage)
    overlay = reopen(folder)
    assert overlay.read_at(0, SIZE) == states[3]
    overlay.close()


# a full storage


class Quota:
    """Lets the overlay's files take `left` more bytes of writes, then says ENOSPC."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1 << 60
        real_pwrite, real_pwritev = os.pwrite, os.pwritev

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            return real_pwrite(fd, data[: self.take(len(data))], offset)

        def pwritev(fd: int, buffers: list[bytes], offset: int) -> int:
            data = b"".join(buffers)
            return real_pwrite(fd, data[: self.take(len(data))], offset)

        assert real_pwritev is not None
        monkeypatch.setattr(os, "pwrite", pwrite)
        monkeypatch.setattr(os, "pwritev", pwritev)

    def take(self, wanted: int) -> int:
        granted = min(wanted, self.left)
        if wanted and not granted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= granted
        return granted


@pytest.mark.parametrize("left", [0, 1, 511, 512, 700, 4096, 5000])
def test_a_write_that_does_not_fit_leaves_the_rest_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """ENOSPC in the middle of a write is reported; each block shows its old or its new bytes."""
    overlay = tiny(tmp_path / "s")
    overlay.write_at(1000, b"a" * 3000)
    overlay.flush()
    old = overlay.read_at(0, SIZE)
    quota = Quota(monkeypatch)
    quota.left = left
    with pytest.raises(StorageFullError):
        overlay.write_at(300, b"b" * 12000)
    found = overlay.read_at(0, SIZE)
    new = old[:300] + b"b" * 12000 + old[12300:]
    for start in range(0, SIZE, 512):
        block = slice(start, start + 512)
        written = next((i for i in range(513) if found[block][i:] == old[block][i:]), 512)
        assert found[block][:written] == new[block][:written]
    quota.left = 1 << 60
    overlay.write_at(300, b"b" * 12000)
    overlay.close()
    overlay = reopen(tmp_path / "s")
    assert overlay.read_at(0, SIZE) == new
    overlay.close()


@pytest.mark.parametrize("left", [0, 1, 31, 32, 33, 100])
@pytest.mark.parametrize("compacting", [True, False])
def test_a_flush_that_does_not_fit_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, compacting: bool
) -> None:
    """No room for the journal: the flush fails, nothing is lost, and with space it works."""
    if compacting:
        monkeypatch.setattr(overlay_durability, "_COMPACT_MIN_RECORDS", 1)
    overlay = tiny(tmp_path / "s")
    overlay.write_at(0, b"early" * 100)
    overlay.flush()
    for block in range(0, 60, 2):
        overlay.write_at(block * 512, bytes((block + 1,)) * 512)
    expected = overlay.read_at(0, SIZE)
    quota = Quota(monkeypatch)
    quota.left = left
    if not compacting:
        for _ in range(2):
            with pytest.raises(StorageFullError):
                overlay.flush()
            quota.left = left
    assert overlay.read_at(0, SIZE) == expected
    quota.left = 1 << 60
    overlay.write_at(63 * 512, b"late")
    expected = overlay.read_at(0, SIZE)
    overlay.flush()
    overlay.close()
    overlay = reopen(tmp_path / "s")
    assert overlay.read_at(0, SIZE) == expected
    overlay.close()


@pytest.fixture
def small_storage(tmp_path: Path) -> Iterator[Path]:
    needs("mount", "umount")
    if os.geteuid() != 0:
        reason = "mounting a small file system needs root"
        pytest.fail(reason) if os.environ.get("HOLDFAST_NO_SKIP") else pytest.skip(reason)
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], check=True, timeout=20)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True, timeout=20)


@pytest.mark.integration
def test_a_full_file_system_stops_writes_and_nothing_else(small_storage: Path) -> None:
    """On a real full disk: a typed error, all earlier bytes readable, trim makes room again."""
    overlay = Overlay.create(small_storage / "s", ZeroDisk(8 * MIB), {})
    written = 0
    with pytest.raises(StorageFullError):
        while True:
            overlay.write_at(written, bytes((written // 65536 + 1,)) * 65536)
            written += 65536
            with suppress(StorageFullError):
                overlay.flush()
    assert written >= 512 * KIB
    assert overlay.stats().free_bytes < 64 * KIB
    for start in range(0, written, 65536):
        assert overlay.read_at(start, 65536) == bytes((start // 65536 + 1,)) * 65536
    overlay.zero_at(0, written // 2)
    assert overlay.stats().free_bytes >= written // 2
    overlay.flush()
    overlay.write_at(7 * MIB, b"again" * 1000)
    overlay.close()
    overlay = Overlay.open(small_storage / "s", ZeroDisk(8 * MIB), {})
    assert overlay.read_at(7 * MIB, 5000) == b"again" * 1000
    assert overlay.read_at(0, written // 2) == bytes(written // 2)
    overlay.close()


def test_a_compaction_without_descriptors_closes_nobody_elses_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients may have used up all descriptors; the number that was freed is taken by another."""
    overlay = tiny(tmp_path / "session")
    monkeypatch.setattr(overlay._durability, "_compact_at", 0)
    overlay.write_at(0, b"x" * 512)
    real_open = os.open
    others: list[int] = []

    def used_up(path: str | Path, flags: int, *rest: int) -> int:
        if Path(path).name == "journal":
            others.append(real_open(os.devnull, os.O_RDONLY))
            raise OSError(errno.EMFILE, "too many open files")
        return real_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", used_up)
    with pytest.raises(OverlayFailedError):
        overlay.flush()
    monkeypatch.undo()
    overlay.close()
    (other,) = others
    os.fstat(other)
    os.close(other)
    reopened = reopen(tmp_path / "session")
    assert reopened.read_at(0, 512) == b"x" * 512
    reopened.close()


def test_no_session_appears_on_a_full_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`create` fails as a whole at whichever write, and succeeds once there is room."""
    real = os.write

    for failing in range(2):
        calls = 0

        def write(fd: int, data: bytes) -> int:
            nonlocal calls
            calls += 1
            if calls - 1 == failing:  # noqa: B023  (called within this round)
                raise OSError(errno.ENOSPC, "full")
            return real(fd, data)

        monkeypatch.setattr(os, "write", write)
        with pytest.raises(StorageFullError):
            tiny(tmp_path / "s")
        monkeypatch.setattr(os, "write", real)
    tiny(tmp_path / "s").close()


# failing syncs and writes


@pytest.mark.parametrize("failing_call", [0, 1])
def test_after_a_failed_fsync_nothing_is_called_durable_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    """Data or journal: one failed fsync, and every later write and flush is refused."""
    overlay = tiny(tmp_path / "s")
    overlay.write_at(0, b"flushed")
    overlay.flush()
    real = os.fdatasync
    calls = 0

    def fdatasync(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls - 1 == failing_call:
            raise OSError(errno.EIO, "lost")
        real(fd)

    overlay.write_at(512, b"lost")
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    for _ in range(3):
        with pytest.raises(OverlayFailedError):
            overlay.flush()
    with pytest.raises(OverlayFailedError):
        overlay.write_at(0, b"refused")
    with pytest.raises(OverlayFailedError):
        overlay.zero_at(0, 512)
    with pytest.raises(OverlayFailedError):
        overlay.zero_at(0, 7)
    assert overlay.read_at(0, 7) == b"flushed"
    overlay.close()
    overlay = reopen(tmp_path / "s")
    assert overlay.read_at(0, 7) == b"flushed"
    overlay.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_a_journal_that_cannot_be_written_ends_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Only a full storage may be retried; any other refusal of the journal is final."""
    overlay = tiny(tmp_path / "s")
    overlay.write_at(512, b"x")
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        raise OSError(code, "refused")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OverlayFailedError):
        overlay.flush()
    monkeypatch.setattr(os, "pwrite", real)
    with pytest.raises(OverlayFailedError):
        overlay.flush()
    overlay.close()


def test_a_refused_write_is_an_error_of_that_write_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO on a data write raises a typed error; old bytes stay, and later writes work."""
    overlay = tiny(tmp_path / "s")
    overlay.write_at(0, b"o" * 512)
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.EIO, "refused")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(StorageError):
        overlay.write_at(0, b"n" * 512)
    monkeypatch.setattr(os, "pwrite", real)
    assert overlay.read_at(0, 512) == b"o" * 512
    overlay.write_at(0, b"n" * 512)
    overlay.close()


def test_a_short_data_file_is_corruption(tmp_path: Path) -> None:
    """Data that the journal promises and the file lacks is never shown as zeros."""
    overlay = tiny(tmp_path / "s")
    overlay.write_at(0, b"x" * 512)
    overlay.close()
    os.truncate(tmp_path / "s" / "data", 100)
    overlay = reopen(tmp_path / "s")
    with pytest.raises(OverlayCorruptError):
        overlay.read_at(0, 512)
    overlay.close()


def test_storage_without_holes_still_zeroes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no hole can be punched, zeroed blocks read as zeros all the same."""
    overlay = tiny(tmp_path / "s")
    monkeypatch.setattr(overlay_files, "punch_hole", lambda fd, offset, length: None)
    overlay.write_at(0, b"x" * 5000)
    overlay.flush()
    overlay.zero_at(0, 4096)
    overlay.write_at(100, b"y")
    overlay.close()
    overlay = reopen(tmp_path / "s")
    assert overlay.read_at(0, 5000) == bytes(100) + b"y" + bytes(3995) + b"x" * 904
    overlay.close()


# flushes that meet


class SlowSync:
    """Stops the first fdatasync until `release`; counts all of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.release, self.calls = threading.Event(), threading.Event(), 0
        real: Callable[[int], None] = os.fdatasync

        def fdatasync(fd: int) -> None:
            self.calls += 1
            if self.calls == 1:
                self.entered.set()
                assert self.release.wait(30)
            real(fd)

        monkeypatch.setattr(os, "fdatasync", fdatasync)


def test_flushes_that_wait_share_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes go on during an fsync; all flushes that came meanwhile are covered by the next one."""
    overlay = tiny(tmp_path / "s")
    overlay.write_at(0, b"x" * SIZE)
    overlay.flush()
    slow = SlowSync(monkeypatch)
    with ThreadPoolExecutor(9) as pool:
        overlay.write_at(0, b"first")
        first = pool.submit(overlay.flush)
        assert slow.entered.wait(30)
        for number in range(8):
            overlay.write_at(512 * number, b"later")  # would hang here if writers were blocked
        later = [pool.submit(overlay.flush) for _ in range(8)]
        waiters = overlay._durability._group_commit._turn._waiters  # type: ignore[attr-defined]  # of Condition
        while len(waiters) < 8:
            assert not any(flush.done() for flush in later), "covered by an fsync begun before"
        slow.release.set()
        for flush in [first, *later]:
            flush.result(30)
    assert slow.calls == 2
    overlay.close()


def test_all_flushes_of_a_failed_round_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waiting flushes hear of the failure too, not only the one that led the round."""
    overlay = tiny(tmp_path / "s")
    overlay.write_at(0, b"x")

    def fdatasync(fd: int) -> None:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with ThreadPoolExecutor(8) as pool:
        flushes = [pool.submit(overlay.flush) for _ in range(16)]
        assert all(isinstance(flush.exception(30), ApplianceError) for flush in flushes)
    overlay.close()


def test_readers_never_see_what_was_never_written(tmp_path: Path) -> None:
    """While one thread writes and zeroes whole segments, readers see one of these states only."""
    base = MemoryDevice(b"B" * SIZE)
    overlay = Overlay.create(tmp_path / "s", base, {}, TINY)
    allowed = {ord("B"), ord("D"), 0}
    written_once = threading.Event()
    done = threading.Event()

    def read() -> None:
        rng = random.Random(1)
        while not done.is_set():
            after_write = written_once.is_set()
            offset = rng.randrange(SIZE - 9000)
            found = set(overlay.read_at(offset, 9000))
            assert found <= (allowed - {ord("B")} if after_write else allowed), found

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for turn in range(60):
            overlay.write_at(0, b"D" * SIZE)
            written_once.set()
            overlay.zero_at(0, SIZE)
            overlay.write_at(turn * 512, b"D" * 700)
            if turn % 8 == 0:
                overlay.flush()
        done.set()
        for reader in readers:
            reader.result(30)
    overlay.close()
