"""Content of the files that a hypervisor makes beside the disks: one file of ours per number.

Names inside a session never become names here. A file that was never written to has no file of
ours and is empty.

Thread model: any thread. Descriptors are kept open, bounded, and closed when nobody uses them.
Durability: `write` after the next `sync` of that number; concurrent syncs of one file share an
fdatasync. `resize` and `remove` are durable on return.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

from appliance.base.atomic import fsync_directory
from appliance.blocks.overlay_commit import GroupCommit

_OPEN_MAX = 128
_TRY_BYTES_MAX = 256 << 10


class _Content:
    """One open file."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self.group = GroupCommit(lambda: os.fdatasync(self.fd))
        self.size_bytes = os.fstat(self.fd).st_size
        self.lock = threading.Lock()  # around what changes the size

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class ScratchFiles:
    def __init__(self, folder: Path) -> None:
        """`folder` is made if need be. Raises OSError."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Content] = OrderedDict()
        self._sizes = {int(path.name): path.stat().st_size for path in folder.iterdir()}

    def numbers(self) -> set[int]:
        return set(self._sizes)

    def size_bytes(self, number: int) -> int:
        """From memory."""
        return self._sizes.get(number, 0)

    def used_bytes(self, number: int) -> int:
        """From memory: sparse files seem as large as they are long."""
        return self._sizes.get(number, 0)

    def try_read(self, number: int, offset: int, length: int) -> bytes | None:
        """What `read` would from the page cache; None: not all there, or much. Never blocks."""
        content = self._open.get(number)
        if content is None or length > _TRY_BYTES_MAX:
            return None
        buffer = bytearray(length)
        try:
            done = os.preadv(content.fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError:
            return None
        return bytes(buffer) if done == length else None

    def read(self, number: int, offset: int, length: int) -> bytes:
        """At most `length` bytes, fewer at the end. Raises OSError."""
        if number not in self._sizes:
            return b""
        return os.pread(self._content(number).fd, length, offset)

    def write(self, number: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Raises OSError; what of `data` was written before may stay."""
        content = self._content(number)
        view = memoryview(data)
        with content.lock:
            while view:
                done = os.pwrite(content.fd, view, offset)
                offset, view = offset + done, view[done:]
                self._sizes[number] = max(self._sizes.get(number, 0), offset)

    def resize(self, number: int, size_bytes: int) -> None:
        """Raises OSError."""
        content = self._content(number)
        with content.lock:
            os.ftruncate(content.fd, size_bytes)
            self._sizes[number] = size_bytes
        content.group.run()

    def sync(self, number: int) -> None:
        """Raises OSError."""
        if number in self._sizes:
            self._content(number).group.run()

    def remove(self, number: int) -> None:
        """Idempotent. Raises OSError."""
        with self._lock:
            self._open.pop(number, None)
            if self._sizes.pop(number, None) is not None:
                (self._folder / str(number)).unlink(missing_ok=True)

    def close(self) -> None:
        with self._lock:
            self._open.clear()

    def _content(self, number: int) -> _Content:
        with self._lock:
            content = self._open.get(number)
            if content is None:
                path = self._folder / str(number)
                new = number not in self._sizes
                content = self._open[number] = _Content(path)
                if new:
                    fsync_directory(self._folder)
                self._sizes[number] = content.size_bytes
                while len(self._open) > _OPEN_MAX:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(number)
            return content
