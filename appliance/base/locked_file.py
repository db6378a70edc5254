# ruff: noqa: PTH108  (the crash tests count and cut system calls on module os)
"""Files whose flock says that their maker is alive: it goes with the process, whatever killed it.

A flock belongs to one opening of a file, so it also works between threads. It is inherited by
fork without exec: a process that holds one must not fork children that outlive it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from enum import IntEnum
from pathlib import Path


class LockMode(IntEnum):
    SHARED = fcntl.LOCK_SH
    EXCLUSIVE = fcntl.LOCK_EX


def create_locked(folder: Path) -> tuple[int, Path]:
    """Create a file `<pid>-<16 hex digits>` for writing, exclusively locked. Raises OSError."""
    while True:
        path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:  # else a clean-up came between open and flock
                return fd, path
        except BaseException:
            os.close(fd)
            os.unlink(path)
            raise
        os.close(fd)


def try_lock(fd: int, mode: LockMode) -> bool:
    """Lock without waiting; False: somebody else holds it. Raises OSError."""
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
