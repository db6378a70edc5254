"""A full disk stops the run with a clear error; what was committed is intact, and work goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.base.errors import StorageError, StorageFullError
from appliance.base.secret import Secret
from appliance.base.units import MIB
from appliance.repository.gc import collect_garbage
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository, RepositoryOptions
from tests.support.check_repository import check_repository, packed_bytes, restored
from tests.support.needs import needs
from tests.support.small_backups import back_up_bytes, random_disk

OPTIONS = RepositoryOptions(pack_target_bytes=1 << 20)
SMALL = bytes(random_disk(1, 1000))
LARGE = bytes(random_disk(2, 4500))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    needs("mount", "umount")
    path = tmp_path / "mount"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "holdfast-test", str(path)]
    tried = subprocess.run(command, capture_output=True, timeout=20, check=False)
    if tried.returncode:
        reason = f"cannot mount a small file system: {tried.stderr.decode().strip()}"
        if os.environ.get("HOLDFAST_NO_SKIP"):
            pytest.fail(reason)
        pytest.skip(reason)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], timeout=20, check=True)


def fill(path: Path, leave_bytes: int) -> Path:
    """Write a ballast file until only `leave_bytes` are free."""
    status = os.statvfs(path)
    ballast = path / "ballast"
    size = max(status.f_bavail * status.f_frsize - leave_bytes, 0)
    ballast.write_bytes(bytes(size))
    return ballast


@pytest.mark.parametrize("leave_kib", [0, 64, 300, 1500, 4000, 9000])
def test_a_backup_that_fills_the_disk_fails_cleanly(mount: Path, leave_kib: int) -> None:
    """StorageFullError; the older point restores from the full disk; with space all is well."""
    path = mount / "r"
    Repository.create(path)
    with Repository.open(path, options=OPTIONS) as repository:
        first = back_up_bytes(repository, SMALL)
        ballast = fill(mount, leave_kib << 10)
        with pytest.raises(StorageFullError):
            back_up_bytes(repository, LARGE)
        assert restored(repository, first.point_id) == SMALL
    ballast.unlink()
    with Repository.open(path, options=OPTIONS) as repository:
        assert repository.points.ids() == [first.point_id]
        check_repository(repository)
        collect_garbage(repository)  # half of the run that failed would be in the way
        second = back_up_bytes(repository, LARGE[: 3000 * 4096])
        assert restored(repository, second.point_id) == LARGE[: 3000 * 4096]
        check_repository(repository)


@contextmanager
def one_kept_one_forgotten(path: Path) -> Iterator[tuple[Repository, Manifest]]:
    Repository.create(path)
    with Repository.open(path, options=OPTIONS) as repository:
        first = back_up_bytes(repository, SMALL)
        second = back_up_bytes(repository, LARGE[: 1500 * 4096], "other")
        repository.points.forget(second.id)
        yield repository, first


def test_garbage_collection_makes_room_on_a_nearly_full_disk(mount: Path) -> None:
    """It drops packs before it rewrites any; a completely full disk it survives."""
    path = mount / "r"
    with one_kept_one_forgotten(path) as (repository, first):
        ballast = fill(mount, 0)
        size = packed_bytes(path)
        with pytest.raises(StorageFullError):
            collect_garbage(repository)
        assert restored(repository, first.point_id) == SMALL
        os.truncate(ballast, ballast.stat().st_size - MIB)
        collect_garbage(repository)
        assert packed_bytes(path) < size * 0.6
        check_repository(repository)
        assert restored(repository, first.point_id) == SMALL


def test_garbage_collection_begins_with_what_a_killed_run_left(mount: Path) -> None:
    """On a disk without a free byte, the unfinished pack is the room that the rest needs."""
    path = mount / "r"
    with one_kept_one_forgotten(path) as (repository, first):
        (path / "tmp" / "4711-0123456789abcdef").write_bytes(bytes(MIB))
        fill(mount, 0)
        size = packed_bytes(path)
        collect_garbage(repository)
        assert packed_bytes(path) < size * 0.6
        check_repository(repository)
        assert restored(repository, first.point_id) == SMALL


@pytest.mark.parametrize("passphrase", [None, Secret(b"frozen")], ids=["clear", "encrypted"])
def test_one_restores_from_a_file_system_that_became_read_only(
    mount: Path, passphrase: Secret | None
) -> None:
    """As ext4 does when its disk fails: points are listed and restored, a backup is refused."""
    path = mount / "r"
    Repository.create(path, passphrase=passphrase)
    with Repository.open(path, passphrase=passphrase, options=OPTIONS) as repository:
        manifest = back_up_bytes(repository, SMALL)
    subprocess.run(["mount", "-o", "remount,ro", str(mount)], timeout=20, check=True)
    with Repository.open(path, passphrase=passphrase, options=OPTIONS) as repository:
        assert repository.points.list() == [manifest]
        assert restored(repository, manifest.point_id) == SMALL
        with pytest.raises(StorageError, match="Read-only file system"):
            back_up_bytes(repository, LARGE)
        with pytest.raises(StorageError, match="Read-only file system"):
            repository.index.announce([])
    subprocess.run(["mount", "-o", "remount,rw", str(mount)], timeout=20, check=True)
    with Repository.open(path, passphrase=passphrase, options=OPTIONS) as repository:
        back_up_bytes(repository, LARGE)
        check_repository(repository)
