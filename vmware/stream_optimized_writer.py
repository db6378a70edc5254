"""Write a streamOptimized VMDK in one pass, for a host that imports it.

Data path: restores feed a disk in ascending order; grains that are all zeros are left out, the
others are compressed on a few threads and go to `sink` in order, with their tables behind them.

Invariants: every byte given to `sink` is final; memory is bounded by one batch of grains and the
directory (4 bytes per 32 MiB of disk). A stream that was not closed has no end and is refused by
readers.
Thread model: one thread at a time; compression runs on threads of its own, joined by `close`.
Source: VMware Virtual Disk Format 5.0 ("Stream-Optimized Compressed Sparse Extents").
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vmware.stream_optimized_format import (
    GD_AT_END,
    GRAIN_MARKER,
    GRAIN_SECTORS,
    MAX_CAPACITY_SECTORS,
    TABLE_ENTRIES,
    Header,
    MarkerKind,
    pack_header,
    pack_marker,
)
from vmware.vmdk_descriptor import (
    NO_PARENT,
    SECTOR_BYTES,
    Descriptor,
    VmdkError,
    VmdkExtent,
    format_descriptor,
    geometry,
)

_GRAIN_BYTES = GRAIN_SECTORS * SECTOR_BYTES
_BATCH_GRAINS = 16  # of one task: 1 MiB, so that handing over costs nothing
_PENDING_BYTES = 8 << 20  # compressed together
_DESCRIPTOR_SECTORS = 20
_OVERHEAD_SECTORS = 128
_ZERO_GRAIN = bytes(_GRAIN_BYTES)
_MAX_STREAM_SECTORS = 1 << 32  # tables hold 32 bits

Sink = Callable[[bytes], None]


class StreamOptimizedWriter:
    """Writes the header when made; `close` writes tables, footer and end.

    Args:
        sink: takes the bytes of the stream in order; its errors pass through.
        capacity_bytes: of the disk, a multiple of 512.
        level: of zlib; 1 is what hosts use.
    """

    def __init__(
        self, sink: Sink, capacity_bytes: int, *, level: int = 1, threads: int = 2
    ) -> None:
        if capacity_bytes <= 0 or capacity_bytes % SECTOR_BYTES:
            raise VmdkError(f"a disk of {capacity_bytes} bytes cannot be a VMDK")
        if capacity_bytes // SECTOR_BYTES > MAX_CAPACITY_SECTORS:
            raise VmdkError(f"a disk of {capacity_bytes} bytes is too large for a VMDK")
        self.capacity_bytes = capacity_bytes
        self._sink = sink
        self._level = level
        self._sector = 0  # of the stream
        self._next = 0  # first byte of the disk that may be written
        self._pending = bytearray()  # disk from `_pending_at` on, not yet in the stream
        self._pending_at = 0  # a multiple of the grain
        self._table = array("I", bytes(4 * TABLE_ENTRIES))
        self._table_number = 0
        tables = -(-capacity_bytes // (_GRAIN_BYTES * TABLE_ENTRIES))
        self._directory = array("I", bytes(4 * tables))
        assert self._table.itemsize == 4
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="streamoptimized")
        self._closed = False
        self._emit(self._front())

    @property
    def stream_bytes(self) -> int:
        """Given to `sink` so far."""
        return self._sector * SECTOR_BYTES

    @property
    def next_offset(self) -> int:
        """Where the next write may begin, or later."""
        return self._next

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data`, at or after the end of the write before; a gap reads as zeros.

        Raises:
            VmdkError: before that, or outside the disk.
        """
        if offset < self._next or offset + len(data) > self.capacity_bytes:
            raise VmdkError(
                f"[{offset}, {offset + len(data)}) after {self._next} of {self.capacity_bytes}"
            )
        view = memoryview(data)
        while view:
            if offset >= self._pending_at + len(self._pending) + _GRAIN_BYTES:
                self._drain(whole=True)
                self._pending_at = offset // _GRAIN_BYTES * _GRAIN_BYTES
            gap = offset - self._pending_at - len(self._pending)
            self._pending += bytes(gap)
            step = view[: max(1, _PENDING_BYTES - len(self._pending))]
            self._pending += step
            view = view[len(step) :]
            offset += len(step)
            self._next = offset
            if len(self._pending) >= _PENDING_BYTES:
                self._drain(whole=False)

    def close(self) -> None:
        """Finish the stream. Idempotent; after `abandon` it does nothing."""
        if self._closed:
            return
        try:
            self._drain(whole=True)
            self._end_table()
            directory = self._metadata(MarkerKind.GRAIN_DIRECTORY, _little_endian(self._directory))
            self._metadata(MarkerKind.FOOTER, pack_header(self._header(directory)))
            self._emit(pack_marker(MarkerKind.END_OF_STREAM, 0))
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End without finishing the stream. Idempotent."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)

    # Grains

    def _drain(self, *, whole: bool) -> None:
        """Put the pending grains into the stream; a grain that is not full stays unless `whole`."""
        if whole:
            self._pending += bytes(-len(self._pending) % _GRAIN_BYTES)
        ready = len(self._pending) // _GRAIN_BYTES * _GRAIN_BYTES
        batch_bytes = _BATCH_GRAINS * _GRAIN_BYTES
        with memoryview(self._pending)[:ready] as view:
            batches = [view[start : start + batch_bytes] for start in range(0, ready, batch_bytes)]
            for number, grains in enumerate(self._pool.map(self._compress, batches)):
                at = self._pending_at + number * batch_bytes
                for grain, compressed in enumerate(grains):
                    if compressed is not None:
                        self._grain(at // _GRAIN_BYTES + grain, compressed)
            for batch in batches:
                batch.release()
        del self._pending[:ready]
        self._pending_at += ready

    def _compress(self, batch: memoryview) -> list[bytes | None]:
        """Compressed grains, None for one that is all zeros."""
        grains: list[bytes | None] = []
        for start in range(0, len(batch), _GRAIN_BYTES):
            grain = batch[start : start + _GRAIN_BYTES]
            grains.append(None if grain == _ZERO_GRAIN else zlib.compress(grain, self._level))
            grain.release()
        return grains

    def _grain(self, number: int, compressed: bytes) -> None:
        table, entry = divmod(number, TABLE_ENTRIES)
        if table != self._table_number:
            self._end_table()
            self._table_number = table
        self._table[entry] = self._place()
        lba = number * GRAIN_SECTORS
        self._emit(_padded(GRAIN_MARKER.pack(lba, len(compressed)) + compressed))

    # Tables

    def _end_table(self) -> None:
        if any(self._table):
            place = self._metadata(MarkerKind.GRAIN_TABLE, _little_endian(self._table))
            self._directory[self._table_number] = place
            self._table = array("I", bytes(4 * TABLE_ENTRIES))

    def _metadata(self, kind: MarkerKind, data: bytes) -> int:
        """Write a marker and what follows it; return the sector of the latter."""
        data = _padded(data)
        self._emit(pack_marker(kind, len(data) // SECTOR_BYTES))
        place = self._place()
        self._emit(data)
        return place

    def _place(self) -> int:
        if self._sector >= _MAX_STREAM_SECTORS:
            raise VmdkError("the disk holds too much for one streamOptimized VMDK (2 TiB)")
        return self._sector

    def _emit(self, data: bytes) -> None:
        self._sink(data)
        self._sector += len(data) // SECTOR_BYTES

    # Front

    def _header(self, directory: int) -> Header:
        return Header(
            capacity=self.capacity_bytes // SECTOR_BYTES,
            grain=GRAIN_SECTORS,
            descriptor=1,
            descriptor_size=_DESCRIPTOR_SECTORS,
            directory=directory,
            overhead=_OVERHEAD_SECTORS,
        )

    def _front(self) -> bytes:
        extent = VmdkExtent(
            access="RW",
            sectors=self.capacity_bytes // SECTOR_BYTES,
            kind="SPARSE",
            file_name="disk.vmdk",
        )
        descriptor = Descriptor(
            version=1,
            cid=0x484F4C44,
            parent_cid=NO_PARENT,
            create_type="streamOptimized",
            extents=(extent,),
            database=(
                ("adapterType", "lsilogic"),
                *geometry(self.capacity_bytes),
                ("virtualHWVersion", "13"),
            ),
        )
        front = pack_header(self._header(GD_AT_END)) + format_descriptor(descriptor)
        return front.ljust(_OVERHEAD_SECTORS * SECTOR_BYTES, b"\0")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % SECTOR_BYTES)


def _little_endian(entries: array[int]) -> bytes:
    return struct.pack(f"<{len(entries)}I", *entries)
