"""The bytes of a disk file, wherever it is: on this machine's file system, or on a share.

Thread model: one caller at a time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from lab.hyperv_host.smb_client import SmbPlace


class DiskBytes(Protocol):
    """OSError passes through."""

    def size(self) -> int: ...

    def pread(self, length: int, offset: int) -> bytes: ...

    def pwrite(self, data: bytes | memoryview, offset: int) -> None: ...

    def truncate(self, size_bytes: int) -> None: ...

    def sync(self) -> None:
        """Durable on return."""
        ...

    def close(self) -> None: ...


class LocalBytes:
    def __init__(self, path: Path, *, writable: bool) -> None:
        self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def pread(self, length: int, offset: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        os.pwrite(self._fd, data, offset)

    def truncate(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def open_bytes(place: Path | SmbPlace, *, writable: bool) -> DiskBytes:
    if isinstance(place, SmbPlace):
        return place.open(writable=writable)
    return LocalBytes(place, writable=writable)
