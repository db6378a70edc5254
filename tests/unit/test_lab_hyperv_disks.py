"""The practice Hyper-V host's own VHDX layer: chains, checkpoints, merges, moves, tracking."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.hyperv_host.errors import CorruptDiskError, ParameterError, StateError
from lab.hyperv_host.live_disk import LiveDisk
from lab.hyperv_host.rct import GRAIN_BYTES, ResilientTracking
from lab.hyperv_host.vhdx_chain import close_chain, create_disk, open_chain
from lab.hyperv_host.vhdx_format import MIB
from lab.hyperv_host.windows_path import Volumes, WindowsPath
from tests.support.needs import needs

SIZE = 9 * MIB
BASE = WindowsPath.parse("D:\\vm\\disk.vhdx")


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    made = Volumes(tmp_path / "volumes", "DE")
    made.place(BASE).parent.mkdir()
    made.place(WindowsPath.parse("E:\\")).joinpath("new").mkdir()
    return made


class Written:
    """A live disk, and what it must read as."""

    def __init__(self, volumes: Volumes, seed: int) -> None:
        self.disk = LiveDisk(volumes, BASE, ResilientTracking(SIZE))
        self.model = bytearray(SIZE)
        self._random = random.Random(seed)

    def write(self, times: int) -> None:
        for _ in range(times):
            length = 512 * self._random.choice([1, 3, 8, 129, 4096, 5000])
            offset = 512 * self._random.randrange((SIZE - length) // 512 + 1)
            if self._random.random() < 0.2:
                self.disk.zero_at(offset, length)
                self.model[offset : offset + length] = bytes(length)
            else:
                data = self._random.randbytes(length)
                self.disk.write_at(offset, data)
                self.model[offset : offset + length] = data

    def check(self) -> None:
        assert self.disk.read_at(0, SIZE) == bytes(self.model)


def _leaf(number: int) -> WindowsPath:
    return BASE.folder.joined(f"disk_{number}.avhdx")


def _never() -> bool:
    return False


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("fixed", [False, True])
def test_a_chain_reads_as_what_was_written_whatever_is_frozen_and_merged(
    volumes: Volumes, seed: int, fixed: bool
) -> None:
    """Frozen files keep their moment; merges in any order and a move change no byte."""
    create_disk(volumes.place(BASE), SIZE, block_bytes=2 * MIB, fixed=fixed)
    written = Written(volumes, seed)
    written.write(20)
    written.disk.freeze(_leaf(1))
    first = bytes(written.model)
    written.write(20)
    written.disk.freeze(_leaf(2))
    second = bytes(written.model)
    written.write(20)
    for path, expected in ((BASE, first), (_leaf(1), second)):
        chain = open_chain(volumes, path, writable=False)
        assert chain[0].disk.read_at(0, SIZE) == expected
        close_chain(chain)
    frozen = [BASE, BASE] if seed % 2 else [_leaf(1), BASE]
    for path in frozen:
        written.disk.merge_into(path, _never)
        written.check()
        written.write(5)
        written.check()
    assert written.disk.paths == [BASE]
    written.disk.move(WindowsPath.parse("E:\\new"), _never)
    written.write(5)
    written.check()
    written.disk.close()
    chain = open_chain(volumes, WindowsPath.parse("E:\\new\\disk.vhdx"), writable=False)
    assert chain[0].disk.read_at(0, SIZE) == bytes(written.model)
    close_chain(chain)


def test_a_move_takes_the_whole_chain(volumes: Volumes) -> None:
    """The copies name each other as parents; the old files stay for who asked to remove."""
    create_disk(volumes.place(BASE), SIZE, block_bytes=MIB)
    written = Written(volumes, 7)
    written.write(10)
    for number in (1, 2):
        written.disk.freeze(_leaf(number))
        written.write(10)
    old = written.disk.move(WindowsPath.parse("E:\\new"), _never)
    assert [path.name for path in old] == ["disk_2.avhdx", "disk_1.avhdx", "disk.vhdx"]
    for path in old:
        volumes.place(path).unlink()
    written.check()
    assert {path.drive for path in written.disk.paths} == {"E"}
    written.disk.close()


def test_a_merge_that_is_stopped_leaves_the_chain_usable(volumes: Volumes) -> None:
    create_disk(volumes.place(BASE), SIZE, block_bytes=MIB)
    written = Written(volumes, 3)
    written.write(10)
    written.disk.freeze(_leaf(1))
    written.write(10)
    asked = iter([False, False, True])
    with pytest.raises(StateError):
        written.disk.merge_into(BASE, lambda: next(asked))
    written.check()
    written.disk.close()
    reopened = LiveDisk(volumes, _leaf(1), ResilientTracking(SIZE))
    assert reopened.read_at(0, SIZE) == bytes(written.model)
    reopened.merge_into(BASE, _never)
    assert reopened.read_at(0, SIZE) == bytes(written.model)
    reopened.close()


def test_qemu_reads_what_this_layer_wrote(volumes: Volumes, tmp_path: Path) -> None:
    needs("qemu-img")
    create_disk(volumes.place(BASE), SIZE, block_bytes=MIB)
    written = Written(volumes, 11)
    written.write(30)
    written.disk.close()
    raw = tmp_path / "raw"
    raw.write_bytes(written.model)
    for words in (["check", "-f", "vhdx"], ["compare", "-f", "vhdx", "-F", "raw"]):
        files = [volumes.place(BASE), *([raw] if words[0] == "compare" else [])]
        subprocess.run(["qemu-img", *words, *files], check=True, capture_output=True)


def test_a_parent_that_was_written_no_longer_fits(volumes: Volumes) -> None:
    create_disk(volumes.place(BASE), SIZE, block_bytes=MIB)
    written = Written(volumes, 1)
    written.disk.freeze(_leaf(1))
    written.disk.close()
    alone = LiveDisk(volumes, BASE, ResilientTracking(SIZE))
    alone.write_at(0, bytes(512))
    alone.close()
    with pytest.raises(CorruptDiskError, match="mismatch"):
        open_chain(volumes, _leaf(1), writable=False)


def test_a_file_that_was_not_closed_has_its_log_replayed(volumes: Volumes) -> None:
    """QEMU's writer is killed with its log in use; the next opening replays it."""
    needs("qemu-io", "qemu-img")
    place = volumes.place(BASE)
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", place, "64M"], check=True)
    subprocess.run(
        ["qemu-io", "-f", "vhdx", "-c", "write -P 7 0 1M", "-c", "sigraise 9", place],
        capture_output=True,
        check=False,
    )
    chain = open_chain(volumes, BASE, writable=False)
    assert chain[0].disk.read_at(MIB - 512, 512) == b"\x07" * 512
    close_chain(chain)


