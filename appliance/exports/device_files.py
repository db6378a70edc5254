"""Devices as files, for programs that know nothing but files: tgt, smbd, mkntfs.

    program -> kernel -> libfuse2 -> fusepy -> `_Files` -> a `BlockDevice` per file

A name may have one folder in front; the folder is there as long as a file of it is.
Invariant: nothing is kept in the kernel (direct_io), so a file and its device agree at any time.

Life: the mount ends with `close`, with `fusermount -u`, or with the process: a guard unmounts then.
(libfuse's own auto_unmount would leave a process and a socket of each mount, for good.) While
somebody else holds `connection_fds` the kernel does not answer in the place of a dead server, it
waits: see `tgt_process`.

Thread model: libfuse runs its threads, several requests at once; `add` and `remove` any thread.
Touching a file of the folder from Python needs the GIL on both sides, so do that in a child only.
libfuse takes over SIGHUP while it runs, where nobody else handles it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import os
import signal
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

from appliance.base.units import KIB
from appliance.blocks.device import BlockDevice
from appliance.exports.fuse import MountError, check_folder, load_fuse
from appliance.exports.fuse_operations import FuseOperations
from appliance.exports.guard import Guard

_MOUNT_WITHIN_S = 20.0
_POLL_S = 0.005
_SIG_IGN = 1  # of the C library
_TRANSFER_BYTES = 128 * KIB  # libfuse2 does not ask for more at once
log = logging.getLogger(__name__)


class DeviceFiles:
    """A context manager; `folder` is made if missing and must be empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = _Files()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._guard: Guard | None = None
        self.connection_fds: tuple[int, ...] = ()

    def __enter__(self) -> DeviceFiles:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Return once the folder is mounted; what a killed process left there is unmounted.

        Raises: MountError, UsageError.
        """
        unmount(self.folder)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(self.folder)
        before = _fuse_fds()
        fuse = load_fuse()
        self._failure = None
        self._files.started.clear()
        self._thread = threading.Thread(target=self._serve, args=(fuse,), name="device-files")
        self._thread.start()
        if not self._files.started.wait(_MOUNT_WITHIN_S) or not self._thread.is_alive():
            self.close()
            raise MountError(f"{self.folder}: cannot be mounted on") from self._failure
        self.connection_fds = tuple(sorted(_fuse_fds() - before))
        self._guard = Guard('fusermount -u -q -z "$1"', str(self.folder))

    def close(self) -> None:
        """Unmount; nobody may have a file open, or they get errors. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        while thread.is_alive():
            unmount(self.folder)
            thread.join(_POLL_S * 20)
        self.connection_fds = ()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.end()
        self.folder.rmdir()

    def add(
        self,
        name: str,
        device: BlockDevice,
        *,
        read_only: bool = False,
        removable: bool = False,
    ) -> Path:
        """Show a device, which stays the caller's, and return the path of its file.

        `removable`: a client may remove the file; it is shown again by the next `add`.
        """
        self._files.devices[name] = _Shown(device, read_only, removable)
        return self.folder / name

    def remove(self, name: str) -> None:
        """No request touches the device after the return. Idempotent."""
        shown = self._files.devices.pop(name, None)
        if shown is not None:
            shown.end()

    def _serve(self, fuse: Any) -> None:
        try:
            fuse.FUSE(
                self._files,
                str(self.folder),
                foreground=True,
                nothreads=False,
                big_writes=True,
                direct_io=True,
                default_permissions=True,
                max_read=_TRANSFER_BYTES,
                attr_timeout=0,
                entry_timeout=0,
                use_ino=True,
                hard_remove=True,
                fsname="holdfast-devices",
                subtype="holdfast",
            )
        except RuntimeError as error:  # libfuse's exit code; it has said why on stderr
            self._failure = error
        finally:
            _ignore_sigpipe()
            self._files.started.set()


def _ignore_sigpipe() -> None:
    """As Python has it. libfuse 2 makes it deadly again when its loop ends, and the process would
    die of the next peer that goes away. `signal.signal` is for the main thread only.
    """
    libc_signal = ctypes.CDLL(None).signal
    libc_signal.argtypes, libc_signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc_signal(signal.SIGPIPE, _SIG_IGN)


