"""Content of the files that a hypervisor makes beside the disks: one file of ours per number.

Names inside a session never become names here. A file that was never written to has no file of
ours and is empty.

Thread model: any thread. Descriptors are kept open, bounded; there is one per file at a time, so
that its lock and its failure are known to everybody who uses it. `_lock` covers which are open and
is never held while the storage works.

Durability: `write` after the next `sync` of that number; concurrent syncs of one file share an
fdatasync. `resize` and `set_modified` are durable on return. When a sync fails, what reached the
disk is unknown and asking again would lie (the kernel forgets the error): every later write and
sync of that file fails too. Removed content may come back after a crash, without a name; whoever
opens the folder removes it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary, finalize

from appliance.base.atomic import fsync_directory
from appliance.blocks.overlay_commit import GroupCommit

_OPEN_MAX = 128
_TRY_BYTES_MAX = 256 << 10


class _Content:
    """One open file; closed as soon as nobody refers to it, so nothing in it may refer back."""

    def __init__(self, files: ScratchFiles, number: int, path: Path) -> None:
        self.lock = threading.Lock()  # around what changes the size
        self._files = files
        self._number = number
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        # Not `__del__`: it runs while `_alive` can still hand out the object.
        finalize(self, os.close, self.fd)
        self._group = GroupCommit(partial(_commit, files, number, self.fd, os.fdatasync))

    def check(self) -> None:
        _check(self._files, self._number)

    def sync(self) -> None:
        self._group.run()

    def set_modified(self, modified_ns: int) -> None:
        os.utime(self.fd, ns=(modified_ns, modified_ns))
        _commit(self._files, self._number, self.fd, os.fsync)


def _check(files: ScratchFiles, number: int) -> None:
    if number in files.failed:
        raise OSError(errno.EIO, "the storage lost an earlier write to this file")


def _commit(files: ScratchFiles, number: int, fd: int, sync: Callable[[int], None]) -> None:
    _check(files, number)
    try:
        sync(fd)
        files.sync_names(number)
    except BaseException:
        files.failed.add(number)
        raise


class ScratchFiles:
    def __init__(self, folder: Path) -> None:
        """`folder` is made if need be. Raises OSError."""
        folder.mkdir(mode=0o700, exist_ok=True)
        for changed in (folder, folder.parent):
            fsync_directory(changed)
        self._folder = folder
        self._lock = threading.Lock()
        self._recent: OrderedDict[int, _Content] = OrderedDict()
        self._alive: WeakValueDictionary[int, _Content] = WeakValueDictionary()
        self._unnamed: set[int] = set()  # their names in the folder are not durable yet
        self.failed: set[int] = set()
        self._sizes: dict[int, int] = {}
        self.modified_ns: dict[int, int] = {}  # of what was there at the start
        for path in folder.iterdir():
            if path.name.isdecimal():
                found = path.stat()
                self._sizes[int(path.name)] = found.st_size
                self.modified_ns[int(path.name)] = found.st_mtime_ns

    def numbers(self) -> set[int]:
        return set(self._sizes)

    def size_bytes(self, number: int) -> int:
        """From memory."""
        return self._sizes.get(number, 0)

    def used_bytes(self, number: int) -> int:
        """From memory: sparse files seem as large as they are long."""
        return self._sizes.get(number, 0)

    def try_read(self, number: int, offset: int, length: int) -> bytearray | None:
        """What `read` would from the page cache; None: not all there, or much. Never blocks."""
        content = self._recent.get(number)
        if content is None or length > _TRY_BYTES_MAX:
            return None
        buffer = bytearray(length)
        try:
            done = os.preadv(content.fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError:
            return None
        return buffer if done == length else None

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
            content.check()
            while view:
                done = os.pwrite(content.fd, view, offset)
                offset, view = offset + done, view[done:]
                self._grown(number, offset)

    def resize(self, number: int, size_bytes: int) -> None:
        """Raises OSError."""
        content = self._content(number)
        with content.lock:
            content.check()
            os.ftruncate(content.fd, size_bytes)
            with self._lock:
                if number in self._sizes:
                    self._sizes[number] = size_bytes
        content.sync()

    def sync(self, number: int) -> None:
        """Raises OSError."""
        if number in self._sizes:
            self._content(number).sync()

    def set_modified(self, number: int, modified_ns: int) -> None:
        """Keep it with the content, as far as there is any. Raises OSError."""
        if number in self._sizes:
            self._content(number).set_modified(modified_ns)

    def remove(self, number: int) -> None:
        """Idempotent. Raises OSError."""
        with self._lock:
            self._recent.pop(number, None)
            known = self._sizes.pop(number, None)
        if known is not None:
            (self._folder / str(number)).unlink(missing_ok=True)

    def close(self) -> None:
        with self._lock:
            self._recent.clear()

    def sync_names(self, number: int) -> None:
        """Make the file's name durable, if it is not, and those of others with it."""
        if number in self._unnamed:
            covered = list(self._unnamed)
            fsync_directory(self._folder)
            self._unnamed.difference_update(covered)

    def _grown(self, number: int, end: int) -> None:
        with self._lock:
            known = self._sizes.get(number)
            if known is not None and end > known:  # None: removed meanwhile
                self._sizes[number] = end

    def _content(self, number: int) -> _Content:
        pushed_out = []  # closed after the lock is given back
        with self._lock:
            content = self._alive.get(number)
            if content is None:
                if number not in self._sizes:
                    self._sizes[number] = 0
                    self._unnamed.add(number)
                content = _Content(self, number, self._folder / str(number))
                self._alive[number] = content
            self._recent[number] = content
            self._recent.move_to_end(number)
            while len(self._recent) > _OPEN_MAX:
                pushed_out.append(self._recent.popitem(last=False))
        return content
