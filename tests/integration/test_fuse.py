"""A recovery point as files in a folder, used by ordinary tools."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.base.errors import UsageError
from appliance.base.units import KIB, MIB
from appliance.exports.fuse import FuseExport, StaleMountError, check_folder
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.sources.raw_image import RawImageReader
from tests.support.memory_reader import MemoryReader
from tests.support.needs import needs
from tests.support.points import commit_point

pytestmark = pytest.mark.integration
SERVE = """
import sys
from pathlib import Path
from appliance.exports.fuse import FuseExport
from appliance.repository.repository import Repository
with Repository.open(Path(sys.argv[1])) as repository:
    FuseExport(repository, repository.points.get(sys.argv[2]), Path(sys.argv[3])).serve()
print("served", flush=True)
"""


@dataclass(frozen=True)
class Point:
    repository: Path
    manifest: Manifest
    file_system: Path  # what disk 0 was made from
    odd: bytes  # the content of disk 1


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory) -> Point:
    needs("mkfs.ext4", "fusermount")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        if os.environ.get("HOLDFAST_NO_SKIP"):
            pytest.fail("/dev/fuse cannot be used")
        pytest.skip("/dev/fuse cannot be used")
    folder = tmp_path_factory.mktemp("point")
    (folder / "files").mkdir()
    source = random.Random(4)
    (folder / "files/random").write_bytes(source.randbytes(9 * MIB))
    (folder / "files/text").write_text("kept\n" * 10_000)
    image = folder / "image"
    run("truncate", "-s", "64M", image)
    run("mkfs.ext4", "-q", "-d", folder / "files", image)
    odd = source.randbytes(300 * KIB + 77)
    Repository.create(folder / "repository")
    with Repository.open(folder / "repository") as repository, RawImageReader(image) as disk:
        manifest = commit_point(repository, disk, MemoryReader(odd))
    return Point(folder / "repository", manifest, image, odd)


def run(*command: str | Path) -> str:
    result = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def unmount(folder: Path) -> None:
    subprocess.run(["fusermount", "-uz", folder], timeout=20, capture_output=True)


@contextmanager
def mounted(point: Point, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, point.repository, point.manifest.point_id, folder],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
    )
    try:
        wait_for(lambda: os.path.ismount(folder) or process.poll() is not None)
        assert process.poll() is None
        yield process
    finally:
        unmount(folder)
        process.kill()
        process.communicate(timeout=20)


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_files_are_the_disks(point: Point, tmp_path: Path) -> None:
    """Names, sizes, times and every byte; read in order, at random, and past the end."""
    with mounted(point, tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["disk-0.raw", "disk-1.raw"]
        run("cmp", tmp_path / "disk-0.raw", point.file_system)
        odd = tmp_path / "disk-1.raw"
        status = odd.stat()
        assert status.st_size == len(point.odd)
        assert status.st_mode & 0o777 == 0o400
        assert abs(status.st_mtime - point.manifest.created_at.timestamp()) < 1e-3
        fd = os.open(odd, os.O_RDONLY)
        try:
            source = random.Random(2)
            for _ in range(50):
                offset = source.randrange(len(point.odd) + 1000)
                length = source.randrange(200_000)
                assert os.pread(fd, length, offset) == point.odd[offset : offset + length]
        finally:
            os.close(fd)
        assert os.statvfs(tmp_path).f_blocks * 4096 >= 64 * MIB


def test_nothing_can_be_written(point: Point, tmp_path: Path) -> None:
    """Writing, creating, removing and renaming fail as on any read-only file system."""
    with mounted(point, tmp_path):
        disk = tmp_path / "disk-0.raw"
        for act in (
            lambda: disk.open("r+b"),
            lambda: (tmp_path / "new").touch(),
            disk.unlink,
            lambda: disk.rename(tmp_path / "other"),
            lambda: disk.chmod(0o777),
            lambda: os.truncate(disk, 0),
        ):
            with pytest.raises(OSError, match="Read-only"):
                act()
        with pytest.raises(FileNotFoundError):
            (tmp_path / "disk-2.raw").stat()


def test_ordinary_tools_work_on_it(point: Point, tmp_path: Path) -> None:
    """dd, qemu-img, and a loop device with the guest's file system on it."""
    needs("dd", "qemu-img", "losetup", "mount")
    folder, inside = tmp_path / "mount", tmp_path / "inside"
    folder.mkdir()
    inside.mkdir()
    with mounted(point, folder):
        disk = folder / "disk-0.raw"
        run("dd", f"if={disk}", f"of={tmp_path / 'copy'}", "bs=1M", "status=none")
        run("cmp", tmp_path / "copy", point.file_system)
        info = json.loads(run("qemu-img", "info", "--output=json", "-f", "raw", disk))
        assert info["virtual-size"] == 64 * MIB
        made = subprocess.run(
            ["losetup", "--read-only", "--find", "--show", disk], capture_output=True, text=True
        )
        if made.returncode and not os.environ.get("HOLDFAST_NO_SKIP"):
            pytest.skip(f"no loop device here: {made.stderr}")
        device = made.stdout.strip()
        try:
            run("mount", "-o", "ro,noload", device, inside)
            try:
                assert (inside / "text").read_text() == "kept\n" * 10_000
                run("cmp", inside / "random", point.file_system.parent / "files/random")
            finally:
                run("umount", inside)
        finally:
            run("losetup", "--detach", device)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_unmounts_and_ends_the_server(
    point: Point, tmp_path: Path, number: signal.Signals
) -> None:
    """`serve` returns, so that what comes after it runs; the folder is empty and free again."""
    with mounted(point, tmp_path) as process:
        assert (tmp_path / "disk-1.raw").read_bytes() == point.odd
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
        assert (process.returncode, output) == (0, b"served\n")
        assert not os.path.ismount(tmp_path)
        check_folder(tmp_path)


