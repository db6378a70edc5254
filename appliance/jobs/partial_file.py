"""A file that gets its name only when it is whole.

It is made under another name in the same folder (`.NAME.partial-…`), made durable, and only then
given its own: linked, so that a file that appeared meanwhile is not overwritten, or with `force`
renamed over it. What fails before removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from appliance.base.atomic import fsync_directory
from appliance.base.errors import ApplianceError, StorageError, StorageFullError


class OutputExistsError(ApplianceError):
    """Something stands where the disk is to be written. Choose another name, or use `--force`."""

    code = "restore.output-exists"


class PartialFile:
    """The file under its other name, and how it gets its own."""

    def __init__(self, output: Path, *, force: bool, sync: bool) -> None:
        self._output = output
        self._force = force
        self.sync = sync or output.exists()
        self.path = output.absolute().with_name(f".{output.name}.partial-{secrets.token_hex(4)}")
        with storage_errors(output):
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def publish(self) -> None:
        """Crash guarantee: with `sync`, the name stands for the whole disk, or for what it was
        before; without, a power cut soon afterwards may cost content."""
        with storage_errors(self._output):
            if self.sync:
                os.fsync(self.fd)
            if self._force:
                self.path.replace(self._output)
            else:
                self._link()
            if self.sync:
                fsync_directory(self.path.parent)
        self.remove()

    def remove(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            self.path.unlink(missing_ok=True)

    def _link(self) -> None:
        try:
            self._output.hardlink_to(self.path)
        except FileExistsError as error:
            raise OutputExistsError(f"{self._output} appeared meanwhile") from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            if mode_of(self._output) is not None:  # a file system without links: a small window
                raise OutputExistsError(f"{self._output} appeared meanwhile") from error
            self.path.rename(self._output)


def mode_of(path: Path) -> int | None:
    """Return the mode of what stands there, of a dangling link itself; None for nothing."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return path.lstat().st_mode if path.is_symlink() else None


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Translate OSError into the error tree, naming the file."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise (StorageFullError if full else StorageError)(f"{path}: {error.strerror}") from error
