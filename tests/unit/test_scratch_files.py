"""Scratch files of a session: what is durable when, and what a failing storage may not hide."""

from __future__ import annotations

import errno
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.exports.datastore import scratch
from appliance.exports.datastore.scratch import ScratchFiles
from appliance.exports.datastore.tree import SessionTree
from nfs_server.protocol import Status
from nfs_server.vfs import AttributeChanges
from tests.contract.nfs_tree import PLAIN, refused
from tests.support.memory_device import MemoryDevice

Sync = Callable[[int], None]


class Storage:
    """Counts syncs, and fails those it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[Path] = []
        self.failing: set[str] = set()
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._sync(name))

    def _sync(self, name: str) -> Sync:
        def sync(fd: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
            if path.name in self.failing:
                self.failing.discard(path.name)
                raise OSError(errno.EIO, "lost")
            self.synced.append(path)

        return sync


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    return Storage(monkeypatch)


def test_a_sync_makes_the_name_of_a_new_file_durable_too(tmp_path: Path, storage: Storage) -> None:
    """Content without a name in its folder is lost with the power."""
    files = ScratchFiles(tmp_path / "files")
    storage.synced.clear()
    files.write(5, 0, b"x")
    files.sync(5)
    assert storage.synced == [tmp_path / "files" / "5", tmp_path / "files"]
    files.write(5, 0, b"y")
    files.sync(5)
    assert storage.synced[2:] == [tmp_path / "files" / "5"]


def test_a_name_whose_folder_could_not_be_synced_is_never_taken_for_durable(
    tmp_path: Path, storage: Storage
) -> None:
    """The error stays with the file, and other files do not suffer."""
    files = ScratchFiles(tmp_path / "files")
    files.write(5, 0, b"x")
    storage.failing.add("files")
    for _ in range(2):
        with pytest.raises(OSError, match=r"lost"):
            files.sync(5)
    files.write(6, 0, b"x")
    files.sync(6)
    assert storage.synced[-1] == tmp_path / "files"


def test_a_failed_sync_is_not_made_good_by_asking_again(tmp_path: Path, storage: Storage) -> None:
    """The kernel forgets the error; we do not, not even when the file was closed between."""
    files = ScratchFiles(tmp_path / "files")
    files.write(5, 0, b"x")
    storage.failing.add("5")
    with pytest.raises(OSError, match="lost"):
        files.sync(5)
    for number in range(100, 100 + 2 * scratch._OPEN_MAX):
        files.write(number, 0, b"x")
    attempts: tuple[Callable[[], None], ...] = (
        lambda: files.sync(5),
        lambda: files.write(5, 0, b"y"),
        lambda: files.resize(5, 0),
        lambda: files.set_modified(5, 1),
    )
    for attempt in attempts:
        with pytest.raises(OSError, match="lost"):
            attempt()
    assert files.read(5, 0, 1) == b"x"


def test_names_left_by_a_killed_process_are_synced_before_they_are_relied_on(
    tmp_path: Path, storage: Storage
) -> None:
    """They may not have been, and nobody can tell."""
    ScratchFiles(tmp_path / "files").write(5, 0, b"x")
    storage.synced.clear()
    ScratchFiles(tmp_path / "files")
    assert tmp_path / "files" in storage.synced


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_open_files_are_few_and_closed_ones_keep_their_content(tmp_path: Path) -> None:
    """A host may make thousands of files; that they are closed does not wait for the collector of
    garbage."""
    files = ScratchFiles(tmp_path / "files")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in range(3 * scratch._OPEN_MAX):
        files.write(number, 0, b"%d" % number)
    assert len(os.listdir("/proc/self/fd")) - before <= scratch._OPEN_MAX  # noqa: PTH208
    for number in range(3 * scratch._OPEN_MAX):
        assert files.read(number, 0, 10) == b"%d" % number


def test_a_file_that_is_just_being_closed_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who needs it while its descriptor closes never gets the dying one."""
    monkeypatch.setattr(scratch, "_OPEN_MAX", 1)
    files = ScratchFiles(tmp_path / "files")
    close = os.close
    closed = []

    def close_and_write(fd: int) -> None:
        close(fd)
        closed.append(fd)
        if len(closed) == 1:
            files.write(1, 4, b"late")

    monkeypatch.setattr(os, "close", close_and_write)
    files.write(1, 0, b"soon")
    files.write(2, 0, b"x")  # pushes 1 out
    assert closed
    assert files.read(1, 0, 10) == b"soonlate"


