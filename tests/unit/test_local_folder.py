"""What the local folder promises beyond the contract: errors, crashes, other processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.base import write_batches
from appliance.base.errors import StorageError, StorageFullError
from appliance.repository.blob_store import local_writer, open_files
from appliance.repository.blob_store.contract import BlobExistsError, BlobNotFoundError
from appliance.repository.blob_store.local_folder import LocalFolderStore
from appliance.repository.blob_store.open_files import OpenFile
from appliance.repository.blob_store.writeback import start_writeback

REPOSITORY_ROOT = Path(__file__).parents[2]
COMMIT_CALLS = ("fsync", "mkdir", "link", "unlink", "open", "close")


class Cut(BaseException):
    """The power goes."""


def cut_after(patch: pytest.MonkeyPatch, number: int, error: BaseException) -> list[str]:
    """Let `number` more of the counted calls of module os happen; the next ones raise."""
    calls: list[str] = []

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(calls) >= number:
                raise error
            calls.append(name)
            return original(*args, **kwargs)

        return call

    for name in COMMIT_CALLS:
        patch.setattr(os, name, wrap(name, getattr(os, name)))
    return calls


def tmp_files(root: Path) -> list[Path]:
    return sorted((root / "tmp").iterdir())


@pytest.mark.parametrize("number", range(16))
def test_a_commit_cut_anywhere_leaves_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """After every system call of a commit: whole or absent, and a repetition succeeds."""
    writer = LocalFolderStore(tmp_path).create("packs/3f/a")
    writer.write([b"whole"])
    with monkeypatch.context() as patch:
        calls = cut_after(patch, number, Cut())
        try:
            writer.commit()
            assert calls.count("fsync") >= 4  # file, folder, and the two folders made
        except Cut:
            pass
    again = LocalFolderStore(tmp_path)
    found = [blob.name for blob in again.list("packs")]
    if found:
        with pytest.raises(BlobExistsError):
            again.put("packs/3f/a", b"whole")
    else:
        again.put("packs/3f/a", b"whole")
    assert again.get("packs/3f/a", limit_bytes=5) == b"whole"


def test_commit_syncs_data_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that makes a blob durable: fsync, link, fsync of the folder, unlink."""
    store = LocalFolderStore(tmp_path)
    store.put("packs/first", b"")
    writer = store.create("packs/a")
    with monkeypatch.context() as patch:
        calls = cut_after(patch, 1000, Cut())
        writer.commit()
    assert [call for call in calls if call not in ("open", "close")] == [
        "fsync",
        "link",
        "fsync",
        "unlink",
    ]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StorageFullError), (errno.EDQUOT, StorageFullError), (errno.EIO, StorageError)],
)
@pytest.mark.parametrize("call", ["writev", "fsync", "link", "mkdir", "open"])
def test_a_failed_blob_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[Exception]
) -> None:
    """Full and broken disks are told apart, file and reason are named, no byte is left."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    store = LocalFolderStore(tmp_path)
    store.put("points/first", b"")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(kind) as caught:
            store.put("packs/a", b"data")
    assert type(caught.value) is kind
    assert str(tmp_path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert tmp_files(tmp_path) == []
    assert list(store.list("packs")) == []
    store.put("packs/a", b"data")


def test_a_folder_that_cannot_be_synced_takes_the_blob_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told that the commit failed, the caller can rely on the name being free."""
    store = LocalFolderStore(tmp_path)
    store.put("packs/first", b"")
    writer = store.create("packs/a")
    real, calls = os.fsync, []

    def second_fails(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken")
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", second_fails)
        with pytest.raises(StorageError):
            writer.commit()
    assert [blob.name for blob in store.list("packs")] == ["packs/first"]
    assert tmp_files(tmp_path) == []


@pytest.mark.parametrize("step", [1, 3, 7, 4096])
def test_short_writes_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """However little the system takes at a time, every byte arrives in order."""
    buffers: list[bytes | memoryview] = [bytes([i]) * (i % 9) for i in range(60)]
    buffers.append(memoryview(b"abcdefgh").cast("I"))
    real = os.writev

    def short(fd: int, batch: list[memoryview]) -> int:
        joined = b"".join(bytes(view) for view in batch)
        return real(fd, [joined[:step]])

    monkeypatch.setattr(os, "writev", short)
    monkeypatch.setattr(write_batches, "_BUFFERS_MOST", 5)
    store = LocalFolderStore(tmp_path)
    writer = store.create("packs/a")
    writer.write(buffers)
    writer.commit()
    expected = b"".join(bytes(buffer) for buffer in buffers)
    assert store.get("packs/a", limit_bytes=1 << 20) == expected
    assert writer.size_bytes == len(expected)


WRITER = """
import sys, time
from pathlib import Path
from appliance.repository.blob_store.local_folder import LocalFolderStore
writer = LocalFolderStore(Path(sys.argv[1])).create("packs/a")
writer.write([b"x" * 100_000])
print("written", flush=True)
time.sleep(60)
"""


def test_leftovers_of_a_killed_writer_are_removed_and_living_ones_spared(tmp_path: Path) -> None:
    """kill -9 ends the lock on the leftover; until then nothing touches it."""
    store = LocalFolderStore(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"written\n"
        assert store.discard_unfinished(older_than_s=0) == 0
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert store.discard_unfinished(older_than_s=3600) == 0
    assert store.discard_unfinished(older_than_s=0) == 100_000
    assert tmp_files(tmp_path) == []


def test_a_leftover_that_is_a_blob_too_frees_nothing(tmp_path: Path) -> None:
    """A crash between link and unlink costs no space, and the blob survives the clean-up."""
    store = LocalFolderStore(tmp_path)
    store.put("packs/a", b"data")
    os.link(tmp_path / "packs" / "a", tmp_path / "tmp" / "1-left")
    assert store.discard_unfinished(older_than_s=0) == 0
    assert tmp_files(tmp_path) == []
    assert store.get("packs/a", limit_bytes=4) == b"data"


def test_a_rename_cut_half_way_can_be_repeated(tmp_path: Path) -> None:
    """Both names of one blob are a rename to be completed, not a conflict."""
    store = LocalFolderStore(tmp_path)
    store.put("packs/a", b"data")
    (tmp_path / "quarantine").mkdir()
    os.link(tmp_path / "packs" / "a", tmp_path / "quarantine" / "a")
    store.rename("packs/a", "quarantine/a")
    assert list(store.list("packs")) == []
    assert store.get("quarantine/a", limit_bytes=4) == b"data"


def test_a_blob_deleted_by_another_process_stays_readable_where_it_was_open(tmp_path: Path) -> None:
    """A reader finishes with the packs it has open."""
    store, other = LocalFolderStore(tmp_path), LocalFolderStore(tmp_path)
    store.put("packs/a", b"data")
    assert store.get_range("packs/a", 0, 4) == b"data"
    other.delete("packs/a")
    assert store.get_range("packs/a", 0, 4) == b"data"
    with pytest.raises(BlobNotFoundError):
        store.get("packs/a", limit_bytes=4)


def test_a_blob_deleted_while_it_is_being_opened_does_not_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read that was under way may finish; the next one learns of the deletion."""
    store = LocalFolderStore(tmp_path)
    store.put("packs/a", b"data")
    real = OpenFile

    def open_slowly(path: Path) -> OpenFile:
        file = real(path)
        store.delete("packs/a")
        return file

    with monkeypatch.context() as patch:
        patch.setattr(open_files, "OpenFile", open_slowly)
        assert store.get_range("packs/a", 0, 4) == b"data"
    with pytest.raises(BlobNotFoundError):
        store.get_range("packs/a", 0, 4)


def test_a_clean_up_between_making_and_locking_a_file_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer notices that its file was taken for a leftover, and makes another one."""
    store, other = LocalFolderStore(tmp_path), LocalFolderStore(tmp_path)
    real = fcntl.flock
    cleaned: list[int] = []

    def flock(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not cleaned:
            cleaned.append(len(tmp_files(tmp_path)))
            other.discard_unfinished(older_than_s=0)
            assert tmp_files(tmp_path) == []
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    store.put("packs/a", b"data")
    assert cleaned == [1]
    assert store.get("packs/a", limit_bytes=4) == b"data"


def test_write_back_starts_early_over_every_byte_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranges asked for are whole, in order, without gaps, and of this file."""
    asked: list[tuple[int, int]] = []

    def record(fd: int, offset: int, length: int) -> None:
        assert os.fstat(fd).st_size == offset + length
        asked.append((offset, length))
        start_writeback(fd, offset, length)

    monkeypatch.setattr(local_writer, "start_writeback", record)
    monkeypatch.setattr(local_writer, "WRITEBACK_BYTES", 1000)
    writer = LocalFolderStore(tmp_path).create("packs/a")
    for size in (400, 400, 400, 100, 2500, 999):
        writer.write([bytes(size)])
    writer.commit()
    assert asked == [(0, 1200), (1200, 2600)]
    start_writeback(-1, 0, 1)  # a failure is nobody's business


def test_open_descriptors_are_bounded_and_closed(tmp_path: Path) -> None:
    """However many blobs are read, at most `open_files` descriptors stay; none after the end."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    store = LocalFolderStore(tmp_path, open_files=4)
    for i in range(20):
        store.put(f"packs/{i}", bytes([i]))
    before = descriptors()
    for i in range(20):
        assert store.get_range(f"packs/{i}", 0, 1) == bytes([i])
    assert descriptors() == before + 4
    assert [i for i in range(20) if store.try_get_range(f"packs/{i}", 0, 1)] == [16, 17, 18, 19]
    del store
    assert descriptors() == before


def test_a_missing_root_is_an_error_and_not_an_empty_repository(tmp_path: Path) -> None:
    """A disk that is not mounted neither lists as empty nor is written beside."""
    store = LocalFolderStore(tmp_path / "unmounted")
    with pytest.raises(StorageError, match="unmounted"):
        list(store.list("packs"))
    with pytest.raises(StorageError, match="unmounted"):
        store.put("packs/a", b"")
    assert not (tmp_path / "unmounted").exists()


def test_a_folder_that_cannot_be_read_fails_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty answer means that there is nothing, not that looking failed."""
    store = LocalFolderStore(tmp_path)
    store.put("packs/3f/a", b"")

    def fail(path: Path) -> Any:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StorageError, match="packs"):
        list(store.list("packs"))


def test_foreign_files_are_not_blobs(tmp_path: Path) -> None:
    """Links, hidden files and names of other grammars are neither listed nor followed."""
    store = LocalFolderStore(tmp_path)
    store.put("packs/a", b"data")
    (tmp_path / "packs" / ".nfs0001").write_bytes(b"x")
    (tmp_path / "packs" / "a b").write_bytes(b"x")
    (tmp_path / "packs" / "link").symlink_to("/etc/passwd")
    assert [blob.name for blob in store.list("packs")] == ["packs/a"]
    with pytest.raises(StorageError):
        store.get("packs/link", limit_bytes=1 << 20)
    with pytest.raises(BlobNotFoundError):
        store.size_bytes("packs/link")


def test_an_old_leftover_waits_for_its_age(tmp_path: Path) -> None:
    """`older_than_s` is measured from the last write."""
    (tmp_path / "tmp").mkdir()
    left = tmp_path / "tmp" / "1-dead"
    left.write_bytes(b"xyz")
    hour_ago = time.time() - 3600
    os.utime(left, (hour_ago, hour_ago))
    store = LocalFolderStore(tmp_path)
    assert store.discard_unfinished(older_than_s=7200) == 0
    assert store.discard_unfinished(older_than_s=1800) == 3
