"""One VHD file, the format before VHDX: fixed, dynamic or differencing.

A reader of our own because no library fits: libvhdi has only an LGPL binding, dissect.hypervisor is
under the AGPL, and neither checks the checksums or the overlap of blocks. The format is small:

    fixed                     the disk | footer
    dynamic, differencing     copy of the footer | header | block table | blocks | footer

A block is a bitmap of its sectors (highest bit first, padded to 512 bytes) and their content. Big-
endian. The disk is as long as the footer's "current size", never what its geometry says. A footer
at the end that is missing or damaged is replaced by the copy at the start (a host may have failed
while the file grew). Only the sectors of a differencing disk are looked up in the bitmap: in a
dynamic disk, a sector that was never written holds zeros.

Source: "Virtual Hard Disk Image Format Specification" 1.0 (Microsoft, 2006).
Thread model: an image never changes after it was opened; methods are thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Final
from uuid import UUID

import numpy as np

from hyperv.vhdx.disk_file import DiskFacts, Piece, Place, bitmap_pieces
from hyperv.vhdx.errors import (
    CorruptDiskFileError,
    NotADiskFileError,
    TruncatedDiskFileError,
    UnsupportedDiskFileError,
)
from hyperv.vhdx.page_cache import PageCache
from hyperv.vhdx.parent_reference import ParentReference
from hyperv.vhdx.source import ByteSource, read_exactly
from hyperv.vhdx.structures import MIB, TIB

if TYPE_CHECKING:
    from numpy.typing import NDArray

SECTOR_BYTES: Final = 512
# cookie features version data-offset timestamp creator version host original-size current-size
# geometry type checksum id saved-state
_FOOTER: Final = Struct(">8sIIQI4sI4sQQIII16sB")
_FOOTER_COOKIE: Final = b"conectix"
_VERSION: Final = 0x00010000
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
# cookie data-offset table-offset version entries block-size checksum parent-id parent-time reserved
_HEADER: Final = Struct(">8sQQIIII16sII")
_HEADER_COOKIE: Final = b"cxsparse"
_HEADER_BYTES: Final = 1024
_PARENT_NAME: Final = slice(64, 576)  # of the header: UTF-16, big-endian
_LOCATORS_AT: Final = 576
_LOCATOR: Final = Struct(">4sIIIQ")  # code, space, length, reserved, offset
_LOCATORS: Final = 8
_RELATIVE, _ABSOLUTE = b"W2ru", b"W2ku"
_PATH_MOST_BYTES: Final = 64 * 1024
_ABSENT: Final = 0xFFFF_FFFF
_MOST_DISK_BYTES: Final = 2 * TIB  # sector numbers have 32 bits
_MOST_BLOCK_BYTES: Final = 256 * MIB
_MOST_BLOCKS: Final = 1 << 23  # 2 TiB in blocks of 256 KiB; Windows makes 2 MiB


class VhdImage:
    def __init__(self, source: ByteSource) -> None:
        """Open the file and check its structures.

        Raises:
            DiskFileError: the file is no VHD, is damaged, or needs what this reader does not know.
        """
        self._source = source
        self._cache = PageCache(source)
        footer = _read_footer(source)
        (_, _, version, header_at, _, _, _, _, _, disk_bytes, _, kind, _, own_id,
         _) = _FOOTER.unpack_from(footer)  # fmt: skip
        if version != _VERSION or kind not in (_FIXED, _DYNAMIC, _DIFFERENCING):
            raise UnsupportedDiskFileError(f"VHD of version {version:#x}, type {kind}")
        if not disk_bytes or disk_bytes % SECTOR_BYTES or disk_bytes > _MOST_DISK_BYTES:
            raise CorruptDiskFileError("footer", f"a disk of {disk_bytes} bytes")
        self._bitmap_bytes = 0
        self._table: NDArray[np.uint32] | None = None
        parent: ParentReference | None = None
        block_bytes = disk_bytes
        if kind == _FIXED:
            if disk_bytes > source.size_bytes - SECTOR_BYTES:
                raise TruncatedDiskFileError("footer", f"the disk has {disk_bytes} bytes")
        else:
            header = _read_header(source, header_at)
            _, _, table_at, _, entries, block_bytes, _, parent_id, _, _ = _HEADER.unpack_from(
                header
            )
            self._bitmap_bytes = _check_blocks(disk_bytes, block_bytes, entries)
            self._table = self._read_table(table_at, -(-disk_bytes // block_bytes), block_bytes)
            if kind == _DIFFERENCING:
                parent = self._parent(header, UUID(bytes=parent_id))
        self._facts = DiskFacts(
            disk_bytes=disk_bytes,
            disk_id=UUID(bytes=own_id),
            content_id=UUID(bytes=own_id),
            logical_sector_bytes=SECTOR_BYTES,
            physical_sector_bytes=SECTOR_BYTES,
            block_bytes=block_bytes,
            parent=parent,
        )

    @property
    def facts(self) -> DiskFacts:
        return self._facts

    @property
    def source(self) -> ByteSource:
        return self._source

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        if self._table is None:
            yield Piece(offset, length, Place.FILE, offset)
            return
        is_child = self._facts.parent is not None
        end = offset + length
        while offset < end:
            block, inside = divmod(offset, self._facts.block_bytes)
            part = min(end - offset, self._facts.block_bytes - inside)
            sector = int(self._table[block])
            at = sector * SECTOR_BYTES + self._bitmap_bytes + inside
            if sector == _ABSENT:
                yield Piece(offset, part, Place.PARENT if is_child else Place.ZEROS)
            elif not is_child:
                yield Piece(offset, part, Place.FILE, at)
            else:
                yield from bitmap_pieces(
                    self._present_sectors(sector, inside, part),
                    offset=offset,
                    length=part,
                    sector_bytes=SECTOR_BYTES,
                    file_offset=at,
                )
            offset += part

    def forget(self) -> None:
        self._cache.clear()

    def _present_sectors(self, block_sector: int, inside: int, length: int) -> bytes:
        """Return a byte per sector of the range of the block: 1 if it is in this file."""
        first, last = inside // SECTOR_BYTES, -(-(inside + length) // SECTOR_BYTES)
        begin, end = first // 8, -(-last // 8)
        raw = self._cache.read(block_sector * SECTOR_BYTES + begin, end - begin, "a sector bitmap")
        bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8))
        return bits[first - begin * 8 : last - begin * 8].tobytes()

    def _read_table(self, at: int, blocks: int, block_bytes: int) -> NDArray[np.uint32]:
        """Return the block table; no two blocks overlap each other, it, or the structures."""
        raw = read_exactly(self._source, at, blocks * 4, "block table")
        table = np.frombuffer(raw, dtype=">u4").astype(np.uint32)
        spans = [(0, SECTOR_BYTES), (at, at + len(raw))]
        held = np.sort(table[table != _ABSENT].astype(np.int64)) * SECTOR_BYTES
        whole = self._bitmap_bytes + block_bytes
        if np.any(held[1:] - held[:-1] < whole):
            raise CorruptDiskFileError("block table", "two blocks share a sector")
        for start, end in spans:
            if np.any((held < end) & (held + whole > start)):
                raise CorruptDiskFileError("block table", f"a block lies over {start}")
        if len(held) and int(held[-1]) + whole > self._source.size_bytes:
            raise TruncatedDiskFileError("block table", f"a block at {held[-1]}")
        return table

    def _parent(self, header: bytes, parent_id: UUID) -> ParentReference:
        paths = {}
        for number in range(_LOCATORS):
            code, _, length, _, at = _LOCATOR.unpack_from(
                header, _LOCATORS_AT + number * _LOCATOR.size
            )
            if code in (_RELATIVE, _ABSOLUTE):
                if length > _PATH_MOST_BYTES:
                    raise CorruptDiskFileError("parent locator", f"a path of {length} bytes")
                raw = read_exactly(self._source, at, length, "parent locator")
                paths[code] = _text(raw, "utf-16-le")
        return ParentReference(
            linkages=(parent_id,),
            relative_path=paths.get(_RELATIVE, "") or _text(header[_PARENT_NAME], "utf-16-be"),
            absolute_path=paths.get(_ABSOLUTE, ""),
        )


def _text(raw: bytes, encoding: str) -> str:
    try:
        return raw[: len(raw) // 2 * 2].decode(encoding).split("\0", 1)[0]
    except UnicodeDecodeError as error:
        raise CorruptDiskFileError("parent locator", "no text") from error


def _read_footer(source: ByteSource) -> bytes:
    """Return the footer at the end, else the copy that all but fixed disks have at the start."""
    is_damaged = False
    for at in (max(0, source.size_bytes - SECTOR_BYTES), 0):
        raw = source.read_at(at, SECTOR_BYTES)
        if not raw.startswith(_FOOTER_COOKIE) or len(raw) != SECTOR_BYTES:
            continue
        kind, found = _FOOTER.unpack_from(raw)[11:13]
        if found == _checksum(raw, 64) and not (at == 0 and kind == _FIXED):
            return raw
        is_damaged = True
    if is_damaged:
        raise CorruptDiskFileError("footer", "no copy has its checksum")
    raise NotADiskFileError("no VHDX identifier at its start and no VHD footer at its end")


def _read_header(source: ByteSource, at: int) -> bytes:
    header = read_exactly(source, at, _HEADER_BYTES, "dynamic disk header")
    cookie, _, _, version, _, _, found, _, _, _ = _HEADER.unpack_from(header)
    if cookie != _HEADER_COOKIE or found != _checksum(header, 36):
        raise CorruptDiskFileError("dynamic disk header", "its checksum is wrong")
    if version != _VERSION:
        raise UnsupportedDiskFileError(f"a dynamic disk header of version {version:#x}")
    return header


def _check_blocks(disk_bytes: int, block_bytes: int, entries: int) -> int:
    """Return the bytes of the bitmap in front of each block."""
    is_power_of_two = block_bytes & (block_bytes - 1) == 0
    is_known = SECTOR_BYTES <= block_bytes <= _MOST_BLOCK_BYTES and is_power_of_two
    if not is_known or disk_bytes > _MOST_BLOCKS * block_bytes:
        raise UnsupportedDiskFileError(f"blocks of {block_bytes} bytes")
    if entries * block_bytes < disk_bytes:
        raise CorruptDiskFileError(
            "dynamic disk header", f"{entries} blocks of {block_bytes} bytes"
        )
    bitmap_bytes = -(-block_bytes // SECTOR_BYTES // 8)
    return -(-bitmap_bytes // SECTOR_BYTES) * SECTOR_BYTES


def _checksum(structure: bytes, at: int) -> int:
    """Ones' complement of the sum of the bytes; the checksum, at `at`, counts as zeros."""
    return ~(sum(structure) - sum(structure[at : at + 4])) & 0xFFFF_FFFF
