"""Crash-safe copy-on-write: the writes of a recovery session over a base that never changes.

    reads, writes -> Overlay -> data file (what was written) | base.read_at (what was not)
                        flush -> fdatasync(data), journal group, fdatasync(journal)

Why it looks like this. Data lies in a sparse file, in slots of one 8 MiB segment: offsets stay
small on a 62 TiB disk, sequential stays sequential, and a second write to a block goes in place, so
the file never grows beyond what is distinct. The map of what lies there changes only through the
journal (`overlay_journal`), which names data after it is durable. So after a crash a sector reads
what a flush had acknowledged, or something written after that: what a disk promises. Contents carry
no checksum: they change in place, as on a disk.

A flush when nothing was written costs nothing, one that changed no block's place one fdatasync, any
other one two. If an fsync fails, what reached the disk is unknown and asking again would lie (the
kernel forgets the error), so every later write and flush raises OverlayFailedError; reads go on.

Thread model: every method from any thread. `_lock` covers the change of a block's place: file write
and map update of one segment, and taking the changes for a flush. It is not held during an fsync
or while the base is read. Reads take no lock (see `overlay_map`). Order: the group commit's
turn before `_lock`; nothing else is taken under `_lock`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.base.errors import StorageFullError, UsageError
from appliance.base.units import KIB, MIB
from appliance.blocks import overlay_files as files
from appliance.blocks.device import BlockReader, check_range
from appliance.blocks.extents import ExtentKind, MappedExtent
from appliance.blocks.overlay_commit import GroupCommit
from appliance.blocks.overlay_errors import OverlayCorruptError, OverlayFailedError
from appliance.blocks.overlay_journal import Journal, Record
from appliance.blocks.overlay_map import BASE, DATA, MAX_SEGMENTS, MIXED, ZERO, Geometry, OverlayMap
from appliance.blocks.overlay_session import (
    Identity,
    Session,
    create_session,
    data_path,
    journal_path,
    lock_folder,
    read_session,
    remove_session,
    remove_unfinished,
)

_ZEROS = bytes(MIB)
_MAX_EXTENTS = 1 << 16
_MAX_RUNS_AT_ONCE = 8  # of a read on the event loop
_MAX_COPY_AT_ONCE_BYTES = MIB  # about 0.1 ms of an event loop
_COMPACT_MIN_RECORDS = 64 * KIB  # 2 MiB of journal: replayed in about 0.1 s
_COMPACT_FACTOR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayStats:
    dirty_bytes: int  # blocks that hold data of the session
    allocated_bytes: int  # what the files take on the storage
    free_bytes: int  # what the storage has left
    journal_bytes: int
    discarded_journal_bytes: int  # dropped at open: a flush that had not been acknowledged


class Overlay:
    """A BlockDevice. Closing it closes the base too."""

    def __init__(self, folder: Path, base: BlockReader, session: Session, lock_fd: int) -> None:
        """Use `create` or `open`."""
        self._folder = folder
        self._base = base
        self._size_bytes = session.size_bytes
        self._block_bytes = session.block_bytes
        self._block_mask = session.block_bytes - 1
        self._segment_bytes = session.geometry.segment_bytes
        self._lock = threading.Lock()
        self._group_commit = GroupCommit(self._commit)
        self._failure: BaseException | None = None
        self._unsynced = False
        self._unjournaled: list[Record] = []  # a full storage refused them
        self._map = OverlayMap(session.size_bytes, session.geometry)
        self._lock_fd = lock_fd
        self._data_fd = -1
        self._journal = Journal(journal_path(folder), session.journal_header)
        try:
            self._map.replay(self._journal.replay())
            self._data_fd = os.open(data_path(folder), os.O_RDWR | os.O_CLOEXEC)
            self._compact_at = _COMPACT_MIN_RECORDS
            self._compact_if_long()
        except BaseException as error:
            self._close_files()  # but neither lock nor base, which are still the caller's
            if isinstance(error, FileNotFoundError):
                raise OverlayCorruptError(f"the session in {folder} lacks a file") from error
            if isinstance(error, OSError):
                raise files.storage_error(f"cannot open the session in {folder}", error) from error
            raise

    @classmethod
    def create(
        cls, folder: Path, base: BlockReader, identity: Identity, geometry: Geometry | None = None
    ) -> Overlay:
        """Start a session in `folder`, which is made if missing; its parent exists.

        Raises:
            OverlayExistsError, OverlayBusyError: the folder is taken.
            StorageFullError, StorageError: nothing is there that `open` would accept.
        """
        geometry = geometry or Geometry()
        if -(-base.size_bytes // geometry.segment_bytes) > MAX_SEGMENTS:
            raise UsageError(f"a disk of {base.size_bytes} bytes is too large for an overlay")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise files.storage_error(f"cannot create {folder}", error) from error
        lock_fd = lock_folder(folder)
        try:
            create_session(folder, base.size_bytes, identity, geometry)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls._open_locked(folder, base, identity, lock_fd)

    @classmethod
    def open(cls, folder: Path, base: BlockReader, identity: Identity) -> Overlay:
        """Go on with a session: every acknowledged write is there.

        Raises:
            OverlayMissingError, OverlayBusyError, OverlayMismatchError, OverlayVersionError,
            OverlayCorruptError, StorageError.
        """
        return cls._open_locked(folder, base, identity, lock_folder(folder))

    @classmethod
    def _open_locked(
        cls, folder: Path, base: BlockReader, identity: Identity, lock_fd: int
    ) -> Overlay:
        try:
            session = read_session(folder, base.size_bytes, identity)
            remove_unfinished(folder)
            return cls(folder, base, session, lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    # reading

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self._size_bytes)
        if not length:
            return b""
        kind = self._map.kind_of(offset, length)
        if kind != MIXED:
            return self._read_run(kind, offset, length)
        return b"".join([self._read_run(*run) for run in self._map.runs(offset, length)])

    def _read_run(self, kind: int, offset: int, length: int) -> bytes:
        if kind == BASE:
            return self._base.read_at(offset, length)
        if kind == ZERO:
            return bytes(length)
        try:
            return files.pread_exactly(self._data_fd, length, self._map.data_offset(offset))
        except OSError as error:
            raise files.storage_error(f"cannot read {data_path(self._folder)}", error) from error

    def read_into(self, offset: int, buffer: memoryview) -> None:
        length = len(buffer)
        check_range(offset, length, self._size_bytes)
        for kind, run_offset, run_length in self._map.runs(offset, length):
            start = run_offset - offset
            part = buffer[start : start + run_length]
            if kind == BASE:
                self._base.read_into(run_offset, part)
            elif kind == ZERO:
                _fill_zeros(part)
            else:
                self._read_data_into(run_offset, part)

    def _read_data_into(self, offset: int, part: memoryview) -> None:
        try:
            files.preadv_exactly(self._data_fd, part, self._map.data_offset(offset))
        except OSError as error:
            raise files.storage_error(f"cannot read {data_path(self._folder)}", error) from error

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        check_range(offset, length, self._size_bytes)
        if not length:
            return b""
        kind = self._map.kind_of(offset, length)
        if kind != MIXED:
            return self._try_read_run(kind, offset, length)
        parts: list[bytes | memoryview] = []
        for run in self._map.runs(offset, length):
            part = self._try_read_run(*run) if len(parts) < _MAX_RUNS_AT_ONCE else None
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def _try_read_run(self, kind: int, offset: int, length: int) -> bytes | memoryview | None:
        if kind == BASE:
            return self._base.try_read_at(offset, length)
        if kind == ZERO:
            return memoryview(_ZEROS)[:length] if length <= len(_ZEROS) else bytes(length)
        if length > _MAX_COPY_AT_ONCE_BYTES:
            return None
        try:
            return files.pread_cached(self._data_fd, length, self._map.data_offset(offset))
        except OSError:
            return None  # the blocking read reports it

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self._size_bytes)
        result: list[MappedExtent] = []
        for extent in self._extents(offset, length):
            last = result[-1] if result else None
            if last is not None and last.kind is extent.kind:
                result[-1] = MappedExtent(last.offset, extent.end - last.offset, last.kind)
            elif len(result) == _MAX_EXTENTS:
                break
            else:
                result.append(extent)
        return result

    def _extents(self, offset: int, length: int) -> Iterator[MappedExtent]:
        for kind, start, run_length in self._map.runs(offset, length):
            if kind == BASE:
                known = self._base.map_extents(start, run_length)
                yield from known
                if known[-1].end < start + run_length:
                    return
            else:
                extent_kind = ExtentKind.ZERO if kind == ZERO else ExtentKind.DATA
                yield MappedExtent(start, run_length, extent_kind)

    # writing

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        length = len(data)
        check_range(offset, length, self._size_bytes)
        if not length:
            return
        room = self._segment_bytes - offset % self._segment_bytes
        if length <= room:
            self._write_in_segment(offset, data)
            return
        view = memoryview(data)
        done = 0
        while done < length:
            stop = min(length, done + room)
            self._write_in_segment(offset + done, view[done:stop])
            done, room = stop, self._segment_bytes

    def _write_in_segment(self, offset: int, data: bytes | memoryview) -> None:
        end = offset + len(data)
        if (offset | end) & self._block_mask:
            old = self._read_partial_blocks(offset, end)
            with self._lock:
                self._store(*self._merge(offset, end, data, old))
        else:
            with self._lock:
                self._store(offset, end, [data])

    def _read_partial_blocks(self, offset: int, end: int) -> dict[int, bytes]:
        """Read, before the lock is taken, blocks of the base that the write covers in part."""
        old = {}
        for position in (offset, end):
            block = position & ~self._block_mask
            partial = position != block and position != self._size_bytes
            if partial and self._map.kind_of(block, 1) == BASE:
                length = min(self._block_bytes, self._size_bytes - block)
                old[block] = self._base.read_at(block, length)
        return old

    def _merge(
        self, offset: int, end: int, data: bytes | memoryview, old: dict[int, bytes]
    ) -> tuple[int, int, list[files.Buffer]]:
        """Complete partly written blocks that the data file does not hold yet."""
        buffers: list[files.Buffer] = [data]
        start, head = offset, offset & self._block_mask
        stop, tail = end, end & self._block_mask
        if head and (block := self._old_block(offset - head, old)) is not None:
            buffers.insert(0, block[:head])
            start -= head
        if tail and end != self._size_bytes:
            block = self._old_block(end - tail, old)
            if block is not None:
                buffers.append(block[tail:])
                stop += len(block) - tail
        return start, stop, buffers

    def _old_block(self, block: int, old: dict[int, bytes]) -> bytes | None:
        kind = self._map.kind_of(block, 1)
        if kind == DATA:
            return None
        length = min(self._block_bytes, self._size_bytes - block)
        return old[block] if kind == BASE else bytes(length)

    def _store(self, start: int, end: int, buffers: list[files.Buffer]) -> None:
        """Write one segment's part into its slot; the map follows only when all of it is there."""
        self._check_usable()
        segment, inner = divmod(start, self._segment_bytes)
        position = self._map.assign_slot(segment) * self._segment_bytes + inner
        self._unsynced = True
        try:
            files.pwrite_all(self._data_fd, buffers, position)
        except OSError as error:
            raise files.storage_error(f"cannot write {data_path(self._folder)}", error) from error
        self._map.mark_data(start, end)

    def zero_at(self, offset: int, length: int) -> None:
        check_range(offset, length, self._size_bytes)
        end = offset + length
        head_end = min(end, -(-offset // self._block_bytes) * self._block_bytes)
        tail_start = end if end == self._size_bytes else end & ~self._block_mask
        if offset < head_end:
            self._zero_part(offset, head_end)
        if head_end < tail_start:
            self._zero_blocks(head_end, tail_start)
        if max(head_end, tail_start) < end:
            self._zero_part(max(head_end, tail_start), end)

    def _zero_part(self, start: int, end: int) -> None:
        if self._map.kind_of(start, end - start) == ZERO:
            return
        self._write_in_segment(start, bytes(end - start))

    def _zero_blocks(self, start: int, end: int) -> None:
        with self._lock:
            self._check_usable()
            self._unsynced = True
            freed = self._map.mark_zero(start, end)
            # Under the lock: a later write to the same blocks must not fall into the hole. The
            # journal may still call them data after a crash; a hole reads as the zeros asked for.
            for position, length in freed:
                try:
                    files.punch_hole(self._data_fd, position, length)
                except OSError as error:
                    action = f"cannot free space in {data_path(self._folder)}"
                    raise files.storage_error(action, error) from error

    # durability

    def flush(self) -> None:
        """As BlockDevice.flush.

        Raises:
            StorageFullError: no space for the journal; not durable, but a later flush may be.
            OverlayFailedError: nothing can be made durable any more.
        """
        self._group_commit.run()

    def _commit(self) -> None:
        with self._lock:
            self._check_usable()
            if not self._unsynced:
                return
            self._unsynced = False
            changes = self._unjournaled + self._map.take_changes()
            self._unjournaled = changes
            long = self._journal.record_count + len(changes) > self._compact_at
            whole = self._map.all_records() if long else None
        try:
            os.fdatasync(self._data_fd)
            if changes and (whole is None or not self._replaced_journal(whole)):
                self._journal.append(changes)
        except StorageFullError:
            self._unsynced = True
            raise
        except BaseException as error:
            self._failure = error
            raise OverlayFailedError(f"the session in {self._folder} failed: {error}") from error
        self._unjournaled = []

    def _replaced_journal(self, whole: list[Record]) -> bool:
        try:
            self._journal.replace(whole)
        except StorageFullError:
            return False
        self._compact_at = max(_COMPACT_MIN_RECORDS, _COMPACT_FACTOR * len(whole))
        return True

    def _compact_if_long(self) -> None:
        if self._journal.record_count > self._compact_at:
            whole = self._map.all_records()
            self._compact_at = max(_COMPACT_MIN_RECORDS, _COMPACT_FACTOR * len(whole))
            if self._journal.record_count > self._compact_at:
                self._replaced_journal(whole)

    def _check_usable(self) -> None:
        if self._lock_fd < 0:
            raise OverlayFailedError(f"the session in {self._folder} is closed")
        if self._failure is not None:
            raise OverlayFailedError(
                f"the session in {self._folder} failed earlier: {self._failure}"
            ) from self._failure

    # the session

    def stats(self) -> OverlayStats:
        file_system = os.fstatvfs(self._data_fd)
        return OverlayStats(
            dirty_bytes=self._map.data_blocks * self._block_bytes,
            allocated_bytes=os.fstat(self._data_fd).st_blocks * 512 + self._journal.size_bytes,
            free_bytes=file_system.f_bavail * file_system.f_frsize,
            journal_bytes=self._journal.size_bytes,
            discarded_journal_bytes=self._journal.discarded_bytes,
        )

    def close(self) -> None:
        """Flush, unless the overlay failed, and release everything, the base too; idempotent.

        Stop reading before: a read under way may fail. Raises what `flush` raises, after
        everything was released.
        """
        if self._lock_fd < 0:
            return
        try:
            if self._failure is None:
                self.flush()
        finally:
            self._release()

    def discard(self) -> None:
        """Close an open overlay without a flush and remove its session. Raises StorageError."""
        if self._lock_fd < 0:
            return
        try:
            remove_session(self._folder)
        except OSError as error:
            raise files.storage_error(f"cannot remove {self._folder}", error) from error
        finally:
            self._release()

    def _release(self) -> None:
        with self._lock:  # a write that comes too late must not meet a reused descriptor
            self._close_files()
            os.close(self._lock_fd)
            self._lock_fd = -1
        self._base.close()

    def _close_files(self) -> None:
        self._journal.close()
        if self._data_fd >= 0:
            os.close(self._data_fd)
            self._data_fd = -1


def _fill_zeros(part: memoryview) -> None:
    for start in range(0, len(part), len(_ZEROS)):
        piece = part[start : start + len(_ZEROS)]
        piece[:] = memoryview(_ZEROS)[: len(piece)]