def test_a_mount_left_by_a_killed_server_is_named_and_can_be_replaced(
    point: Point, tmp_path: Path
) -> None:
    """The error says which command to run; after it the folder can be mounted on again."""
    with mounted(point, tmp_path) as process:
        process.kill()
        process.wait()
        with (
            Repository.open(point.repository) as repository,
            pytest.raises(StaleMountError, match=f"fusermount -u {tmp_path}"),
        ):
            FuseExport(repository, point.manifest, tmp_path).serve()
        run("fusermount", "-u", tmp_path)
    with mounted(point, tmp_path):
        assert (tmp_path / "disk-1.raw").read_bytes() == point.odd


def test_a_damaged_chunk_is_an_input_output_error(point: Point, tmp_path: Path) -> None:
    """Only reads that need it fail; the server goes on."""
    folder, broken = tmp_path / "mount", tmp_path / "repository"
    folder.mkdir()
    run("cp", "-r", point.repository, broken)
    packs = sorted(broken.glob("packs/**/*"), key=lambda path: path.stat().st_size)
    with packs[-1].open("r+b") as file:
        file.seek(4 * MIB)
        file.write(bytes(16))
    damaged = Point(broken, point.manifest, point.file_system, point.odd)
    with mounted(damaged, folder):
        expected = point.file_system.read_bytes()
        good = failed = 0
        fd = os.open(folder / "disk-0.raw", os.O_RDONLY)
        try:
            for offset in range(0, len(expected), 64 * KIB):
                try:
                    data = os.pread(fd, 64 * KIB, offset)
                except OSError:
                    failed += 1
                else:
                    assert data == expected[offset : offset + len(data)]
                    whole = len(data) == 64 * KIB
                    good += whole
                    failed += not whole  # short: an error in its later pages
                    failed += len(data) < 64 * KIB  # the kernel gives what precedes the damage
        finally:
            os.close(fd)
        assert 0 < failed < 10 < good


def test_only_an_empty_folder_is_mounted_on(tmp_path: Path) -> None:
    """A folder with files in it is not hidden behind the mount; a missing one is an error."""
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(UsageError):
            check_folder(folder)