@pytest.mark.parametrize("offset", [0, 66_000, 200_000, 2 * MIB + 5, 2 * MIB + 65_536])
def test_a_damaged_file_is_refused(volumes: Volumes, offset: int) -> None:
    """One flipped byte in what is checked; both copies where there are two."""
    place = volumes.place(BASE)
    create_disk(place, SIZE, block_bytes=MIB)
    raw = bytearray(place.read_bytes())
    for at in {offset, offset + 64 * 1024 if 65536 <= offset < MIB else offset}:
        raw[at] ^= 0xFF
    damaged = place.with_name("damaged.vhdx")
    damaged.write_bytes(raw)
    shutil.move(damaged, place)
    with pytest.raises(CorruptDiskError):
        open_chain(volumes, BASE, writable=False)


def test_tracking_tells_what_was_written_between_two_moments() -> None:
    """Whole grains; unknown, foreign and later ids are refused."""
    tracking = ResilientTracking(10 * GRAIN_BYTES + 512)
    first = tracking.id_of(tracking.take_moment())
    tracking.mark(GRAIN_BYTES - 1, 2)
    tracking.mark(10 * GRAIN_BYTES, 512)
    second_moment = tracking.take_moment()
    tracking.mark(5 * GRAIN_BYTES, 1)
    third_moment = tracking.take_moment()
    assert tracking.changes(first, second_moment) == [
        (0, 2 * GRAIN_BYTES),
        (10 * GRAIN_BYTES, 512),
    ]
    second = tracking.id_of(second_moment)
    assert tracking.changes(second, third_moment) == [(5 * GRAIN_BYTES, GRAIN_BYTES)]
    assert tracking.changes(second, second_moment) == []
    for bad in ("", "rctX:1", ResilientTracking(1).id_of(1), tracking.id_of(3)):
        with pytest.raises(ParameterError):
            tracking.changes(bad, second_moment)
    tracking.start_over()
    tracking.take_moment()
    with pytest.raises(ParameterError):
        tracking.changes(first, 1)


@pytest.mark.parametrize("text", ["D:", "D:\\..\\x", "\\\\host\\c$", "D:\\a/b", "D:\\a\\.", "x"])
def test_a_path_that_is_not_absolute_and_plain_is_refused(text: str) -> None:
    with pytest.raises(ParameterError):
        WindowsPath.parse(text)
