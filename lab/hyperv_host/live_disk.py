"""A virtual disk while something uses it: its chain of VHDX files behind one block device.

The guest's QEMU reaches it over NBD. Checkpoints put a new leaf on top, merges take a file out of
the chain, a move copies the files elsewhere; all while the guest reads and writes.

Invariants: what the guest was told is written is in the leaf; a file below the leaf is only ever
written by a merge; a file leaves the chain only when everything of it is in its parent (or in its
copy). Thread model: any thread; one lock per disk, held for one request or one block of a copy.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from appliance.blocks.extents import ExtentKind, MappedExtent
from lab.hyperv_host.errors import StateError
from lab.hyperv_host.rct import ResilientTracking
from lab.hyperv_host.vhdx_chain import (
    ChainFile,
    close_chain,
    create_child,
    locator_of,
    open_chain,
)
from lab.hyperv_host.vhdx_disk import VhdxDisk, create
from lab.hyperv_host.windows_path import Volumes, WindowsPath

_LAST_BLOCKS = 8  # written since the last round: few enough to end with the guest waiting
_SMALL_BYTES, _AHEAD_BYTES = 16 * 1024, 256 * 1024
_NOTHING = (0, b"")
Stop = Callable[[], bool]  # asked between blocks: true ends the copy


class LiveDisk:
    def __init__(self, volumes: Volumes, leaf: WindowsPath, tracking: ResilientTracking) -> None:
        """Raises as `open_chain`."""
        self._volumes = volumes
        self._lock = threading.RLock()
        self._files = open_chain(volumes, leaf, writable=True)
        self.tracking = tracking
        self._ahead = _NOTHING  # a place of the disk, and what is there
        self._copied_again: set[int] | None = None  # blocks of the leaf written during a copy
        self.size_bytes = self._files[0].disk.size_bytes
        self.logical_sector_bytes = self._files[0].disk.geometry.logical_sector_bytes

    @property
    def leaf(self) -> WindowsPath:
        return self._files[0].path

    @property
    def paths(self) -> list[WindowsPath]:
        """Leaf first."""
        return [file.path for file in self._files]

    @property
    def leaf_write_guid(self) -> str:
        return str(self._files[0].disk.header.file_write_guid)

    # ------------------------------------------------------------------ the block device

    def read_at(self, offset: int, length: int) -> bytes:
        """A small read fetches what follows, too: a BIOS reads sector by sector."""
        with self._lock:
            if length > _SMALL_BYTES:
                return self._files[0].disk.read_at(offset, length)
            found = self._fetched(offset, length)
            if found is None:
                count = max(length, min(_AHEAD_BYTES, self.size_bytes - offset))
                self._ahead = (offset, self._files[0].disk.read_at(offset, count))
                found = self._ahead[1][:length]
            return found

    def _fetched(self, offset: int, length: int) -> bytes | None:
        start, data = self._ahead
        if not start <= offset <= offset + length <= start + len(data):
            return None
        return data[offset - start : offset - start + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))

    def try_read_at(self, offset: int, length: int) -> bytes | None:
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self._fetched(offset, length)
        finally:
            self._lock.release()

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        return [MappedExtent(offset=offset, length=length, kind=ExtentKind.DATA)]

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        with self._lock:
            self._mark(offset, len(data))
            self._files[0].disk.write_at(offset, data)

    def zero_at(self, offset: int, length: int) -> None:
        with self._lock:
            self._mark(offset, length)
            self._files[0].disk.zero_at(offset, length)

    def flush(self) -> None:
        with self._lock:
            self._files[0].disk.flush()

    def close(self) -> None:
        """Raises OSError: what was written last is not durable; it is closed all the same."""
        with self._lock:
            try:
                self._files[0].disk.flush()
            finally:
                close_chain(self._files)

    def _mark(self, offset: int, length: int) -> None:
        start, data = self._ahead
        if offset < start + len(data) and start < offset + length:
            self._ahead = _NOTHING
        self.tracking.mark(offset, length)
        if self._copied_again is not None and length:
            block_bytes = self._files[0].disk.geometry.block_bytes
            last = (offset + length - 1) // block_bytes
            self._copied_again.update(range(offset // block_bytes, last + 1))

    # ------------------------------------------------------------------ checkpoints

    def freeze(self, leaf: WindowsPath) -> int:
        """Put an empty leaf on top; return the number of the moment. The caller stuns the guest."""
        with self._lock:
            frozen = self._files[0]
            frozen.disk.flush()
            reopened = ChainFile(frozen.path, VhdxDisk(frozen.disk.path, writable=False))
            reopened.disk.parent = frozen.disk.parent
            try:
                child = create_child(self._volumes, leaf, reopened)
            except BaseException:
                reopened.disk.close()
                raise
            frozen.disk.close()
            self._files[:1] = [child, reopened]
            return self.tracking.take_moment()

    def merge_into(self, frozen: WindowsPath, stop: Stop) -> None:
        """Write the file above `frozen` into it and take it out of the chain.

        `stop` returning true leaves the chain as it was (with a parent that reads the same).

        Raises:
            StateError: stopped, or `frozen` is not below another file of this disk.
        """
        place = next((n for n, file in enumerate(self._files) if file.path.same(frozen)), 0)
        if place == 0:
            raise StateError(f"'{frozen}' has nothing to be merged into it")
        child, parent = self._files[place - 1], self._files[place]
        writable = VhdxDisk(parent.disk.path, writable=True)
        writable.parent = parent.disk.parent
        try:
            self._copy(child.disk, writable, stop, live=place == 1)
        except BaseException:
            with self._lock:
                self._copied_again = None
                _set_locator(child.disk.local_path, locator_of(parent.path, writable))
            writable.close()
            raise

        # The lock is still held from the last block on: nothing was written since.
        try:
            writable.flush()
            merged_file = ChainFile(parent.path, writable)
            self._files[place - 1 : place + 1] = [merged_file]
            if place >= 2:
                above = self._files[place - 2]
                above.disk.parent = writable
                _set_locator(above.disk.local_path, locator_of(parent.path, writable))
            child.disk.close()
            parent.disk.close()
            child.disk.path.unlink()
        finally:
            self._copied_again = None
            self._lock.release()

    def move(self, folder: WindowsPath, stop: Stop) -> list[WindowsPath]:
        """Copy all files into another folder and go on there; return the old files, still there.

        Raises:
            StateError: stopped; nothing has changed but unused copies, which are removed.
        """
        made = []
        try:
            for file in self._files[1:]:
                target = self._volumes.place(folder.joined(file.path.name))
                made.append(target)
                shutil.copyfile(file.disk.local_path, target)
            old = self._files[0]
            leaf = folder.joined(old.path.name)
            target = self._volumes.place(leaf)
            made.append(target)
            create(target, old.disk.geometry)
            copy = VhdxDisk(target, writable=True)
            try:
                self._copy(old.disk, copy, stop, live=True)
            except BaseException:
                copy.close()
                raise
        except BaseException:
            self._copied_again = None
            for target in made:
                target.unlink(missing_ok=True)
            raise
        try:
            copy.flush()
            copy.close()
            before = self.paths
            self._relink(folder)
            opened = open_chain(self._volumes, leaf, writable=True)
            close_chain(self._files)
            self._files = opened
        finally:
            self._copied_again = None
            self._lock.release()
        return before

    def _relink(self, folder: WindowsPath) -> None:
        """The copies of the parents are where the copies of their children look for them."""
        for child, parent in zip(self._files, self._files[1:], strict=False):
            copied = self._volumes.place(folder.joined(child.path.name))
            _set_locator(copied, locator_of(folder.joined(parent.path.name), parent.disk))

    def _copy(self, source: VhdxDisk, target: VhdxDisk, stop: Stop, *, live: bool) -> None:
        """Copy what a file itself holds. Returns with the lock held, so that nothing follows."""
        with self._lock:
            self._copied_again = set() if live else None
        for block in source.present_blocks():
            if stop():
                raise StateError("the operation was cancelled")
            with self._lock:
                _copy_block(source, target, block)
        while True:
            self._lock.acquire()
            try:
                again, self._copied_again = self._copied_again, set() if live else None
                for block in sorted(again or ()):
                    _copy_block(source, target, block)
            except BaseException:
                self._lock.release()
                raise
            if len(again or ()) < _LAST_BLOCKS:
                return
            self._lock.release()


def _set_locator(place: Path, locator: tuple[tuple[str, str], ...]) -> None:
    disk = VhdxDisk(place, writable=True)
    try:
        disk.set_parent_locator(locator)
    finally:
        disk.close()


def _copy_block(source: VhdxDisk, target: VhdxDisk, block: int) -> None:
    block_bytes = source.geometry.block_bytes
    start = block * block_bytes
    for run in source.runs(start, min(block_bytes, source.size_bytes - start)):
        if run.parent:
            continue
        if run.offset is None:
            target.zero_at(run.start, run.length)
        else:
            target.write_at(run.start, source.read_at(run.start, run.length))
