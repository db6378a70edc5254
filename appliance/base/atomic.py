"""Durable file replacement: the building block of every commit on a local disk.

Crash guarantee of each function stands in its docstring. All calls are synchronous and go through
`os`, so that the crash tests can cut them at any point.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def fsync_directory(path: Path) -> None:
    """Make names created, renamed or removed in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folders(path: Path) -> None:
    """Create `path` and what is missing above it, to survive a power cut. Raises OSError."""
    if not path.is_dir():
        make_folders(path.parent)
        path.mkdir(exist_ok=True)
    with suppress(PermissionError):  # a parent that may be passed, but not opened
        fsync_directory(path.parent)  # also when it was there: its maker may have been cut off


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte at the current position; `os.write` alone may stop short."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """After a crash `path` holds the old bytes or the new ones, never a mix."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        temp.unlink(missing_ok=True)
        raise
    os.close(fd)
    os.replace(temp, path)  # noqa: PTH105  (the crash tests count calls on os)
    fsync_directory(path.parent)


def create_once(path: Path, data: bytes, *, mode: int = 0o600) -> bool:
    """Make `path` with `data` unless it exists; whether it was this call that made it.

    Of several processes that try, one succeeds. After a crash the file is whole or absent; on
    return it survives a power cut, whoever made it. Raises OSError.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.link(temp, path)
        made = True
    except FileExistsError:
        made = False
    finally:
        os.unlink(temp)  # noqa: PTH108
    fsync_directory(path.parent)
    return made
