"""Reading through an overlay: each run from the base, from the data file, or as zeros.

    range -> overlay_map.runs -> base.read_at | zeros | data file

Thread model: any thread. Nothing is locked: see `overlay_map` for what a read beside a write gets.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.base.units import MIB
from appliance.blocks.device import BlockReader, check_range
from appliance.blocks.extents import ExtentKind, MappedExtent
from appliance.blocks.overlay_data import DataFile
from appliance.blocks.overlay_map import BASE, MIXED, ZERO, OverlayMap

_ZEROS = bytes(MIB)
_MAX_EXTENTS = 1 << 16
_MAX_RUNS_AT_ONCE = 8  # of a read on the event loop
_MAX_COPY_AT_ONCE_BYTES = MIB  # about 0.1 ms of an event loop


class OverlayReader:
    """The reading methods of a BlockReader."""

    def __init__(
        self, size_bytes: int, base: BlockReader, overlay_map: OverlayMap, data: DataFile
    ) -> None:
        self._size_bytes = size_bytes
        self._base = base
        self._map = overlay_map
        self._data = data

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self._size_bytes)
        if not length:
            return b""
        kind = self._map.kind_of(offset, length)
        if kind != MIXED:
            return self._read_run(kind, offset, length)
        return b"".join([self._read_run(*run) for run in self._map.runs(offset, length)])

    def _read_run(self, kind: int, offset: int, length: int) -> bytes:
        if kind == BASE:
            return self._base.read_at(offset, length)
        if kind == ZERO:
            return bytes(length)
        return self._data.read(length, self._map.data_offset(offset))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        length = len(buffer)
        check_range(offset, length, self._size_bytes)
        for kind, run_offset, run_length in self._map.runs(offset, length):
            start = run_offset - offset
            part = buffer[start : start + run_length]
            if kind == BASE:
                self._base.read_into(run_offset, part)
            elif kind == ZERO:
                _fill_zeros(part)
            else:
                self._data.read_into(part, self._map.data_offset(run_offset))

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        check_range(offset, length, self._size_bytes)
        if not length:
            return b""
        kind = self._map.kind_of(offset, length)
        if kind != MIXED:
            return self._try_read_run(kind, offset, length)
        parts: list[bytes | memoryview] = []
        for run in self._map.runs(offset, length):
            part = self._try_read_run(*run) if len(parts) < _MAX_RUNS_AT_ONCE else None
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def _try_read_run(self, kind: int, offset: int, length: int) -> bytes | memoryview | None:
        if kind == BASE:
            return self._base.try_read_at(offset, length)
        if kind == ZERO:
            return memoryview(_ZEROS)[:length] if length <= len(_ZEROS) else bytes(length)
        if length > _MAX_COPY_AT_ONCE_BYTES:
            return None
        return self._data.read_cached(length, self._map.data_offset(offset))

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self._size_bytes)
        result: list[MappedExtent] = []
        for extent in self._extents(offset, length):
            last = result[-1] if result else None
            if last is not None and last.kind is extent.kind:
                result[-1] = MappedExtent(last.offset, extent.end - last.offset, last.kind)
            elif len(result) == _MAX_EXTENTS:
                break
            else:
                result.append(extent)
        return result

    def _extents(self, offset: int, length: int) -> Iterator[MappedExtent]:
        for kind, start, run_length in self._map.runs(offset, length):
            if kind == BASE:
                known = self._base.map_extents(start, run_length)
                yield from known
                if known[-1].end < start + run_length:
                    return
            else:
                extent_kind = ExtentKind.ZERO if kind == ZERO else ExtentKind.DATA
                yield MappedExtent(start, run_length, extent_kind)


def _fill_zeros(part: memoryview) -> None:
    for start in range(0, len(part), len(_ZEROS)):
        piece = part[start : start + len(_ZEROS)]
        piece[:] = memoryview(_ZEROS)[: len(piece)]
