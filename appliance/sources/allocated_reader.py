"""A disk of which only some areas were ever written: the rest is zeros and is not read.

Data path: the first full read of a vSphere disk, where the hypervisor can say which areas are
allocated and can be believed (`vsphere_freeze` decides). Only holes of a disk that has no parent
point are decided by it; nothing of an earlier point is ever kept because of it.

Thread model: as the reader it wraps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from appliance.base.reasons import Reason
from appliance.blocks.device import check_range
from appliance.blocks.extents import Extent, ExtentKind, MappedExtent
from appliance.blocks.layers import ReaderLayer
from appliance.sources.frozen import TransferReport
from appliance.sources.reopening_reader import ReopeningReader

_MAPPED_EXTENTS = 1024  # per answer

ALLOCATED_ONLY = Reason(
    "read.allocated-only",
    "areas of the disk that were never written were not read: they are zeros",
    "none: this is expected",
    warning=False,
)


class AllocatedReader(ReaderLayer):
    """Reader and transfer; `areas` are sorted, disjoint and inside the disk."""

    def __init__(self, base: ReopeningReader, areas: Sequence[Extent]) -> None:
        super().__init__(base)
        self._transfer = base
        self._areas = areas
        self._starts = [area.offset for area in areas]

    def begin(self, planned: Sequence[Extent] | None) -> None:
        self._transfer.begin(self._areas if planned is None else planned)

    def report(self) -> TransferReport:
        report = self._transfer.report()
        return replace(report, reasons=(*report.reasons, ALLOCATED_ONLY))

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self.size_bytes)
        end = offset + length
        mapped: list[MappedExtent] = []
        number = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end and len(mapped) < _MAPPED_EXTENTS:
            while number < len(self._areas) and self._areas[number].end <= offset:
                number += 1
            if number == len(self._areas) or self._areas[number].offset >= end:
                mapped.append(MappedExtent(offset, end - offset, ExtentKind.ZERO))
                break
            area = self._areas[number]
            if area.offset > offset:
                mapped.append(MappedExtent(offset, area.offset - offset, ExtentKind.ZERO))
                offset = area.offset
            stop = min(area.end, end)
            mapped.append(MappedExtent(offset, stop - offset, ExtentKind.DATA))
            offset = stop
        return mapped
