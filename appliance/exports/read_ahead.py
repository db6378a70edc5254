"""Serve small sequential reads of a disk from large windows, one of them being decoded ahead.

Data path: fuse.py asks for at most 128 KiB at a time, one request after another. A read that goes
on where the last one ended is sequential: its window is decoded whole, and the next one meanwhile
on a thread of its own, so a second core works. Anything else goes straight to the reader.

Thread model: `read` belongs to one thread; the decoding thread is joined by `close`.
"""

from __future__ import annotations

import signal
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from appliance.base.errors import ApplianceError
from appliance.base.units import MIB
from appliance.blocks.device import BlockReader

_WINDOW_BYTES = 4 * MIB


@dataclass(frozen=True, slots=True)
class _Window:
    offset: int
    data: memoryview

    def part(self, offset: int, length: int) -> bytes | None:
        start = offset - self.offset
        if start < 0 or start + length > len(self.data):
            return None
        return bytes(self.data[start : start + length])


_EMPTY = _Window(0, memoryview(b""))


class ReadAhead:
    def __init__(self, reader: BlockReader, *, window_bytes: int = _WINDOW_BYTES) -> None:
        self._reader = reader
        self._window_bytes = window_bytes
        # The kernel may swap neighbouring requests: the window before stays a little longer.
        self._windows = (_EMPTY, _EMPTY)
        self._ahead: tuple[int, Future[_Window]] | None = None
        self._expected = 0
        self._thread = ThreadPoolExecutor(1, "read-ahead", initializer=_block_signals)

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes there; fewer only at the end of the disk. Raises as the reader."""
        length = max(min(length, self._reader.size_bytes - offset), 0)
        if not length:
            return b""
        sequential = offset == self._expected
        self._expected = offset + length
        for window in self._windows:
            part = window.part(offset, length)
            if part is not None:
                return part
        if sequential:
            part = self._next_window(offset, length)
            if part is not None:
                return part
        return self._reader.read_at(offset, length)

    def close(self) -> None:
        """Wait for the decoding thread; the reader stays open."""
        self._thread.shutdown(cancel_futures=True)

    def _next_window(self, offset: int, length: int) -> bytes | None:
        """Move on to the window around `offset`; None when it cannot be had in one piece."""
        start = offset // self._window_bytes * self._window_bytes
        if offset + length > start + self._window_bytes:
            return None
        ahead, self._ahead = self._ahead, None
        try:
            if ahead is not None and ahead[0] == start:
                window = ahead[1].result()
            else:
                window = self._load(start)
        except ApplianceError:  # damaged somewhere in the window: perhaps not where this read is
            return None
        following = start + self._window_bytes
        if following < self._reader.size_bytes:
            self._ahead = (following, self._thread.submit(self._load, following))
        self._windows = (self._windows[1], window)
        return window.part(offset, length)

    def _load(self, start: int) -> _Window:
        buffer = bytearray(min(self._window_bytes, self._reader.size_bytes - start))
        self._reader.read_into(start, memoryview(buffer))
        return _Window(start, memoryview(buffer))


def _block_signals() -> None:
    """Signals are for the thread that serves, which they must wake from its wait."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
