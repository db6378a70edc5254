"""A bounded, thread-safe cache of open file descriptors for reading blobs.

A blob never changes, so a descriptor stays good for as long as this process has not removed the
name; one removed by another process goes on being readable, which is what a reader wants.

Thread model: any thread. A descriptor is closed when the last user lets go of its `OpenFile`
(reference counting), so eviction never closes one under a running read.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from stat import S_ISREG


class OpenFile:
    """A regular file open for reading; its size was taken once, because blobs are immutable."""

    __slots__ = ("fd", "size_bytes")

    def __init__(self, path: Path) -> None:
        """Raises OSError; FileNotFoundError also for anything that is not a regular file."""
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        status = os.fstat(self.fd)
        if not S_ISREG(status.st_mode):
            raise FileNotFoundError(path)
        self.size_bytes = status.st_size

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return at most `length` bytes; fewer only at the end of the file. Raises OSError."""
        length = min(length, self.size_bytes - offset)  # bounds what os.pread allocates
        if length <= 0:
            return b""
        data = os.pread(self.fd, length, offset)
        while data and len(data) < length:  # one call moves less than 2 GiB
            more = os.pread(self.fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def try_read_at(self, offset: int, length: int) -> memoryview | None:
        """As `read_at`, from the page cache only; None: not all there. Raises OSError."""
        length = min(length, self.size_bytes - offset)
        if length <= 0:
            return memoryview(b"")
        buffer = bytearray(length)
        try:
            done = os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        return memoryview(buffer) if done == length else None


class OpenFiles:
    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._files: OrderedDict[str, OpenFile] = OrderedDict()
        self._drops = 0

    def find(self, name: str) -> OpenFile | None:
        """Return the open file of `name` without touching the disk."""
        with self._lock:
            file = self._files.get(name)
            if file is not None:
                self._files.move_to_end(name)
            return file

    def open(self, name: str, path: Path) -> OpenFile:
        """Raises OSError."""
        file = self.find(name)
        if file is not None:
            return file
        drops = self._drops
        file = OpenFile(path)
        with self._lock:
            if drops == self._drops:  # else the name may have gone since it was opened
                self._files[name] = file
                if len(self._files) > self._capacity:
                    self._files.popitem(last=False)
        return file

    def drop(self, name: str) -> None:
        """Forget `name`, after its removal."""
        with self._lock:
            self._drops += 1
            self._files.pop(name, None)
