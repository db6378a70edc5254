"""A hot-added disk as the guest's device: read past the page cache, or written.

Data path: `hot_add` finds and proves the device; this reads it with O_DIRECT in aligned parts, a
few at once, each through a mapped (so page-aligned) buffer of its own, and copies into the
caller's. A file that stands in for a device may lie on a file system without O_DIRECT; then it is
read plainly.

Thread model: `DirectReader` may be read from several threads; parts of one large read are fetched
by a small pool of its own. `DirectWriter` belongs to one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vmware.errors import TransportError
from vmware.transports.contract import Access, ExtentKind, MappedExtent, check_range

ALIGNMENT_BYTES = 4096
PART_BYTES = 1 << 20
_PARTS_AT_ONCE = 4
_STRETCH_BYTES = 16 << 20  # of which is remembered whether any byte was written
_ZEROS = bytes(PART_BYTES)


class DirectReader:
    """A `DiskReader` over an open device; `release` is called once, after the last read."""

    access = Access.ANY_ORDER

    def __init__(self, path: Path, size_bytes: int, release: Callable[[], None]) -> None:
        """Raises TransportError: it cannot be opened; `release` is not called then."""
        self.size_bytes = size_bytes
        self._release = release
        self._name = path.name
        self._fd = _opened_direct(path)
        self._buffers: queue.LifoQueue[mmap.mmap] = queue.LifoQueue()
        for _ in range(_PARTS_AT_ONCE):
            self._buffers.put(mmap.mmap(-1, PART_BYTES))
        self._pool = ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix=f"read-{path.name}")
        self._state = threading.Condition()
        self._reads = 0
        self._closing = False

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self.size_bytes)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self.size_bytes)
        with self._reading():
            parts = list(_parts(offset, len(buffer), PART_BYTES))
            if len(parts) <= 1:
                for at, size in parts:
                    self._read_part(at, size, buffer)
                return
            jobs = [
                self._pool.submit(
                    self._read_part, at, size, buffer[at - offset : at - offset + size]
                )
                for at, size in parts
            ]
            failures = [job.exception() for job in jobs]
        for failure in failures:
            if failure is not None:
                raise failure

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        check_range(offset, length, self.size_bytes)
        return None if length else b""

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self.size_bytes)
        return [MappedExtent(offset, length, ExtentKind.DATA)] if length else []

    def close(self) -> None:
        with self._state:
            if self._closing:
                return
            self._closing = True
            while self._reads:
                self._state.wait()
        self._pool.shutdown()
        os.close(self._fd)
        self._release()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._state:
            self._check_open()
            self._reads += 1
        try:
            yield
        finally:
            with self._state:
                self._reads -= 1
                self._state.notify_all()

    def _check_open(self) -> None:
        if self._closing:
            raise TransportError(f"{self._name} is closed")

    def _read_part(self, offset: int, length: int, target: memoryview) -> None:
        """Read at most PART_BYTES that do not cross an aligned border of that size."""
        self._check_open()
        low = offset // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        high = -(-(offset + length) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        buffer = self._buffers.get()
        try:
            with memoryview(buffer) as whole:
                self._fill(low, whole[: high - low], least=offset + length - low)
                target[:] = whole[offset - low : offset - low + length]
        finally:
            self._buffers.put(buffer)

    def _fill(self, offset: int, view: memoryview, least: int) -> None:
        """The device may end inside of the last aligned block, but not before `least` bytes."""
        done = 0
        while done < least:
            with _named(self._name, offset + done):
                count = os.preadv(self._fd, [view[done:]], offset + done)
            if not count:
                raise TransportError(f"{self._name} ends at byte {offset + done}")
            done += count


class DirectWriter:
    """A `DiskWriter` over an open device, through the page cache; `close` makes it durable.

    On an `empty` disk, zeroing what was never written costs nothing.
    """

    access = Access.ANY_ORDER

    def __init__(
        self, path: Path, size_bytes: int, release: Callable[[], None], *, empty: bool
    ) -> None:
        """Raises TransportError: it cannot be opened; `release` is not called then."""
        self.size_bytes = size_bytes
        self._release = release
        self._name = path.name
        self._dirty = bytearray(b"\0" if empty else b"\1") * (size_bytes // _STRETCH_BYTES + 1)
        self._fd: int | None = _opened(path, os.O_RDWR)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        check_range(offset, len(data), self.size_bytes)
        if not len(data):
            return
        first, last = offset // _STRETCH_BYTES, (offset + len(data) - 1) // _STRETCH_BYTES
        self._dirty[first : last + 1] = b"\1" * (last + 1 - first)
        with _named(self._name, offset):
            view = memoryview(data)
            while len(view):
                count = os.pwrite(self._open_fd(), view, offset)
                view, offset = view[count:], offset + count

    def zero_at(self, offset: int, length: int) -> None:
        check_range(offset, length, self.size_bytes)
        for at, size in _parts(offset, length, _STRETCH_BYTES):
            if self._dirty[at // _STRETCH_BYTES]:
                for start, part in _parts(at, size, PART_BYTES):
                    self.write_at(start, memoryview(_ZEROS)[:part])

    def flush(self) -> None:
        with _named(self._name, 0):
            os.fdatasync(self._open_fd())

    def close(self) -> None:
        """Raises TransportError: what was written may not be durable; the disk is given back."""
        if self._fd is None:
            return
        try:
            self.flush()
        finally:
            os.close(self._fd)
            self._fd = None
            self._release()

    def _open_fd(self) -> int:
        if self._fd is None:
            raise TransportError(f"{self._name} is closed")
        return self._fd


def _parts(offset: int, length: int, part_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut a range at multiples of `part_bytes`."""
    end = offset + length
    while offset < end:
        border = min(end, (offset // part_bytes + 1) * part_bytes)
        yield offset, border - offset
        offset = border


def _opened(path: Path, flags: int) -> int:
    with _named(path.name, 0):
        return os.open(path, flags | os.O_CLOEXEC)


def _opened_direct(path: Path) -> int:
    with _named(path.name, 0):
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return _opened(path, os.O_RDONLY)


@contextlib.contextmanager
def _named(name: str, offset: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TransportError(f"{name}: at byte {offset}: {error.strerror}") from error
