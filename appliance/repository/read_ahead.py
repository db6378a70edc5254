"""Read-ahead for sequential reads of one disk: decode the next few MiB while the client copies.

Large reads are noted; one that goes on where an earlier one ended makes a stream, and half a
window before the client gets there the next window is fetched. Small reads are not looked at:
a guest's random reads pay nothing, and its boot has its own profile.

Thread model: `note` may be called from any thread, never blocks and costs about a microsecond;
fetching runs on one thread, started by the first stream and joined by `close`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from appliance.base.units import KIB, MIB

NOTED_BYTES = 64 * KIB  # reads below this are not noted
_WINDOW_BYTES = 8 * MIB
_STEP_BYTES = 1 * MIB  # fetched at once, so that the first of a window is there early
_STREAMS = 8  # a copying client has a few connections


class _Stream:
    def __init__(self, end: int) -> None:
        self.end = end  # where the last read stopped
        self.fetched = end  # fetched or asked for up to here


class ReadAhead:
    def __init__(self, fetch: Callable[[int, int], None], size_bytes: int) -> None:
        """`fetch(offset, length)` brings a range into the cache; its errors are ignored here,
        because the read that needs the range meets them itself."""
        self._fetch = fetch
        self._size_bytes = size_bytes
        self._streams: list[_Stream] = []  # most recently used last
        self._wanted: list[tuple[int, int]] = []
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def note(self, offset: int, length: int) -> None:
        """A client reads [offset, offset + length)."""
        with self._condition:
            stream = self._stream_at(offset)
            if stream is None:
                self._streams.append(_Stream(offset + length))
                del self._streams[:-_STREAMS]
                return
            stream.end = max(stream.end, offset + length)
            if stream.fetched - stream.end < _WINDOW_BYTES // 2:
                start = max(stream.fetched, stream.end)
                stream.fetched = min(stream.end + _WINDOW_BYTES, self._size_bytes)
                if start < stream.fetched:
                    self._want(start, stream.fetched)

    def close(self) -> None:
        """Return once the thread has ended; what is being fetched is finished first."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join()

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
        self._wanted.append((start, end))
        del self._wanted[:-_STREAMS]
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="read-ahead")
            self._thread.start()
        self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._wanted and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                start, end = self._wanted.pop(0)
            while start < end and not self._closed:
                step = min(_STEP_BYTES, end - start)
                try:
                    self._fetch(start, step)
                except Exception:  # the read itself reports it; see __init__
                    break
                start += step
