# ruff: noqa: PTH108  (the crash tests count and cut system calls on module os)
"""Files whose flock says that their maker is alive: it goes with the process, whatever killed it.

A flock belongs to one opening of a file, so it also works between threads. It is inherited by
fork without exec: a process that holds one must not fork children that outlive it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path

from appliance.base.atomic import write_all


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


@contextmanager
def published(path: Path, content: bytes) -> Iterator[None]:
    """Show `path` until the block ends; it becomes visible whole and locked.

    A name is not to be used again once its maker was killed, because whoever finds a dead file
    removes it by name. Raises FileExistsError: the name is in use; OSError.
    """
    fd, temporary = create_locked(path.parent)
    try:
        try:
            write_all(fd, content)
            os.link(temporary, path)
        finally:
            remove_if_possible(temporary)
        try:
            yield
        finally:
            remove_if_possible(path)
    finally:
        os.close(fd)


def open_if_alive(path: Path) -> int | None:
    """Open a published file whose maker is alive; a dead one's is removed. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        dead = try_lock(fd, LockMode.SHARED)  # its maker, alive, would hold it exclusively
        if dead and os.fstat(fd).st_nlink:  # else it ended in order, and the name may be in use
            remove_if_possible(path)
    except BaseException:
        os.close(fd)
        raise
    if dead:
        os.close(fd)
        return None
    return fd


def remove_if_possible(path: Path) -> None:
    with suppress(OSError):  # read-only, or another process was faster
        os.unlink(path)


def try_lock(fd: int, mode: LockMode) -> bool:
    """Lock without waiting; False: somebody else holds it. Raises OSError."""
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