def test_writers_of_a_file_that_is_closed_and_opened_agree_on_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that grow one file while others push it out of the open ones."""
    monkeypatch.setattr(scratch, "_OPEN_MAX", 2)
    files = ScratchFiles(tmp_path / "files")

    def grow(first: int) -> None:
        for step in range(100):
            files.write(1, (first + 4 * step) * 10, b"0123456789")
            files.write(100 + first, step, b"x")

    threads = [threading.Thread(target=grow, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.size_bytes(1) == 4000 == (tmp_path / "files" / "1").stat().st_size
    assert files.read(1, 0, 5000) == b"0123456789" * 400


def test_content_of_a_file_removed_during_a_write_does_not_stay(tmp_path: Path) -> None:
    """A write that finds its file gone says so, and leaves nothing behind."""
    tree = SessionTree(tmp_path, {})
    file = tree.create(tree.root, b"file", PLAIN)
    original = tree._scratch.write

    def removed_first(*args: object) -> None:
        tree.remove(tree.root, b"file")
        original(*args)  # type: ignore[arg-type]

    tree._scratch.write = removed_first  # type: ignore[method-assign]
    with refused(Status.STALE):
        tree.write(file, 0, b"x")
    assert tree._scratch.numbers() == set()
    assert list((tmp_path / "files").iterdir()) == []
    tree.close()


def test_times_of_content_survive_a_restart(tmp_path: Path) -> None:
    """A client that cached a file before it was written to must not take the cache for new."""
    tree = SessionTree(tmp_path, {})
    written = tree.create(tree.root, b"written", PLAIN)
    dated = tree.create(tree.root, b"dated", PLAIN)
    empty = tree.create(tree.root, b"empty", AttributeChanges(modified=10**18))
    created_ns = tree.attributes(written).modified_ns
    for file in (written, dated):
        tree.write(file, 0, b"x")
        tree.sync(file)
    tree.set_attributes(dated, AttributeChanges(modified=10**18 + 1))
    tree.close()
    tree = SessionTree(tmp_path, {})
    assert tree.attributes(written).modified_ns > created_ns
    assert tree.attributes(dated).modified_ns == 10**18 + 1
    assert tree.attributes(empty).modified_ns == 10**18
    tree.close()


def test_a_disk_looks_changed_after_a_restart(tmp_path: Path) -> None:
    """Nobody knows when it was written to last, so no cache of it may be kept."""
    tree = SessionTree(tmp_path, {0: MemoryDevice(bytes(100))})
    disk = tree.add_disk(tree.root, b"flat", 0)
    tree.write(disk, 0, b"x")
    before = tree.attributes(disk)
    tree.close()
    tree = SessionTree(tmp_path, {0: MemoryDevice(bytes(100))})
    after = tree.attributes(disk)
    assert after.modified_ns > before.modified_ns
    assert after.changed_ns > before.changed_ns
    tree.close()


def test_a_write_after_a_date_in_the_future_is_dated_now(tmp_path: Path) -> None:
    """As POSIX has it; ctime is never what a client says."""
    tree = SessionTree(tmp_path, {})
    file = tree.create(tree.root, b"file", PLAIN)
    future_ns = 4 * 10**18
    tree.set_attributes(file, AttributeChanges(modified=future_ns))
    assert tree.attributes(file).changed_ns < future_ns
    tree.write(file, 0, b"x")
    assert tree.attributes(file).modified_ns < future_ns
    tree.close()


def test_an_error_of_the_storage_is_logged_once(
    tmp_path: Path, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """A host repeats what fails; the log is for reading."""
    tree = SessionTree(tmp_path, {})
    file = tree.create(tree.root, b"file", PLAIN)
    tree.write(file, 0, b"x")
    storage.failing.add(str(file))
    for _ in range(5):
        with refused(Status.IO):
            tree.sync(file)
    assert sum("storage" in record.message for record in caplog.records) <= 2
    tree.close()
