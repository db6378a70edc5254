"""The disk inside a VHDX or VHD file, with its parents: what a backup of a Hyper-V VM reads.

Data path: SMB or a local file (`source.ByteSource`) -> one `DiskFile` per file of the chain ->
`DiskReader`, structurally the product's block reader with errors and extents of this library.

Invariants: nothing is ever written; a range is read from the newest file of the chain that has it;
a parent is used only if it is the file, in the state, that its child was made of. Content has no
checksums in these formats: header, region table and log have, and all of them are checked.

Thread model: after opening, every method may be called from several threads at once and blocks on
the sources, except `try_read_at`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from hyperv.vhdx.disk_file import DiskFacts, DiskFile, Piece, Place
from hyperv.vhdx.errors import (
    CorruptDiskFileError,
    OutOfDiskError,
    ParentMismatchError,
    ParentMissingError,
)
from hyperv.vhdx.image import VhdxImage
from hyperv.vhdx.parent_reference import ParentReference
from hyperv.vhdx.source import ByteSource, Wanted, read_ranges
from hyperv.vhdx.structures import FILE_SIGNATURE
from hyperv.vhdx.vhd_image import VhdImage

MOST_FILES: Final = 64  # of a chain; Hyper-V allows 50 checkpoints of a VM
_MOST_MAPPED_PIECES: Final = 65536  # of one answer of `map_extents`

FindParent = Callable[[ParentReference], ByteSource | None]
"""Finds the parent's file; None if there is none. Who opens the disk keeps and closes it."""


class ExtentKind(Enum):
    DATA = "data"  # may hold anything
    ZERO = "zero"  # reads as zeros


@dataclass(frozen=True, slots=True)
class MappedExtent:
    """A range of a disk in bytes whose bytes are all of one kind."""

    offset: int
    length: int
    kind: ExtentKind

    @property
    def end(self) -> int:
        return self.offset + self.length


def open_disk_file(source: ByteSource, find_parent: FindParent | None = None) -> DiskReader:
    """Open a VHDX or VHD file, told apart by their content, and all of its parents.

    The sources must outlive the reader.

    Raises:
        ParentMissingError: a parent was not found, or `find_parent` is None and there is one.
        ParentMismatchError: what was found is not the parent.
        DiskFileError: a file of the chain is neither, is damaged, or needs what is not known here.
    """
    files = [_opened(source)]
    while (reference := files[-1].facts.parent) is not None:
        if len(files) == MOST_FILES:
            raise CorruptDiskFileError("parents", f"a chain of more than {MOST_FILES} files")
        found = find_parent(reference) if find_parent is not None else None
        if found is None:
            raise ParentMissingError(f"the parent is {reference}")
        parent = _opened(found)
        _check_parent(files[-1].facts, parent.facts, reference)
        files.append(parent)
    return DiskReader(files)


class DiskReader:
    def __init__(self, files: list[DiskFile]) -> None:
        """`files`: a chain that fits together, newest first, as `open_disk_file` makes it."""
        self._files = files

    @property
    def size_bytes(self) -> int:
        return self.facts.disk_bytes

    @property
    def facts(self) -> DiskFacts:
        """Of the newest file."""
        return self._files[0].facts

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset`; holes read as zeros.

        Raises:
            OutOfDiskError: the range does not lie inside the disk.
            DiskFileError: a file of the chain cannot be read.
        """
        self._check(offset, length)
        buffer = bytearray(length)
        self._fill(offset, memoryview(buffer), is_zeroed=True)
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole of `buffer` (writable, bytes) from byte `offset`; else as `read_at`."""
        self._check(offset, len(buffer))
        self._fill(offset, buffer, is_zeroed=False)

    def try_read_at(self, offset: int, length: int) -> bytes | None:
        """Return None: a source may always block.

        Raises:
            OutOfDiskError: the range does not lie inside the disk.
        """
        self._check(offset, length)
        return None if length else b""

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        """Describe [offset, offset + length): contiguous, in order, equal neighbours joined.

        Blocks and sectors that no file of the chain holds are ZERO. The list may stop short of the
        end of the range, but covers at least its first byte.

        Raises: as `read_at`.
        """
        self._check(offset, length)
        extents: list[MappedExtent] = []
        for number, (_, piece) in enumerate(self._resolved(0, offset, length)):
            if number == _MOST_MAPPED_PIECES:
                break
            kind = ExtentKind.DATA if piece.place is Place.FILE else ExtentKind.ZERO
            if extents and extents[-1].kind is kind:
                last = extents[-1]
                extents[-1] = MappedExtent(last.offset, last.length + piece.length, kind)
            else:
                extents.append(MappedExtent(piece.offset, piece.length, kind))
        return extents

    def close(self) -> None:
        """Drop what is cached; the sources stay open. Idempotent."""
        for file in self._files:
            file.forget()

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise OutOfDiskError(offset, length, self.size_bytes)

    def _fill(self, offset: int, buffer: memoryview, *, is_zeroed: bool) -> None:
        """Collect what each file has of the range, then ask every file once."""
        wanted: list[list[Wanted]] = [[] for _ in self._files]
        for level, piece in self._resolved(0, offset, len(buffer)):
            part = buffer[piece.offset - offset :][: piece.length]
            if piece.place is Place.FILE:
                wanted[level].append(Wanted(piece.file_offset, part))
            elif not is_zeroed:
                part[:] = bytes(len(part))
        for file, ranges in zip(self._files, wanted, strict=True):
            if ranges:
                read_ranges(file.source, ranges)

    def _resolved(self, level: int, offset: int, length: int) -> Iterator[tuple[int, Piece]]:
        """Yield (number of the file, piece) with those of the parents in the place of PARENT."""
        if not length:
            return
        for piece in _joined(self._files[level].pieces(offset, length)):
            if piece.place is not Place.PARENT:
                yield level, piece
                continue
            held = self._held_by_parent(level, piece)
            if held:
                yield from self._resolved(level + 1, piece.offset, held)
            if held < piece.length:
                yield level, Piece(piece.offset + held, piece.length - held, Place.ZEROS)

    def _held_by_parent(self, level: int, piece: Piece) -> int:
        """A child may have been made longer than its parent; what lies behind is zeros."""
        parent_bytes = self._files[level + 1].facts.disk_bytes
        return max(0, min(piece.length, parent_bytes - piece.offset))


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Join pieces that follow each other on the disk and in the file, so that reads are long."""
    last: Piece | None = None
    for piece in pieces:
        if (
            last is not None
            and last.place is piece.place
            and (
                piece.place is not Place.FILE or last.file_offset + last.length == piece.file_offset
            )
        ):
            last = Piece(last.offset, last.length + piece.length, last.place, last.file_offset)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _opened(source: ByteSource) -> DiskFile:
    if source.read_at(0, len(FILE_SIGNATURE)) == FILE_SIGNATURE:
        return VhdxImage(source)
    return VhdImage(source)


def _check_parent(child: DiskFacts, parent: DiskFacts, reference: ParentReference) -> None:
    if parent.content_id not in reference.linkages:
        raise ParentMismatchError(
            f"the file at {reference} has the content id {parent.content_id};"
            f" the child expects {' or '.join(map(str, reference.linkages))}"
        )
    if child.logical_sector_bytes != parent.logical_sector_bytes:
        raise ParentMismatchError(
            f"the file at {reference} has sectors of {parent.logical_sector_bytes} bytes;"
            f" the child has {child.logical_sector_bytes}"
        )
