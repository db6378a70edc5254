"""A `BlockDevice` in memory: the simplest correct one, to serve and to compare others with.

Sparse in blocks of 4 KiB, so it may be as large as any disk. A block that is not there reads as
zeros and is mapped ZERO; zeroing removes whole blocks and clears the rest by writing.

Thread model: one lock around everything. `try_read_at` never waits for it long.
"""

from __future__ import annotations

import threading

from appliance.base.errors import StorageFullError
from appliance.blocks.device import check_range
from appliance.blocks.extents import ExtentKind, MappedExtent

BLOCK_BYTES = 4096
_ZERO_BLOCK = bytes(BLOCK_BYTES)


class SparseDevice:
    """`capacity_bytes`: how much may be allocated before StorageFullError, as a thin disk has."""

    def __init__(
        self, size_bytes: int, *, content: bytes = b"", capacity_bytes: int | None = None
    ) -> None:
        self._size_bytes = size_bytes
        self._capacity_blocks = None if capacity_bytes is None else capacity_bytes // BLOCK_BYTES
        self._blocks: dict[int, bytearray] = {}
        self._lock = threading.Lock()
        self.flushes = 0
        if content:
            self.write_at(0, content)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self._size_bytes)
        pieces = []
        with self._lock:
            for number, start, end in _pieces(offset, length):
                block = self._blocks.get(number, _ZERO_BLOCK)
                pieces.append(bytes(block[start:end]))
        return b"".join(pieces)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read_at(offset, len(buffer))

    def try_read_at(self, offset: int, length: int) -> bytes | None:
        return self.read_at(offset, length)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        check_range(offset, len(data), self._size_bytes)
        view = memoryview(data)
        with self._lock:
            for number, start, end in _pieces(offset, len(data)):
                self._block(number)[start:end] = view[: end - start]
                view = view[end - start :]

    def zero_at(self, offset: int, length: int) -> None:
        check_range(offset, length, self._size_bytes)
        end = offset + length
        first, last = -(-offset // BLOCK_BYTES), end // BLOCK_BYTES
        if end == self._size_bytes:  # the last block ends with the disk
            last = -(-end // BLOCK_BYTES)
        with self._lock:
            if last - first > len(self._blocks):
                whole = [number for number in self._blocks if first <= number < last]
            else:
                whole = [number for number in range(first, last) if number in self._blocks]
            for number in whole:
                del self._blocks[number]
            for number, start, end in _edges(offset, length):
                if number in self._blocks:
                    self._blocks[number][start:end] = bytes(end - start)

    def flush(self) -> None:
        with self._lock:
            self.flushes += 1

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self._size_bytes)
        if not length:
            return []
        first, end = offset // BLOCK_BYTES, offset + length
        with self._lock:
            there = sorted(n for n in self._blocks if first <= n and n * BLOCK_BYTES < end)
        extents: list[MappedExtent] = []
        at = offset
        for number in there:
            start = max(number * BLOCK_BYTES, offset)
            stop = min((number + 1) * BLOCK_BYTES, end)
            if start > at:
                extents.append(MappedExtent(at, start - at, ExtentKind.ZERO))
            if extents and extents[-1].kind is ExtentKind.DATA:
                last = extents.pop()
                start = last.offset
            extents.append(MappedExtent(start, stop - start, ExtentKind.DATA))
            at = stop
        if at < end:
            extents.append(MappedExtent(at, end - at, ExtentKind.ZERO))
        return extents

    def close(self) -> None:
        pass

    @property
    def allocated_bytes(self) -> int:
        return len(self._blocks) * BLOCK_BYTES

    def _block(self, number: int) -> bytearray:
        block = self._blocks.get(number)
        if block is None:
            if self._capacity_blocks is not None and len(self._blocks) >= self._capacity_blocks:
                raise StorageFullError("the memory device is full")
            block = self._blocks[number] = bytearray(BLOCK_BYTES)
        return block


def _pieces(offset: int, length: int) -> list[tuple[int, int, int]]:
    """Cut a range into (block number, start, end within the block)."""
    pieces = []
    end = offset + length
    while offset < end:
        number, start = divmod(offset, BLOCK_BYTES)
        taken = min(BLOCK_BYTES - start, end - offset)
        pieces.append((number, start, start + taken))
        offset += taken
    return pieces


def _edges(offset: int, length: int) -> list[tuple[int, int, int]]:
    """The parts of a range that do not fill their block: at most two."""
    end = offset + length
    head = min(-offset % BLOCK_BYTES, length)
    tail = 0 if head == length else end % BLOCK_BYTES
    pieces = _pieces(offset, head) if head else []
    return pieces + (_pieces(end - tail, tail) if tail else [])
