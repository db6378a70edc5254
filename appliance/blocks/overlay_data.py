"""The data file of an overlay: sparse, in slots of one segment, addressed by `overlay_map`.

Errors of the system come out typed, naming the file. What is read or written where is for the map
to say; durability is `overlay_durability`'s.

Thread model: any thread; the kernel orders concurrent calls. Stop reading before `close`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from appliance.blocks import overlay_files as files


class DataFile:
    def __init__(self, path: Path) -> None:
        """Open it. Raises OSError."""
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def read(self, length: int, position: int) -> bytes:
        """Raises StorageError, OverlayCorruptError (it ends early)."""
        try:
            return files.pread_exactly(self._fd, length, position)
        except OSError as error:
            raise files.storage_error(f"cannot read {self._path}", error) from error

    def read_into(self, view: memoryview, position: int) -> None:
        """As `read`."""
        try:
            files.preadv_exactly(self._fd, view, position)
        except OSError as error:
            raise files.storage_error(f"cannot read {self._path}", error) from error

    def read_cached(self, length: int, position: int) -> memoryview | None:
        """What the page cache has; None: ask `read`, which may wait, or says what is wrong."""
        try:
            return files.pread_cached(self._fd, length, position)
        except OSError:
            return None

    def write(self, buffers: Sequence[files.Buffer], position: int) -> None:
        """One after the other. Raises StorageFullError, StorageError: some may be there."""
        try:
            files.pwrite_all(self._fd, buffers, position)
        except OSError as error:
            raise files.storage_error(f"cannot write {self._path}", error) from error

    def free(self, position: int, length: int) -> None:
        """Give space back where the system can; a hole reads as zeros. Raises StorageError."""
        try:
            files.punch_hole(self._fd, position, length)
        except OSError as error:
            raise files.storage_error(f"cannot free space in {self._path}", error) from error

    def sync(self) -> None:
        """Durable on return. Raises OSError: what reached the disk is unknown for good."""
        os.fdatasync(self._fd)

    @property
    def allocated_bytes(self) -> int:
        return os.fstat(self._fd).st_blocks * 512

    @property
    def free_bytes(self) -> int:
        """What its storage has left."""
        file_system = os.fstatvfs(self._fd)
        return file_system.f_bavail * file_system.f_frsize

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
