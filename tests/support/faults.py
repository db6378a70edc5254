"""Scripted faults under the code that is tested."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from appliance.blocks.device import BlockReader
from appliance.blocks.layers import ReaderLayer


class FaultyReader(ReaderLayer):
    """Asks `fault` before every read; it may raise, wait, or let the read pass."""

    def __init__(self, base: BlockReader, fault: Callable[[int, int], None]) -> None:
        super().__init__(base)
        self._fault = fault
        self._lock = threading.Lock()
        self.reads: list[tuple[int, int]] = []  # (offset, length) of every read that passed

    def read_at(self, offset: int, length: int) -> bytes:
        self._fault(offset, length)
        with self._lock:
            self.reads.append((offset, length))
        return super().read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        super().try_read_at(offset, length)  # for its range check
        return None

    def read_near_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview | None]:
        return [None for _ in ranges]

    def prefetch(self, offset: int, length: int) -> None:
        self.read_at(offset, length)


def refuse_reads(
    patch: pytest.MonkeyPatch, path: Path, first: int, end: int, number: int = errno.EIO
) -> None:
    """Let every read of the file that touches byte [first, end) fail with error `number`."""
    pread, preadv = os.pread, os.preadv

    def refuse(fd: int, offset: int, length: int) -> None:
        touches = offset < end and offset + length > first
        if touches and Path(f"/proc/self/fd/{fd}").readlink() == path:
            raise OSError(number, os.strerror(number))

    def checked_pread(fd: int, length: int, offset: int) -> bytes:
        refuse(fd, offset, length)
        return pread(fd, length, offset)

    def checked_preadv(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        refuse(fd, offset, sum(len(buffer) for buffer in buffers))
        return preadv(fd, buffers, offset, flags)

    patch.setattr(os, "pread", checked_pread)
    patch.setattr(os, "preadv", checked_preadv)
