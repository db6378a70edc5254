"""One daemon per state folder: a flock that goes with the process, whatever kills it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.base.errors import ApplianceError, StorageError
from appliance.base.locked_file import LockMode, try_lock


class DaemonRunningError(ApplianceError):
    """Another daemon serves this state folder; stop that one first."""

    code = "daemon.running"


@contextmanager
def daemon_lock(home: Path) -> Iterator[None]:
    """Hold the lock for the block. Raises DaemonRunningError, StorageError."""
    try:
        fd = os.open(home / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{home / 'daemon.lock'}: {error.strerror}") from error
    try:
        if not try_lock(fd, LockMode.EXCLUSIVE):
            raise DaemonRunningError(f"a daemon serves {home} already")
        yield
    finally:
        os.close(fd)


def daemon_starts(home: Path) -> bool:
    """Whether some daemon holds the lock, answering or about to."""
    try:
        with daemon_lock(home):
            return False
    except DaemonRunningError:
        return True
