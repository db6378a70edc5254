"""Restoring a disk to a file: sparse, proven, and either whole under its name or not there."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.base.errors import CancelledError, StorageFullError, UsageError
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.base.units import GIB, MIB
from appliance.jobs import restore_targets
from appliance.jobs.restore import ImageFormat, restore_image
from appliance.jobs.restore_targets import OutputExistsError, open_target
from appliance.repository.errors import CorruptError, PointNotFoundError
from appliance.repository.format import SEGMENT_BYTES
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from tests.support.memory_reader import MemoryReader
from tests.support.points import commit_point
from tests.support.sparse_device import SparseDevice


@dataclass(frozen=True)
class Stored:
    repository: Repository
    manifest: Manifest
    disks: list[bytes]


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def sparse_content(seed: int, size_bytes: int) -> bytes:
    """Data of any length and place between zeros, the first and last byte among it."""
    source = random.Random(seed)
    content = bytearray(size_bytes)
    for _ in range(20):
        length = source.choice([1, 512, 4096, 100_000, 700_000])
        offset = source.randrange(max(size_bytes - length, 1))
        content[offset : offset + length] = source.randbytes(min(length, size_bytes - offset))
    content[:1] = content[-1:] = b"x"
    return bytes(content)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    path = tmp_path_factory.mktemp("repository") / "r"
    disks = [
        sparse_content(1, 3 * SEGMENT_BYTES + 12_345),
        bytes(5 * SEGMENT_BYTES),
        b"",
        sparse_content(2, 4096),
        sparse_content(3, 1000),
    ]
    Repository.create(path)
    with Repository.open(path) as repository:
        manifest = commit_point(repository, *map(MemoryReader, disks))
        yield Stored(repository, manifest, disks)


@pytest.mark.parametrize("number", range(5))
def test_a_restored_file_is_the_disk(stored: Stored, tmp_path: Path, number: int) -> None:
    """Every byte and the size, whatever that is; nothing else is left in the folder."""
    output = tmp_path / "disk.raw"
    progress = Progress()
    result = restore_image(
        stored.repository, stored.manifest, number, output,
        context=RunContext(CancelToken(), progress),
    )  # fmt: skip
    assert output.read_bytes() == stored.disks[number]
    assert names(tmp_path) == ["disk.raw"]
    assert result.size_bytes == len(stored.disks[number])
    assert output.stat().st_mode & 0o777 == 0o600
    snapshot = progress.snapshot()
    assert snapshot.done_bytes == snapshot.total_bytes == result.size_bytes


def test_holes_stay_holes(tmp_path: Path) -> None:
    """A disk of 2 TiB with three pieces of data takes about as much as those pieces."""
    disk = SparseDevice(2048 * GIB)
    for offset in (5 * MIB, 700 * GIB, 2048 * GIB - MIB):
        disk.write_at(offset, random.Random(offset).randbytes(MIB))
    Repository.create(tmp_path / "r")
    with Repository.open(tmp_path / "r") as repository:
        manifest = commit_point(repository, disk)
        result = restore_image(repository, manifest, 0, tmp_path / "disk.raw")
    status = (tmp_path / "disk.raw").stat()
    assert (status.st_size, result.written_bytes) == (2048 * GIB, 3 * MIB)
    assert status.st_blocks * 512 < 4 * MIB
    with (tmp_path / "disk.raw").open("rb") as file:
        file.seek(700 * GIB)
        assert file.read(MIB) == disk.read_at(700 * GIB, MIB)


def test_a_file_is_overwritten_only_by_force(stored: Stored, tmp_path: Path) -> None:
    """Without it the old file stays; with it the old one is replaced in one step."""
    output = tmp_path / "disk.raw"
    output.write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        restore_image(stored.repository, stored.manifest, 0, output)
    assert output.read_bytes() == b"precious"
    restore_image(stored.repository, stored.manifest, 0, output, force=True)
    assert output.read_bytes() == stored.disks[0]
    assert names(tmp_path) == ["disk.raw"]


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    """The name is taken at the end with a link, which refuses what a rename would replace."""
    target = open_target(tmp_path / "disk.raw", ImageFormat.RAW, 10, force=False, sync=False)
    target.write(0, [b"0123456789"])
    (tmp_path / "disk.raw").write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        target.commit()
    target.abort()
    assert names(tmp_path) == ["disk.raw"]
    assert (tmp_path / "disk.raw").read_bytes() == b"precious"


def test_what_is_neither_file_nor_device_is_refused_even_by_force(
    stored: Stored, tmp_path: Path
) -> None:
    """A folder or a pipe is no place for a disk; a missing disk and a missing folder are named."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UsageError):
            restore_image(stored.repository, stored.manifest, 0, path, force=True)
    with pytest.raises(PointNotFoundError):
        restore_image(stored.repository, stored.manifest, 9, tmp_path / "disk")
    with pytest.raises(Exception, match="No such file"):
        restore_image(stored.repository, stored.manifest, 0, tmp_path / "missing/disk")
    assert names(tmp_path) == ["pipe"]


