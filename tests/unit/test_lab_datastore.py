"""Datastores of the lab: paths that cannot leave, files that stay sparse, locks that exclude."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.esx.datastore import DatastoreKind, Datastores, LabDatastore
from lab.esx.datastore_path import DatastorePath
from lab.esx.errors import (
    FileLockedError,
    FileMissingError,
    FileThereError,
    InvalidPathError,
    NoDatastoreError,
)
from lab.esx.file_locks import FileLocks, LockMode


def test_a_datastore_path_survives_parsing_and_printing() -> None:
    """The text form is the one vSphere prints."""
    path = DatastorePath.parse("[ds one] vm/vm.vmdk")
    assert (path.datastore, path.path, str(path)) == ("ds one", "vm/vm.vmdk", "[ds one] vm/vm.vmdk")
    assert str(path.sibling("vm-flat.vmdk")) == "[ds one] vm/vm-flat.vmdk"
    assert path.folder == DatastorePath.parse("[ds one] vm/")


@pytest.mark.parametrize(
    "text",
    [
        "vm/vm.vmdk",
        "[] a",
        "[a/b] c",
        "[ds] ../etc/passwd",
        "[ds] vm/../../x",
        "[ds] /etc/passwd",
        "[ds] a//b",
        "[ds] ./a",
        "[ds] a\x00b",
        "[ds] a\nb",
        "[ds] " + "n" * 300,
    ],
)
def test_a_path_that_leaves_the_datastore_is_refused(text: str) -> None:
    """No part of a path may be empty, a dot, over-long or unprintable."""
    with pytest.raises(InvalidPathError):
        DatastorePath.parse(text)


def test_a_symbolic_link_does_not_lead_out_of_the_datastore(tmp_path: Path) -> None:
    """Neither a file behind a link nor the link itself is there."""
    root = tmp_path / "ds"
    root.mkdir()
    tmp_path.joinpath("secret").write_text("secret")
    root.joinpath("link").symlink_to(tmp_path)
    root.joinpath("file").symlink_to(tmp_path / "secret")
    files = LabDatastore("ds", root).files
    assert files.stat("link/secret") is None
    assert files.stat("file") is None
    with pytest.raises(FileMissingError):
        files.read_at("link/secret", 0, 10)


def test_a_copy_between_datastores_is_equal_and_sparse(tmp_path: Path) -> None:
    """Only data is moved; holes stay holes."""
    stores = Datastores()
    for name in ("a", "b"):
        tmp_path.joinpath(name).mkdir()
        stores.add(LabDatastore(name, tmp_path / name))
    source = stores.get("a").path("disk")
    files = stores.files_of(source)
    files.create("disk", 64 << 20)
    files.write_at("disk", 32 << 20, b"data" * 1024)
    moved = stores.copy(source, stores.get("b").path("copy"))
    assert moved < 1 << 20
    assert stores.get("b").files.read_at("copy", 32 << 20, 4096) == b"data" * 1024
    entry = stores.stat(stores.get("b").path("copy"))
    assert entry is not None and entry.size_bytes == 64 << 20 and entry.allocated_bytes < 1 << 20
    with pytest.raises(FileThereError):
        stores.copy(source, stores.get("b").path("copy"))


def test_an_nfs_datastore_cannot_be_a_folder(tmp_path: Path) -> None:
    """It is reached by an NFS client or not at all."""
    with pytest.raises(ValueError, match="folder"):
        LabDatastore("nfs", tmp_path, DatastoreKind.NFS)
    with pytest.raises(NoDatastoreError):
        Datastores().get("nfs")


def test_an_exclusive_lock_excludes_and_a_shared_one_shares() -> None:
    """And a request that conflicts anywhere takes nothing."""
    locks, leaf = FileLocks(), DatastorePath.parse("[ds] vm/vm-000001.vmdk")
    base = DatastorePath.parse("[ds] vm/vm.vmdk")
    locks.acquire("vm-1", [(leaf, LockMode.EXCLUSIVE), (base, LockMode.SHARED)])
    locks.acquire("appliance", [(base, LockMode.SHARED)])
    locks.refuse_unless_readable(base)
    with pytest.raises(FileLockedError, match="vm-1"):
        locks.refuse_unless_readable(leaf)
    with pytest.raises(FileLockedError):
        locks.refuse_unless_free(base)
    with pytest.raises(FileLockedError):
        locks.refuse_unless_free(DatastorePath.parse("[ds] vm"))
    other = DatastorePath.parse("[ds] vm/other.vmdk")
    with pytest.raises(FileLockedError):
        locks.acquire("vm-2", [(other, LockMode.SHARED), (leaf, LockMode.SHARED)])
    assert locks.locks(other) == []
    locks.release("vm-1")
    locks.acquire("vm-2", [(leaf, LockMode.EXCLUSIVE)])
    assert [lock.holder for lock in locks.locks(base)] == ["appliance"]


def test_a_holder_changes_the_mode_of_its_own_lock() -> None:
    """A snapshot turns the leaf into a parent."""
    locks, disk = FileLocks(), DatastorePath.parse("[ds] vm/vm.vmdk")
    locks.acquire("vm-1", [(disk, LockMode.EXCLUSIVE)])
    locks.acquire("vm-1", [(disk, LockMode.SHARED)])
    locks.acquire("reader", [(disk, LockMode.SHARED)])
    with pytest.raises(FileLockedError):
        locks.acquire("vm-1", [(disk, LockMode.EXCLUSIVE)])
