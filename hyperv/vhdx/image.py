"""One VHDX file, opened: its log replayed, its tables checked, its blocks resolved.

Data path: `reader` asks the files of a chain, leaf first, where the bytes of a range are. Sector
bitmaps ([MS-VHDX] 2.4.2) decide within a partly present block, one bit per logical sector, lowest
bit first.

Thread model: an image never changes after it was opened; methods are thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hyperv.vhdx.bat import BlockAllocationTable
from hyperv.vhdx.disk_file import DiskFacts, Piece, Place, bitmap_pieces
from hyperv.vhdx.header import read_header
from hyperv.vhdx.log import replayed
from hyperv.vhdx.metadata import read_metadata
from hyperv.vhdx.overlap import check_overlaps
from hyperv.vhdx.page_cache import PageCache
from hyperv.vhdx.region_table import Region, read_region_table
from hyperv.vhdx.shape import bat_layout
from hyperv.vhdx.source import ByteSource
from hyperv.vhdx.structures import PayloadState


class VhdxImage:
    def __init__(self, source: ByteSource) -> None:
        """Open the file and check everything in it that can be checked without its content.

        Raises:
            DiskFileError: the file is no VHDX, is damaged, or needs what this reader does not know.
        """
        header = read_header(source)
        self._source = replayed(source, header)
        regions = read_region_table(self._source)
        metadata = read_metadata(self._source, regions.metadata)
        self._facts = DiskFacts(
            disk_bytes=metadata.disk_bytes,
            disk_id=metadata.disk_id,
            content_id=header.data_write_id,
            logical_sector_bytes=metadata.logical_sector_bytes,
            physical_sector_bytes=metadata.physical_sector_bytes,
            block_bytes=metadata.block_bytes,
            parent=metadata.parent,
        )
        self._cache = PageCache(self._source)
        layout = bat_layout(
            disk_bytes=metadata.disk_bytes,
            block_bytes=metadata.block_bytes,
            logical_sector_bytes=metadata.logical_sector_bytes,
            is_differencing=metadata.parent is not None,
        )
        self._bat = BlockAllocationTable(
            self._source, self._cache, regions.bat, layout, metadata.disk_bytes
        )
        fixed = list(regions.all())
        if header.log_bytes:
            fixed.append(Region(header.log_offset, header.log_bytes))
        check_overlaps(self._bat, fixed, self._source.size_bytes)

    @property
    def facts(self) -> DiskFacts:
        return self._facts

    @property
    def source(self) -> ByteSource:
        """The file with its log applied."""
        return self._source

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        block_bytes = self._facts.block_bytes
        end = offset + length
        for run in self._bat.runs(offset // block_bytes, -(-end // block_bytes)):
            inside = offset - run.first * block_bytes
            part = min(end - offset, run.blocks * block_bytes - inside)
            if run.state is PayloadState.FULLY_PRESENT:
                yield Piece(offset, part, Place.FILE, run.offset + inside)
            elif run.state is PayloadState.PARTIALLY_PRESENT:
                yield from bitmap_pieces(
                    self._present_sectors(run.first, inside, part),
                    offset=offset,
                    length=part,
                    sector_bytes=self._facts.logical_sector_bytes,
                    file_offset=run.offset + inside,
                )
            elif run.state is PayloadState.NOT_PRESENT and self._facts.parent is not None:
                yield Piece(offset, part, Place.PARENT)
            else:
                yield Piece(offset, part, Place.ZEROS)
            offset += part

    def forget(self) -> None:
        self._cache.clear()

    def _present_sectors(self, block: int, inside: int, length: int) -> bytes:
        """Return a byte per sector of the range of the block: 1 if it is in this file."""
        sector_bytes = self._facts.logical_sector_bytes
        sectors_per_block = self._facts.block_bytes // sector_bytes
        base = block % self._bat.layout.chunk_ratio * sectors_per_block
        first = base + inside // sector_bytes
        last = base - (-(inside + length) // sector_bytes)
        begin, end = first // 8, -(-last // 8)
        raw = self._cache.read(
            self._bat.bitmap_offset(block) + begin, end - begin, "a sector bitmap"
        )
        bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), bitorder="little")
        return bits[first - begin * 8 : last - begin * 8].tobytes()
