"""A real ext4 on our NBD server: libnbd's FUSE file, a loop device, and random file operations."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.exports.nbd import NbdExport
from tests.support.nbd_servers import serving
from tests.support.needs import needs
from tests.support.programs import guarded, run
from tests.support.sparse_device import SparseDevice

pytestmark = pytest.mark.integration

MIB = 1 << 20
OPERATIONS = 400


def require_root_and_fuse() -> None:
    reason = "needs root, /dev/fuse and loop devices"
    if os.geteuid() == 0 and Path("/dev/fuse").exists() and Path("/dev/loop-control").exists():
        return
    if os.environ.get("HOLDFAST_NO_SKIP"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def loop_device(uri: str, folder: Path) -> Iterator[Path]:
    """The export as a block device: nbdfuse presents it as a file, the kernel loops that."""
    folder.mkdir()
    file = folder / "disk"
    with subprocess.Popen(guarded("nbdfuse", file, uri)) as fuse:
        try:
            for _ in range(500):
                if file.exists():
                    break
                assert fuse.poll() is None, "nbdfuse ended"
                time.sleep(0.02)
            device = Path(run("losetup", "--find", "--show", file).strip())
            try:
                yield device
            finally:
                run("losetup", "--detach", device)
        finally:
            run("fusermount3", "-u", folder)
            assert fuse.wait(30) == 0


@contextmanager
def mounted(device: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    run("mount", "-o", "discard", device, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


def operate(root: Path, model: dict[str, bytes], chance: random.Random) -> None:
    """One random operation on a file and on its model."""
    name = f"file-{chance.randrange(40)}"
    path = root / name
    kind = chance.choice(["write", "write", "patch", "append", "truncate", "remove", "rename"])
    if kind == "write" or name not in model:
        model[name] = chance.randbytes(chance.choice([0, 1, 4096, 70_000, 500_000]))
        path.write_bytes(model[name])
    elif kind == "remove":
        path.unlink()
        del model[name]
    elif kind == "rename":
        target = f"file-{chance.randrange(40)}"
        path.rename(root / target)
        model[target] = model.pop(name)
    elif kind == "truncate":
        length = chance.randrange(len(model[name]) + 5000)
        os.truncate(path, length)
        model[name] = model[name][:length].ljust(length, b"\0")
    else:
        data = chance.randbytes(chance.randrange(1, 100_000))
        offset = len(model[name]) if kind == "append" else chance.randrange(len(model[name]) + 1)
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
            os.fsync(file.fileno())
        model[name] = model[name][:offset] + data + model[name][offset + len(data) :]


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("file-*")}


def test_a_file_system_lives_on_our_server(tmp_path: Path) -> None:
    """Files survive unmounting and a new server, and the file system has no faults afterwards."""
    needs("nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "fusermount3", "mount")
    require_root_and_fuse()
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance, model = random.Random(seed), dict[str, bytes]()
    disk = SparseDevice(128 * MIB)
    for number in range(2):
        with (
            serving(
                NbdExport(name="disk", disk=disk, read_only=False), address=tmp_path / "nbd.sock"
            ) as server,
            loop_device(server.uri("disk"), tmp_path / f"fuse-{number}") as device,
        ):
            if number == 0:
                run("mkfs.ext4", "-q", device)
            with mounted(device, tmp_path / "mnt") as root:
                assert contents(root) == model
                for _ in range(OPERATIONS):
                    operate(root, model, chance)
                assert contents(root) == model
            run("e2fsck", "-fn", device)
            with mounted(device, tmp_path / "mnt") as root:
                assert contents(root) == model
    assert disk.flushes, "fsync must have reached the disk"
