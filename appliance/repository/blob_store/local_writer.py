# ruff: noqa: PTH108  (the crash tests count and cut system calls on module os)
"""A blob in the making in a local folder: an flocked file in `tmp/` until `commit` links it.

Commit is fsync of the file, link under the final name, fsync of the folder, unlink in `tmp/`. A
link never overwrites, and the name in `tmp/` goes last, so a crash at any point leaves the blob
whole under its name, or absent, and at worst a leftover in `tmp/` for `discard_unfinished`.

The flock tells a living writer from a dead one: it goes with the process, whatever killed it.

Thread model: a writer belongs to one thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.base.atomic import fsync_directory
from appliance.base.locked_file import create_locked
from appliance.base.write_batches import write_batches
from appliance.repository.blob_store.contract import BlobExistsError
from appliance.repository.blob_store.local_errors import storage_error
from appliance.repository.blob_store.writeback import WRITEBACK_BYTES, start_writeback


def write_vector(fd: int, buffers: Sequence[bytes | memoryview]) -> int:
    """Write all buffers at the current position; return their bytes. Raises OSError."""
    total = 0
    for batch in write_batches(buffers):
        done = os.writev(fd, batch)
        if done != sum(map(len, batch)):  # stopped short; rare, so the usual case stays cheap
            done += _write_rest(fd, batch, done)
        total += done
    return total


def _write_rest(fd: int, buffers: Sequence[bytes | memoryview], done: int) -> int:
    """Write what follows the first `done` bytes of the buffers; return how much that was."""
    total = 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        skipped = min(done, view.nbytes)
        done -= skipped
        view = view[skipped:]
        while view:
            written = os.write(fd, view)
            view = view[written:]
            total += written
    return total


class LocalBlobWriter:
    """See `BlobWriter`; made by `LocalFolderStore.create`."""

    def __init__(
        self, name: str, *, target: Path, folder: Path, make_folder: Callable[[Path], None]
    ) -> None:
        """Raises OSError."""
        self._name = name
        self._target = target
        self._make_folder = make_folder
        self._size_bytes = 0
        self._started_bytes = 0  # of them, write-back was asked for
        self._fd, self._path = create_locked(folder)

    @property
    def name(self) -> str:
        return self._name

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        self._check_open()
        try:
            self._size_bytes += write_vector(self._fd, buffers)
        except OSError as error:
            raise storage_error(self._path, error) from error
        if self._size_bytes - self._started_bytes >= WRITEBACK_BYTES:
            start_writeback(self._fd, self._started_bytes, self._size_bytes - self._started_bytes)
            self._started_bytes = self._size_bytes

    def commit(self) -> None:
        self._check_open()
        try:
            os.fsync(self._fd)
            self._make_folder(self._target.parent)
            self._appear()
        except FileExistsError as error:
            raise BlobExistsError(self._name) from error
        except OSError as error:
            raise storage_error(self._target, error) from error
        finally:
            self.abort()

    def abort(self) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            os.unlink(self._path)
        except OSError:
            pass  # a leftover is harmless and found by discard_unfinished
        finally:
            os.close(fd)

    def _appear(self) -> None:
        os.link(self._path, self._target)
        try:
            fsync_directory(self._target.parent)
        except BaseException:
            os.unlink(self._target)  # the caller is told that nothing appeared
            raise

    def _check_open(self) -> None:
        if self._fd < 0:
            raise ValueError(f"blob {self._name} is committed or aborted")
