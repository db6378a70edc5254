"""One volume of a disk as a file that a checker can open: qemu-storage-daemon shows it over FUSE.

    checker -> FUSE file -> qemu-storage-daemon (a window into the disk) -> NBD on a Unix socket

The daemon sees the socket of the export and nothing of the repository. It ends with us: orderly by
QMP, and by the death of the thread that started it. Windows come from our own parser, never from a
name in the guest.
Thread model: use a `volume_file` on one thread.
Source: QEMU 7.2 manual, qemu-storage-daemon (`--export type=fuse`), block driver options of raw.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.base.errors import ExternalProgramError
from appliance.blocks.partition_table import Volume
from appliance.sandbox.errors import QmpError
from appliance.sandbox.qmp import QmpClient
from appliance.sandbox.spec import NbdExport

UNPRIVILEGED_ID = 65534  # nobody
_PROGRAM = "qemu-storage-daemon"
_END_WAIT_S = 10.0
_STDERR_BYTES_MAX = 8 * 1024


@contextmanager
def volume_file(disk: NbdExport, volume: Volume, folder: Path) -> Iterator[Path]:
    """Show `volume` as a file in `folder` for the block; it belongs to nobody when we are root.

    Raises: ExternalProgramError: the daemon is missing or failed; its words.
    """
    path = folder / "volume"
    path.touch()
    is_root = os.geteuid() == 0
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = _start(disk, volume, path, theirs.fileno(), shared=is_root)
        try:
            control = _connect(process, ours)
            if is_root:
                os.chown(path, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
            yield path
            with suppress(QmpError):
                control.execute("quit")
        finally:
            _end(process, path)
    finally:
        ours.close()
        path.unlink(missing_ok=True)


def _start(
    disk: NbdExport, volume: Volume, path: Path, control_fd: int, *, shared: bool
) -> subprocess.Popen[bytes]:
    window = {
        "driver": "raw",
        "node-name": "volume",
        "offset": volume.offset,
        "size": volume.length,
        "file": disk.block_node(),
    }
    export = {
        "type": "fuse",
        "id": "file",
        "node-name": "volume",
        "mountpoint": str(path),
        "writable": True,
        "allow-other": "on" if shared else "off",
    }
    command = [
        *("setpriv", "--pdeathsig", "TERM", _PROGRAM),
        *("--chardev", f"socket,id=qmp0,fd={control_fd}", "--monitor", "chardev=qmp0"),
        *("--blockdev", json.dumps(window), "--export", json.dumps(export)),
    ]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(control_fd,),
            start_new_session=True,
        )
    except OSError as error:
        raise ExternalProgramError(f"cannot start {_PROGRAM}: {error}") from error


def _connect(process: subprocess.Popen[bytes], control: socket.socket) -> QmpClient:
    """It greets once the export stands."""
    try:
        return QmpClient(control)
    except QmpError as error:
        process.kill()
        assert process.stderr is not None
        words = process.stderr.read(_STDERR_BYTES_MAX).decode("utf-8", "replace").strip()
        raise ExternalProgramError(f"{_PROGRAM}: {words or error}") from error


def _end(process: subprocess.Popen[bytes], path: Path) -> None:
    try:
        process.wait(_END_WAIT_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(_END_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stderr is not None:
        process.stderr.close()
    if os.path.ismount(path):  # it was killed
        with suppress(OSError):
            subprocess.run(["fusermount3", "-u", "-z", str(path)], check=False, timeout=10)
