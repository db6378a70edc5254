"""Read-ahead for sequential readers of a disk: decode the next MiB while the client copies.

A layer over a reader that caches. Large reads are noted; one that goes on where an earlier one
ended makes a stream, and half a window before the client gets there the next window is read into
the base's cache. Small reads are not looked at: a guest's random reads pay nothing, and its boot
has its own profile (`layers.PrefetchReader`).

Thread model: as of BlockReader. Noting never blocks and costs about a microsecond; reading ahead
runs on two threads, started by the first stream and joined by `close`.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from appliance.base.errors import ApplianceError
from appliance.base.units import KIB, MIB
from appliance.blocks.device import CachingReader
from appliance.blocks.layers import ReaderLayer

_NOTED_BYTES = 64 * KIB  # reads below this are not noted
_WINDOW_BYTES = 8 * MIB
_STEP_BYTES = 1 * MIB  # fetched at once, so that the first of a window is there early
_STREAMS = 8  # a copying client has a few connections
_STEPS_MOST = _STREAMS * _WINDOW_BYTES // _STEP_BYTES
_THREADS = 2  # decoding releases the GIL


class _Stream:
    def __init__(self, end: int) -> None:
        self.end = end  # where the last read stopped
        self.fetched = end  # fetched or asked for up to here


class ReadAheadReader(ReaderLayer):
    def __init__(self, base: CachingReader) -> None:
        super().__init__(base)
        self._prefetch = base.prefetch
        self._near = base.read_near_many
        self._streams: list[_Stream] = []  # most recently used last
        # Of a client that jumps about, the oldest steps are dropped.
        self._steps: deque[tuple[int, int]] = deque(maxlen=_STEPS_MOST)
        self._condition = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def read_at(self, offset: int, length: int) -> bytes:
        if length >= _NOTED_BYTES:
            self._note(offset, length)
        return self._base.read_at(offset, length)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        data = self._base.try_read_at(offset, length)
        if data is not None and length >= _NOTED_BYTES:
            self._note(offset, length)
        return data

    def read_near_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview | None]:
        found = self._near(ranges)
        for (offset, length), data in zip(ranges, found, strict=True):
            if data is not None and length >= _NOTED_BYTES:
                self._note(offset, length)
        return found

    def close(self) -> None:
        """The step that is being read is finished first."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        super().close()

    def _note(self, offset: int, length: int) -> None:
        with self._condition:
            stream = self._stream_at(offset)
            if stream is None:
                self._streams.append(_Stream(offset + length))
                del self._streams[:-_STREAMS]
                return
            stream.end = max(stream.end, offset + length)
            if stream.fetched - stream.end < _WINDOW_BYTES // 2:
                start = max(stream.fetched, stream.end)
                stream.fetched = min(stream.end + _WINDOW_BYTES, self.size_bytes)
                if start < stream.fetched:
                    self._want(start, stream.fetched)

    def _stream_at(self, offset: int) -> _Stream | None:
        """The stream that a read at `offset` goes on with; clients may run a little ahead."""
        for number, stream in enumerate(self._streams):
            if stream.end - _WINDOW_BYTES // 2 <= offset <= stream.end + MIB:
                self._streams.append(self._streams.pop(number))
                return stream
        return None

    def _want(self, start: int, end: int) -> None:
        if self._closed:
            return
        while start < end:
            step = min(_STEP_BYTES, end - start)
            self._steps.append((start, step))
            start += step
        while len(self._threads) < _THREADS:
            thread = threading.Thread(target=self._run, name="read-ahead")
            self._threads.append(thread)
            thread.start()
        self._condition.notify_all()

    def _run(self) -> None:
        # Signals are for the main thread, which they must wake; a FUSE export waits in C.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        while True:
            with self._condition:
                while not self._steps and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                start, length = self._steps.popleft()
            with suppress(ApplianceError):  # the client's own read meets it again and reports it
                self._prefetch(start, length)
