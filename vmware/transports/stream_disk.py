"""A disk that comes once, from front to back, as a `DiskReader` for a few threads.

Data path: streamOptimized grains from the network -> a window of compressed grains -> inflated by
whoever reads, so that several threads inflate at once. Whoever needs a place that has not come yet
pulls the stream up to it; the others wait for the lock.

Invariants: a byte is handed out only while its grain is in the window, or when the stream has
proven that there is none; a stream that broke is an error for everything behind the break. The
window holds grains of at most `window_bytes` compressed: those that were read leave early, the
oldest leave when it is full, and reads behind it are refused.
Thread model: as of DiskReader; `close` wakes a thread that waits for the network.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vmware.errors import CancelledError, VsphereError
from vmware.stream_optimized_reader import Grain
from vmware.transports.contract import (
    Access,
    BehindWindowError,
    ExtentKind,
    MappedExtent,
    check_range,
)

_SLICE_BYTES = 4 << 20  # of a read that is taken from the window at once
_MAP_AHEAD_BYTES = 8 << 20  # how far a map looks into what has not come yet
_KEEP_READ_BYTES = 16 << 20  # compressed grains that stay after they were read


@dataclass(slots=True, eq=False)
class _Held:
    grain: Grain
    read: bool = False


class StreamDisk:
    """Args:
    grains: ascending; what lies between reads as zeros, and so does the rest after the last.
    window_bytes: of compressed grains; more than the threads' disorder, or reads are refused.
    on_position: told how far the stream has come, in bytes of the disk.
    on_close: called once, with whether the stream was used up; ends what feeds `grains`, waking
        it; must not raise.
    """

    access = Access.ASCENDING

    def __init__(
        self,
        size_bytes: int,
        grains: Iterator[Grain],
        *,
        window_bytes: int,
        on_position: Callable[[int], None],
        on_close: Callable[[bool], None],
    ) -> None:
        self.size_bytes = size_bytes
        self._grains = grains
        self._window_bytes = window_bytes
        self._on_position = on_position
        self._on_close = on_close
        self._lock = threading.Lock()  # guards all below
        self._held: deque[_Held] = deque()  # by offset
        self._held_bytes = 0
        self._floor = 0  # what lies before cannot be told any more
        self._position = 0  # what lies before has come
        self._failure: VsphereError | None = None
        self._closing = threading.Event()

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self.size_bytes)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self.size_bytes)
        for start in range(0, len(buffer), _SLICE_BYTES):
            part = buffer[start : start + _SLICE_BYTES]
            with self._lock:
                held = self._take(offset + start, offset + start + len(part))
            _fill(offset + start, part, held)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        check_range(offset, length, self.size_bytes)
        return None if length else b""

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        """Blocks until the stream has reached `offset`: only then it is known what is there."""
        check_range(offset, length, self.size_bytes)
        if not length:
            return []
        with self._lock:
            self._pull(offset, min(offset + length, offset + _MAP_AHEAD_BYTES))
            end = min(offset + length, self._position)
            extents = [_extent(offset, min(end, self._floor), ExtentKind.DATA)]
            at = max(offset, self._floor)
            for held in self._between(at, end):
                extents.append(_extent(at, held.grain.offset, ExtentKind.ZERO))
                at = max(at, held.grain.offset)
                extents.append(_extent(at, min(held.grain.end, end), ExtentKind.DATA))
                at = min(held.grain.end, end)
            extents.append(_extent(at, end, ExtentKind.ZERO))
        return _joined(extent for extent in extents if extent.length > 0)

    def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        self._on_close(self._position >= self.size_bytes and self._failure is None)
        with self._lock:
            self._held.clear()

    # Under the lock

    def _take(self, start: int, end: int) -> list[Grain]:
        """The grains of [start, end), which has come then."""
        self._pull(start, end)
        if start < self._floor:
            raise BehindWindowError(
                f"byte {start} was asked for after the stream had passed {self._floor}"
            )
        found = self._between(start, end)
        for held in found:
            held.read = held.read or end >= held.grain.end
        return [held.grain for held in found]

    def _between(self, start: int, end: int) -> list[_Held]:
        first = bisect_right(self._held, start, key=lambda held: held.grain.offset)
        first -= first > 0 and self._held[first - 1].grain.end > start
        found = []
        while first < len(self._held) and self._held[first].grain.offset < end:
            found.append(self._held[first])
            first += 1
        return found

    def _pull(self, start: int, end: int) -> None:
        """Take from the stream until everything before `end` has come; keep it from `start` on."""
        if self._closing.is_set():
            raise CancelledError("the disk is closed")
        while self._position < end:
            if self._failure is not None:
                raise self._failure
            grain = self._next()
            if grain is None:
                self._position = self.size_bytes
            else:
                self._held.append(_Held(grain))
                self._held_bytes += len(grain.compressed)
                self._evict(start)
                if grain.end >= self.size_bytes:
                    self._next()  # only its end proves that the stream is whole
                self._position = grain.end
            self._on_position(self._position)

    def _next(self) -> Grain | None:
        try:
            return next(self._grains, None)
        except VsphereError as error:
            self._failure = error
            if self._closing.is_set():
                raise CancelledError("the disk was closed while it was read") from error
            raise

    def _evict(self, start: int) -> None:
        """Make the window small again, but for what the present read asks for."""
        while self._held and self._held[0].grain.end <= start:
            oldest = self._held[0]
            limit_bytes = _KEEP_READ_BYTES if oldest.read else self._window_bytes
            if self._held_bytes <= min(limit_bytes, self._window_bytes):
                return
            self._held.popleft()
            self._held_bytes -= len(oldest.grain.compressed)
            self._floor = oldest.grain.end


def _fill(offset: int, buffer: memoryview, grains: list[Grain]) -> None:
    end = offset + len(buffer)
    at = offset
    for grain in grains:
        start, stop = max(grain.offset, offset), min(grain.end, end)
        buffer[at - offset : start - offset] = bytes(max(0, start - at))
        buffer[start - offset : stop - offset] = memoryview(grain.inflate())[
            start - grain.offset : stop - grain.offset
        ]
        at = stop
    buffer[at - offset :] = bytes(end - at)


def _extent(start: int, end: int, kind: ExtentKind) -> MappedExtent:
    return MappedExtent(start, end - start, kind)


def _joined(extents: Iterator[MappedExtent]) -> list[MappedExtent]:
    joined: list[MappedExtent] = []
    for extent in extents:
        if joined and joined[-1].kind is extent.kind:
            before = joined.pop()
            extent = MappedExtent(before.offset, before.length + extent.length, extent.kind)
        joined.append(extent)
    return joined