@pytest.mark.parametrize("failure", [StorageFullError("full"), KeyboardInterrupt(), OSError(5, "")])
def test_a_failed_restore_leaves_nothing_behind(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    """Whatever ends it half way, there is neither a partial file nor one under the name."""
    calls = []

    def failing(fd: int, offset: int, buffers: Sequence[bytes]) -> None:
        calls.append(offset)
        if len(calls) == 3:
            raise failure

    monkeypatch.setattr(restore_targets, "write_at", failing)
    with pytest.raises(BaseException):  # noqa: B017  (each failure has its own class)
        restore_image(stored.repository, stored.manifest, 0, tmp_path / "disk.raw")
    assert len(calls) >= 3
    assert names(tmp_path) == []


def test_a_cancelled_restore_leaves_nothing_behind(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelling is noticed at the next segment; an old file stays as it was."""
    (tmp_path / "disk.raw").write_bytes(b"old")
    cancel = CancelToken()
    monkeypatch.setattr(restore_targets, "write_at", lambda *_: cancel.cancel())
    with pytest.raises(CancelledError):
        restore_image(
            stored.repository, stored.manifest, 0, tmp_path / "disk.raw", force=True,
            context=RunContext(cancel, Progress()),
        )  # fmt: skip
    assert names(tmp_path) == ["disk.raw"]
    assert (tmp_path / "disk.raw").read_bytes() == b"old"


def test_a_damaged_chunk_ends_the_restore(tmp_path: Path) -> None:
    """Content is proven while it is written: no file with wrong bytes gets a name."""
    Repository.create(tmp_path / "r")
    with Repository.open(tmp_path / "r") as repository:
        manifest = commit_point(repository, MemoryReader(random.Random(1).randbytes(4 * MIB)))
        packs = (path for path in (tmp_path / "r/packs").rglob("*") if path.is_file())
        pack = max(packs, key=lambda path: path.stat().st_size)
        with pack.open("r+b") as file:
            file.seek(2 * MIB)
            file.write(b"damage")
        (tmp_path / "out").mkdir()
        with pytest.raises(CorruptError):
            restore_image(repository, manifest, 0, tmp_path / "out/disk.raw")
    assert names(tmp_path / "out") == []


def test_a_restore_does_not_displace_the_chunk_cache(stored: Stored, tmp_path: Path) -> None:
    """What a running guest has in the cache stays there."""
    before = len(stored.repository.cache._chunks)
    restore_image(stored.repository, stored.manifest, 0, tmp_path / "disk.raw")
    assert len(stored.repository.cache._chunks) == before


def test_no_thread_is_left_running(stored: Stored, tmp_path: Path) -> None:
    """Workers are joined before `restore_image` returns."""
    restore_image(stored.repository, stored.manifest, 0, tmp_path / "disk.raw")
    assert not [t for t in threading.enumerate() if t.name.startswith("restore")]


@pytest.mark.parametrize(
    ("sync", "exists", "synced"), [(False, False, 0), (True, False, 1), (False, True, 1)]
)
def test_what_replaces_something_is_durable_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool, exists: bool, synced: int
) -> None:
    """A new file is as durable as any copy; with `sync`, or over an old file, it is on the disk
    before its name changes."""
    output = tmp_path / "disk.raw"
    if exists:
        output.write_bytes(b"old")
    calls: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(fd), real(fd))[1])
    target = open_target(output, ImageFormat.RAW, 10, force=exists, sync=sync)
    target.write(0, [b"0123456789"])
    assert not output.exists() or output.read_bytes() == b"old"
    target.commit()
    assert output.read_bytes() == b"0123456789"
    assert bool(calls) == bool(synced)