def unmount(folder: Path) -> None:
    """Take whatever is mounted there away, also what a killed process left. Idempotent."""
    subprocess.run(
        ["fusermount", "-u", "-q", "-z", str(folder)],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _fuse_fds() -> set[int]:
    """Descriptors of this process that lead to the kernel's side of a mount."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if str(entry.readlink()) == "/dev/fuse":
                found.add(int(entry.name))
        except OSError:
            continue  # closed meanwhile
    return found


class _Shown:
    """A device, and who is inside it."""

    def __init__(self, device: BlockDevice, read_only: bool, removable: bool) -> None:
        self.device = device
        self.read_only = read_only
        self.removable = removable
        self._idle = threading.Condition()
        self._inside = 0
        self._ended = False

    def __enter__(self) -> BlockDevice:
        with self._idle:
            if self._ended:
                raise OSError(errno.ENOENT, "withdrawn")
            self._inside += 1
        return self.device

    def __exit__(self, *_: object) -> None:
        with self._idle:
            self._inside -= 1
            self._idle.notify_all()

    def end(self) -> None:
        with self._idle:
            self._ended = True
            self._idle.wait_for(lambda: not self._inside)


class _Files(FuseOperations):
    """The operations, as fusepy calls them: by name, with the path first."""

    use_ns = True

    def __init__(self) -> None:
        self.devices: dict[str, _Shown] = {}
        self.started = threading.Event()

    def init(self, path: str) -> None:
        self.started.set()

    def getattr(self, path: str, handle: int | None = None) -> dict[str, int]:
        if path == "/" or self._inside(path):
            return _attributes(stat.S_IFDIR | 0o700, 0, path)
        shown = self._shown(path)
        mode = stat.S_IFREG | (0o400 if shown.read_only else 0o600)
        return _attributes(mode, shown.device.size_bytes, path)

    def readdir(self, path: str, handle: int) -> list[str]:
        return [".", "..", *self._inside(path)]

    def open(self, path: str, flags: int) -> int:
        if self._shown(path).read_only and flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, path)
        return 0

    def read(self, path: str, length: int, offset: int, handle: int) -> bytes:
        with self._shown(path) as device:
            length = min(length, device.size_bytes - offset)
            if length <= 0:
                return b""
            at_once = device.try_read_at(offset, length)
            return bytes(at_once) if at_once is not None else device.read_at(offset, length)

    def write(self, path: str, data: bytes, offset: int, handle: int) -> int:
        with self._shown(path) as device:
            if offset + len(data) > device.size_bytes:
                raise OSError(errno.EFBIG, path)
            device.write_at(offset, data)
        return len(data)

    def fsync(self, path: str, only_data: int, handle: int) -> int:
        with self._shown(path) as device:
            device.flush()
        return 0

    def truncate(self, path: str, length: int, handle: int | None = None) -> int:
        if length != self._shown(path).device.size_bytes:
            raise OSError(errno.EPERM, path)
        return 0

    def unlink(self, path: str) -> int:
        if not self._shown(path).removable:
            raise OSError(errno.EPERM, path)
        self.devices.pop(path.removeprefix("/"), None)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        total = sum(shown.device.size_bytes for shown in list(self.devices.values()))
        blocks = -(-total // _TRANSFER_BYTES)
        return {
            "f_bsize": _TRANSFER_BYTES,
            "f_frsize": _TRANSFER_BYTES,
            "f_blocks": 2 * blocks,
            "f_bfree": blocks,
            "f_bavail": blocks,
            "f_namemax": 255,
        }

    def flush(self, path: str, handle: int) -> int:
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        return 0

    def _inside(self, path: str) -> list[str]:
        """The names in a folder; none: there is no such folder, unless it is the root."""
        folder = path.strip("/")
        names = list(self.devices)
        if not folder:
            return list(dict.fromkeys(name.partition("/")[0] for name in names))
        return [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]

    def _shown(self, path: str) -> _Shown:
        shown = self.devices.get(path.removeprefix("/"))
        if shown is None:
            raise OSError(errno.ENOENT, path)
        return shown


def _attributes(mode: int, size_bytes: int, path: str) -> dict[str, int]:
    return {
        "st_ino": _inode(path),
        "st_mode": mode,
        "st_nlink": 1,
        "st_size": size_bytes,
        "st_blocks": -(-size_bytes // 512),
        "st_blksize": _TRANSFER_BYTES,
        "st_uid": os.getuid(),
        "st_gid": os.getgid(),
    }


def _inode(path: str) -> int:
    """The same for the same name, as smbd tells files by it."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:7], "big") | 1
