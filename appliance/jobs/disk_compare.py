"""Where a disk differs from a recovery point: by hash, without reading the point's data.

Data path: the disk is read in segments of 8 MiB, by a few threads that keep roughly in order; each
chunk of the point's leaf is hashed over the bytes of the disk and compared with its digest; what no
chunk covers must be zeros. An answer of nothing means that the disk is the point's, byte for byte.

Thread model: a call belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from appliance.base.bounded_map import bounded_map
from appliance.base.run_context import RunContext
from appliance.base.units import KIB
from appliance.blocks.device import BlockReader
from appliance.blocks.extents import Extent, normalise
from appliance.repository.digest import Digester
from appliance.repository.format import BLOCK_BYTES, EMPTY_DIGEST, SEGMENT_BYTES
from appliance.repository.image_tree import EMPTY_LEAF, Leaf, TreeReader, segment_count

_READERS = 3
_UNIT_BYTES = 64 * KIB
_ZEROS = memoryview(bytes(SEGMENT_BYTES))


def differing_extents(
    disk: BlockReader, point: TreeReader, digester: Digester, context: RunContext
) -> list[Extent]:
    """The extents, to the chunk, in which `disk` differs from the disk of `point`.

    Raises: CorruptError (of the point), CancelledError, and what the reader raises.
    """
    size_bytes = disk.size_bytes
    context.progress.expect(size_bytes)

    def one(work: tuple[int, Leaf]) -> list[Extent]:
        context.cancel.check()
        segment, leaf = work
        base = segment * SEGMENT_BYTES
        length = min(SEGMENT_BYTES, size_bytes - base)
        padded = bytearray(-(-length // BLOCK_BYTES) * BLOCK_BYTES)
        disk.read_into(base, memoryview(padded)[:length])
        found = list(_differing(padded, leaf, digester))
        context.progress.advance(length)
        return [
            Extent(base + start, min(end, length) - start) for start, end in found if start < length
        ]

    compared = bounded_map(
        one, _leaves(point, size_bytes), workers=_READERS, ahead=1, name="compare"
    )
    with closing(compared):
        return normalise(extent for extents in compared for extent in extents)


def _leaves(point: TreeReader, size_bytes: int) -> Iterator[tuple[int, Leaf]]:
    """Every segment with its leaf, those that are all zeros too."""
    count = segment_count(size_bytes)
    position = 0
    for segment, digest in point.leaves(0, count):
        yield from ((empty, EMPTY_LEAF) for empty in range(position, segment))
        yield segment, EMPTY_LEAF if digest == EMPTY_DIGEST else point.load_leaf(digest)
        position = segment + 1
    yield from ((empty, EMPTY_LEAF) for empty in range(position, count))


def _differing(raw: bytearray, leaf: Leaf, digester: Digester) -> Iterator[tuple[int, int]]:
    view = memoryview(raw)
    position = 0
    for entry in leaf.entries:
        start, end = entry.start * BLOCK_BYTES, entry.end * BLOCK_BYTES
        yield from _not_zero(view, position, start)
        if digester.chunk(view[start:end]) != entry.digest:
            yield start, end
        position = end
    yield from _not_zero(view, position, len(raw))


def _not_zero(view: memoryview, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range that should be zeros and are not."""
    if view[start:end] == _ZEROS[: end - start]:
        return
    for at in range(start, end, _UNIT_BYTES):
        stop = min(at + _UNIT_BYTES, end)
        if view[at:stop] != _ZEROS[: stop - at]:
            yield at, stop
