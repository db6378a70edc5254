"""Devices as files: what a program sees, and what it is told when the device cannot."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.base.errors import ExternalProgramError, StorageError, StorageFullError, UsageError
from appliance.base.units import MIB
from appliance.exports.device_files import DeviceFiles
from appliance.exports.fuse import MountError
from appliance.exports.iscsi.server import IscsiServer
from tests.support.holdfast_program import ROOT
from tests.support.memory_device import MemoryDevice
from tests.support.needs import needs

pytestmark = pytest.mark.integration
_DO = """
import os, sys
flags, offset, action = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
try:
    fd = os.open(sys.argv[1], flags)
    if action == "read":
        sys.stdout.buffer.write(os.pread(fd, 512, offset))
    else:
        os.pwrite(fd, b"w" * 512, offset)
        os.fsync(fd)
except OSError as error:
    sys.exit(error.errno)
"""


_MOUNTING = """
import signal, sys
from pathlib import Path
from appliance.exports.device_files import DeviceFiles
DeviceFiles(Path(sys.argv[1])).open()
print("mounted", flush=True)
signal.pause()
"""


class Failing(MemoryDevice):
    """One that cannot: writes raise the given error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(bytes(MIB))
        self._error = error

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        raise self._error


@pytest.fixture
def files(tmp_path: Path) -> Iterator[DeviceFiles]:
    needs("fusermount3")
    with DeviceFiles(tmp_path / "files") as opened:
        yield opened


def do(path: Path, action: str, *, flags: int = os.O_RDWR, offset: int = 0) -> tuple[int, bytes]:
    """In a process of its own: this one holds the GIL that the file needs."""
    done = subprocess.run(
        [sys.executable, "-c", _DO, path, str(flags), str(offset), action],
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_file_is_the_device(files: DeviceFiles) -> None:
    """What one writes the other reads, at once and both ways."""
    device = MemoryDevice(bytes(MIB))
    path = files.add("disk", device)
    assert do(path, "write", offset=1024) == (0, b"")
    assert device.read_at(1024, 512) == b"w" * 512
    device.write_at(2048, b"d" * 512)
    assert do(path, "read", offset=2048) == (0, b"d" * 512)
    assert do(path, "read", offset=MIB - 100) == (0, bytes(100))
    assert do(path, "write", offset=MIB - 100)[0] == errno.EFBIG


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (StorageFullError("full"), errno.ENOSPC),
        (StorageError("broken"), errno.EIO),
        (ValueError("a mistake of ours"), errno.EIO),
    ],
)
def test_a_device_that_fails_is_an_error_number(
    files: DeviceFiles, error: Exception, number: int
) -> None:
    """And the mount lives on."""
    path = files.add("disk", Failing(error))
    assert do(path, "write")[0] == number
    assert do(path, "read") == (0, bytes(512))


def test_a_read_only_file_takes_no_writer(files: DeviceFiles) -> None:
    """Refused when it is opened."""
    path = files.add("disk", MemoryDevice(bytes(MIB)), read_only=True)
    assert do(path, "write")[0] in (errno.EROFS, errno.EACCES)
    assert do(path, "read", flags=os.O_RDONLY) == (0, bytes(512))


def test_a_file_that_was_removed_is_gone(files: DeviceFiles) -> None:
    """So that its device may be closed."""
    path = files.add("disk", MemoryDevice(bytes(MIB)))
    files.remove("disk")
    files.remove("disk")
    assert do(path, "read")[0] == errno.ENOENT


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    """Nothing is mounted over what is there."""
    needs("fusermount3")
    (tmp_path / "something").touch()
    with pytest.raises((MountError, UsageError)):
        DeviceFiles(tmp_path).open()
    assert not os.path.ismount(tmp_path)


def test_a_port_that_is_taken_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    """Neither tgtd nor a mount."""
    needs("tgtd", "fusermount3")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = IscsiServer(tmp_path / "luns", host="127.0.0.1", port=port)
        try:
            with pytest.raises(ExternalProgramError, match=f"port {port}"):
                server.start()
        finally:
            server.stop()
    assert server.tgtd_pid == 0
    assert not (tmp_path / "luns").exists()


def test_a_folder_is_mounted_again_and_again(tmp_path: Path) -> None:
    """Each time the files are there when `open` returns; each `close` leaves no process of it."""
    needs("fusermount3")
    files = DeviceFiles(tmp_path / "files")
    for _ in range(5):
        files.open()
        assert files.connection_fds
        path = files.add("disk", MemoryDevice(bytes(MIB)))
        assert do(path, "read") == (0, bytes(512))
        files.remove("disk")
        files.close()
        assert not files.connection_fds and processes_that_name(files.folder) == []


def test_a_mount_goes_with_its_process(tmp_path: Path) -> None:
    """Also when that is killed: nothing dead stays mounted."""
    needs("fusermount3")
    folder = tmp_path / "files"
    process = subprocess.Popen(
        [sys.executable, "-c", _MOUNTING, folder], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "mounted\n"
    assert os.path.ismount(folder)
    process.kill()
    process.communicate()
    ends_s = time.monotonic() + 60
    while processes_that_name(folder):
        assert time.monotonic() < ends_s, "the guard stays"
        time.sleep(0.02)
    assert str(folder) not in Path("/proc/mounts").read_text()


def processes_that_name(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            words = entry.read_bytes().split(b"\0")
            if str(folder).encode() in words and int(entry.parent.name) != os.getpid():
                found.append(words[0].decode())
    return found
