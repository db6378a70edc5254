"""A new dynamic VHDX file, block by block: what restore makes of a disk.

    writer = DynamicVhdxWriter(sink, shape)
    writer.write_at(offset, data)              any order, any size
    writer.finish()

Blocks get their place in the file when they are first written to; what is never written, and zeros
written to a block that is not there, take no space. Crash guarantee: payload, tables and headers
are durable before the file type identifier is written, and without it nothing takes the file for a
VHDX. There is no resuming: a file without `finish` is thrown away.

Memory: 8 bytes per block (16 MiB for 62 TiB). Thread model: one thread.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np

from hyperv.vhdx.errors import OutOfDiskError
from hyperv.vhdx.layout import BAT_OFFSET, head_segments
from hyperv.vhdx.shape import VhdxShape
from hyperv.vhdx.structures import MIB, PayloadState

_ZEROS = bytes(MIB)


class ByteSink(Protocol):
    """A new, empty file. What is not written reads as zeros."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None: ...

    def set_size(self, size_bytes: int) -> None:
        """Make the file this long; it never was longer."""
        ...

    def flush(self) -> None:
        """Return once everything written before is durable."""
        ...


class DynamicVhdxWriter:
    def __init__(self, sink: ByteSink, shape: VhdxShape) -> None:
        self._sink = sink
        self._shape = shape
        self._payload_offset = BAT_OFFSET + shape.bat.region_bytes
        self._file_bytes = self._payload_offset
        self._bat = np.zeros(shape.bat.entries, dtype="<u8")

    @property
    def size_bytes(self) -> int:
        """Of the disk."""
        return self._shape.disk_bytes

    @property
    def file_bytes(self) -> int:
        """Length of the file so far."""
        return self._file_bytes

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` to the disk from byte `offset`.

        Raises:
            OutOfDiskError: the range does not lie inside the disk.
        """
        if offset < 0 or offset + len(data) > self._shape.disk_bytes:
            raise OutOfDiskError(offset, len(data), self._shape.disk_bytes)
        view = memoryview(data)
        while view:
            block, inside = divmod(offset, self._shape.block_bytes)
            part = view[: self._shape.block_bytes - inside]
            entry = int(self._bat[self._shape.bat.payload_index(block)])
            if entry or np.frombuffer(part, dtype=np.uint8).any():
                self._sink.write_at(self._place(block) + inside, part)
            view = view[len(part) :]
            offset += len(part)

    def zero_at(self, offset: int, length: int) -> None:
        """Make the range read as zeros; blocks that are not there stay away. As `write_at`."""
        end = offset + length
        while offset < end:
            part = min(end - offset, len(_ZEROS))
            self.write_at(offset, memoryview(_ZEROS)[:part])
            offset += part

    def finish(self) -> None:
        """Make it a VHDX file; returns once it is durable."""
        self._sink.set_size(self._file_bytes)  # the last block may be partly unwritten
        self._sink.write_at(BAT_OFFSET, self._bat.tobytes())
        identifier, *rest = head_segments(self._shape, file_flags=0)
        for at, content in rest:
            self._sink.write_at(at, content)
        self._sink.flush()
        self._sink.write_at(*identifier)
        self._sink.flush()

    def _place(self, block: int) -> int:
        """Return where the block stands in the file; it gets a place if it has none."""
        index = self._shape.bat.payload_index(block)
        if not self._bat[index]:
            self._bat[index] = self._file_bytes | PayloadState.FULLY_PRESENT
            self._file_bytes += self._shape.block_bytes
        return int(self._bat[index]) & ~int(PayloadState.FULLY_PRESENT)


class FileSink:
    """A file of this machine, open for writing, that stays the caller's. OSError passes through."""

    def __init__(self, fd: int, *, sync: bool = True) -> None:
        """Without `sync` a crash of the machine may leave a file that is a VHDX in part."""
        self._fd = fd
        self._sync = sync

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, offset)
            view, offset = view[done:], offset + done

    def set_size(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)

    def flush(self) -> None:
        if self._sync:
            os.fsync(self._fd)
