"""The trees that are served over NFS, and what is special about each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.exports.datastore.tree import SessionTree
from nfs_server.protocol import Status
from nfs_server.vfs import AttributeChanges, Tree
from tests.contract.nfs_tree import PLAIN, NfsTreeSuite, refused
from tests.support.memory_device import MemoryDevice
from tests.support.plain_folder import PlainFolder

DISK = random.Random(3).randbytes(100_000)


class TestPlainFolder(NfsTreeSuite):
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Tree:
        return PlainFolder(tmp_path)


class TestSessionTree(NfsTreeSuite):
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Iterator[Tree]:
        tree = SessionTree(tmp_path / "session", {})
        yield tree
        tree.close()


def test_a_session_tree_comes_back_with_its_numbers_and_content(tmp_path: Path) -> None:
    """After a restart every name, number, cookie, size and byte is as it was."""
    tree = SessionTree(tmp_path, {0: MemoryDevice(DISK)})
    folder = tree.make_folder(tree.root, b"web", PLAIN)
    disk = tree.add_disk(folder, b"web-flat.vmdk", 0)
    log = tree.create(folder, b"vmware.log", PLAIN)
    lock = tree.create(folder, b".lck-1", PLAIN, exclusive=b"verifier")
    tree.write(log, 5000, b"line")
    tree.sync(log)
    tree.rename(folder, b"vmware.log", folder, b"vmware-1.log")
    before = list(tree.list(folder, 0, 10))
    tree.close()
    tree = SessionTree(tmp_path, {0: MemoryDevice(DISK)})
    assert list(tree.list(folder, 0, 10)) == before
    assert tree.add_disk(folder, b"web-flat.vmdk", 0) == disk
    assert tree.attributes(log).size_bytes == 5004
    assert bytes(tree.read(log, 0, 9000)) == bytes(5000) + b"line"
    assert tree.create(folder, b".lck-1", PLAIN, exclusive=b"verifier") == lock
    assert tree.create(folder, b"new", PLAIN) not in {entry.number for entry in before}
    tree.close()


def test_a_disk_keeps_its_size_and_takes_writes(tmp_path: Path) -> None:
    """The flat file is the disk: it cannot be made longer, shorter or written past its end."""
    device = MemoryDevice(DISK)
    tree = SessionTree(tmp_path, {0: device})
    disk = tree.add_disk(tree.root, b"flat", 0)
    assert tree.attributes(disk).size_bytes == len(DISK)
    tree.write(disk, 10, b"written")
    tree.sync(disk)
    assert device.read_at(10, 7) == b"written"
    tree.set_attributes(disk, AttributeChanges(size_bytes=len(DISK)))
    with refused(Status.INVAL):
        tree.set_attributes(disk, AttributeChanges(size_bytes=len(DISK) + 1))
    with refused(Status.FBIG):
        tree.write(disk, len(DISK) - 1, b"xx")
    tree.close()


def test_writes_stop_before_the_space_kept_free(tmp_path: Path) -> None:
    """What the appliance needs for itself is not given to guests."""
    tree = SessionTree(tmp_path, {}, reserve_bytes=1 << 60)
    file = tree.create(tree.root, b"file", PLAIN)
    with refused(Status.NOSPC):
        tree.write(file, 0, b"x")
    tree.close()


def test_numbers_are_never_used_again(tmp_path: Path) -> None:
    """A handle kept by a client never leads to another file, restarts included."""
    seen: set[int] = set()
    for _ in range(3):
        tree = SessionTree(tmp_path, {})
        for index in itertools.islice(itertools.count(), 5):
            number = tree.create(tree.root, b"%d" % index, PLAIN)
            assert number not in seen
            seen.add(number)
            tree.remove(tree.root, b"%d" % index)
        tree.close()
