"""A VHDX file that exists, written in place: what a roll-back does to the disk of a VM.

    updater = VhdxUpdater(file)
    updater.write_at(offset, data); updater.zero_at(offset, length)      any order, any size
    updater.finish()

Blocks that are in the file are overwritten where they stand; others get a place at its end, and
the table is told of them by `finish`, when their content is durable. Before the first write both
headers get new write ids ([MS-VHDX] 2.2.2), so that nothing takes the file for the one it was.

Crash guarantee: without `finish` the file is a valid VHDX whose written ranges hold old or new
content; space of new blocks is lost at its end, no more. Refused are files with a parent, with a
log to replay, and VHD: see `NotUpdatableError`.

Memory: what the reader caches, and a place per new block. Thread model: one thread, alone with the
file. Source: [MS-VHDX] 2.2.2, 2.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol
from uuid import UUID, uuid4

import numpy as np

from hyperv.vhdx.disk_file import Place
from hyperv.vhdx.encoding import header as encoded_header
from hyperv.vhdx.errors import NotUpdatableError, OutOfDiskError
from hyperv.vhdx.header import read_header
from hyperv.vhdx.image import VhdxImage
from hyperv.vhdx.region_table import read_region_table
from hyperv.vhdx.shape import VhdxShape, bat_layout
from hyperv.vhdx.structures import (
    BAT_ENTRY_BYTES,
    FILE_SIGNATURE,
    HEADER_OFFSETS,
    MIB,
    PayloadState,
)

_ZEROS: Final = bytes(MIB)


class UpdatableFile(Protocol):
    @property
    def size_bytes(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return the bytes of [offset, offset + length), fewer only at the end of the file."""
        ...

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Also behind the end; what is between reads as zeros."""
        ...

    def set_size(self, size_bytes: int) -> None: ...

    def flush(self) -> None:
        """Return once everything written before is durable."""
        ...


class VhdxUpdater:
    def __init__(self, file: UpdatableFile) -> None:
        """Check everything; nothing is written yet.

        Raises:
            NotUpdatableError: a VHD, a differencing file, or one that was not closed.
            DiskFileError: it is no disk file, or is damaged.
        """
        self._file = file
        if file.read_at(0, len(FILE_SIGNATURE)) != FILE_SIGNATURE:
            raise NotUpdatableError("it is no VHDX file")
        self._header = read_header(file)
        if self._header.log_id is not None:
            raise NotUpdatableError("it was not closed: its log has to be replayed first")
        self._image = VhdxImage(file)
        facts = self._image.facts
        if facts.parent is not None:
            raise NotUpdatableError("it is a differencing disk, its parent has the rest of it")
        self._table_offset = read_region_table(file).bat.offset
        self._layout = bat_layout(
            disk_bytes=facts.disk_bytes,
            block_bytes=facts.block_bytes,
            logical_sector_bytes=facts.logical_sector_bytes,
            is_differencing=False,
        )
        self._end = -(-file.size_bytes // MIB) * MIB
        self._new: dict[int, int] = {}  # block -> its place in the file
        self._has_begun = False

    @property
    def size_bytes(self) -> int:
        return self._image.facts.disk_bytes

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` to the disk. Raises: OutOfDiskError, and what the file raises."""
        view = memoryview(data).cast("B")
        for at, length, place in self._places(offset, len(view)):
            part = view[at - offset :][:length]
            if place is None and not np.frombuffer(part, dtype=np.uint8).any():
                continue
            self._write(self._allocated(at) if place is None else place, part)

    def zero_at(self, offset: int, length: int) -> None:
        """As `write_at`; blocks that are not in the file take no space."""
        for _, part, place in self._places(offset, length):
            for start in range(0, part, len(_ZEROS)) if place is not None else ():
                assert place is not None
                self._write(place + start, memoryview(_ZEROS)[: part - start])

    def finish(self) -> None:
        """Make it durable. Raises: what the file raises; then it is as after a crash."""
        if self._new:
            self._file.set_size(self._end)
        self._file.flush()
        for block, place in sorted(self._new.items()):
            entry = (place | PayloadState.FULLY_PRESENT).to_bytes(BAT_ENTRY_BYTES, "little")
            index = self._layout.payload_index(block)
            self._file.write_at(self._table_offset + index * BAT_ENTRY_BYTES, entry)
        if self._new:
            self._file.flush()

    def _places(self, offset: int, length: int) -> Iterator[tuple[int, int, int | None]]:
        """(disk offset, length, place in the file or None), of one block each."""
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise OutOfDiskError(offset, length, self.size_bytes)
        end = offset + length
        while offset < end:
            block, inside = divmod(offset, self._layout.block_bytes)
            part = min(end - offset, self._layout.block_bytes - inside)
            place = self._new.get(block)
            if place is not None:
                yield offset, part, place + inside
            else:
                (piece,) = self._image.pieces(offset, part)  # a block of such a file is one piece
                yield offset, part, piece.file_offset if piece.place is Place.FILE else None
            offset += part

    def _allocated(self, offset: int) -> int:
        """A place at the end for the block of byte `offset`; where that byte goes."""
        block, inside = divmod(offset, self._layout.block_bytes)
        self._new[block] = self._end
        self._end += self._layout.block_bytes
        return self._new[block] + inside

    def _write(self, place: int, data: memoryview) -> None:
        if not self._has_begun:
            self._begin()
        self._file.write_at(place, data)

    def _begin(self) -> None:
        """New write ids, in the header that is not in force first."""
        self._has_begun = True
        facts, at = self._image.facts, self._header.place
        file_write_id, data_write_id = uuid4(), uuid4()
        for step in (1, 2):
            at = next(other for other in HEADER_OFFSETS if other != at)
            shape = VhdxShape(
                disk_bytes=facts.disk_bytes,
                disk_id=UUID(int=0),  # stands in the metadata, not in a header
                data_write_id=data_write_id,
                file_write_id=file_write_id,
                logical_sector_bytes=facts.logical_sector_bytes,
                physical_sector_bytes=facts.physical_sector_bytes,
                block_bytes=facts.block_bytes,
            )
            content = encoded_header(
                shape,
                sequence=self._header.sequence + step,
                log_offset=self._header.log_offset,
                log_bytes=self._header.log_bytes,
            )
            self._file.write_at(at, content)
            self._file.flush()
