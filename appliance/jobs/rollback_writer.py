"""Write areas of a recovery point to a disk of the VM that is rolled back.

    point's image -> pieces, loaded by a few threads ahead of the writing -> disk, in order

What the point holds as zeros is written as zeros, without being read.

Thread model: a call belongs to one thread; only the loading is shared out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from appliance.base.bounded_map import bounded_map
from appliance.base.run_context import RunContext
from appliance.base.units import MIB
from appliance.blocks.extents import Extent, ExtentKind, total_bytes
from appliance.repository.image_reader import ImageReader
from appliance.targets.contract import DiskSink

_PIECE_BYTES = 4 * MIB
_READERS = 3


def write_extents(
    image: ImageReader, disk: DiskSink, extents: Sequence[Extent], context: RunContext
) -> None:
    """Make `extents` of `disk` those of `image`. Both stay open.

    Raises: CorruptError (of the point), TargetError, CancelledError; some are written then.
    """
    context.progress.expect(total_bytes(extents))

    def load(piece: Extent) -> tuple[Extent, bytes | None]:
        mapped = image.map_extents(piece.offset, piece.length)
        if all(part.kind is ExtentKind.ZERO for part in mapped) and mapped[-1].end == piece.end:
            return piece, None
        return piece, image.read_at(piece.offset, piece.length)

    loaded = bounded_map(load, _pieces(extents), workers=_READERS, ahead=2, name="load")
    with closing(loaded):
        for piece, data in loaded:
            context.cancel.check()
            if data is None:
                disk.zero_at(piece.offset, piece.length)
            else:
                disk.write_at(piece.offset, data)
            context.progress.advance(piece.length)


def _pieces(extents: Sequence[Extent]) -> Iterator[Extent]:
    for extent in extents:
        for offset in range(extent.offset, extent.end, _PIECE_BYTES):
            yield Extent(offset, min(_PIECE_BYTES, extent.end - offset))
