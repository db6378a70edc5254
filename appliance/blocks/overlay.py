"""Crash-safe copy-on-write: the writes of a recovery session over a base that never changes.

    reads, writes -> Overlay -> data file (what was written) | base.read_at (what was not)
                        flush -> overlay_durability

Why it looks like this. Data lies in a sparse file, in slots of one 8 MiB segment: offsets stay
small on a 62 TiB disk, sequential stays sequential, and a second write to a block goes in place, so
the file never grows beyond what is distinct. The map of what lies there changes only through the
journal (`overlay_journal`), which names data after it is durable. So after a crash a sector reads
what a flush had acknowledged, or something written after that: what a disk promises. Contents carry
no checksum: they change in place, as on a disk.

Thread model: every method from any thread. `_lock` covers the change of a block's place: file write
and map update of one segment, and taking the changes for a flush. It is not held during an fsync
or while the base is read. Reads take no lock (see `overlay_reader`). Order: see
`overlay_durability`; nothing else is taken under `_lock`.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from appliance.base.errors import UsageError
from appliance.blocks import overlay_files as files
from appliance.blocks.device import BlockReader, check_range
from appliance.blocks.extents import MappedExtent
from appliance.blocks.overlay_data import DataFile
from appliance.blocks.overlay_durability import Durability
from appliance.blocks.overlay_errors import OverlayCorruptError
from appliance.blocks.overlay_journal import Journal
from appliance.blocks.overlay_map import BASE, DATA, MAX_SEGMENTS, ZERO, Geometry, OverlayMap
from appliance.blocks.overlay_reader import OverlayReader
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
        self._map = OverlayMap(session.size_bytes, session.geometry)
        self._lock_fd = lock_fd
        self._journal = Journal(journal_path(folder), session.journal_header)
        with ExitStack() as opened:  # lock and base stay the caller's if this fails
            opened.callback(self._journal.close)
            try:
                self._map.replay(self._journal.replay())
                self._data = DataFile(data_path(folder))
                opened.callback(self._data.close)
                self._durability = Durability(
                    folder, self._lock, self._map, self._data, self._journal
                )
            except FileNotFoundError as error:
                raise OverlayCorruptError(f"the session in {folder} lacks a file") from error
            except OSError as error:
                raise files.storage_error(f"cannot open the session in {folder}", error) from error
            opened.pop_all()
        self._reader = OverlayReader(session.size_bytes, base, self._map, self._data)

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
        return self._reader.read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._reader.read_into(offset, buffer)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        return self._reader.try_read_at(offset, length)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        return self._reader.map_extents(offset, length)

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
        self._durability.begin_change()
        segment, inner = divmod(start, self._segment_bytes)
        position = self._map.assign_slot(segment) * self._segment_bytes + inner
        self._data.write(buffers, position)
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
            self._durability.begin_change()
            freed = self._map.mark_zero(start, end)
            # Under the lock: a later write to the same blocks must not fall into the hole. The
            # journal may still call them data after a crash; a hole reads as the zeros asked for.
            for position, length in freed:
                self._data.free(position, length)

    def flush(self) -> None:
        """As BlockDevice.flush; raises what `Durability.flush` raises."""
        self._durability.flush()

    # the session

    def stats(self) -> OverlayStats:
        return OverlayStats(
            dirty_bytes=self._map.data_blocks * self._block_bytes,
            allocated_bytes=self._data.allocated_bytes + self._journal.size_bytes,
            free_bytes=self._data.free_bytes,
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
            if not self._durability.failed:
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
            self._durability.close()
            self._journal.close()
            self._data.close()
            os.close(self._lock_fd)
            self._lock_fd = -1
        self._base.close()
