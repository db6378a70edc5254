"""QueryChangedDiskAreas: what was written to a disk between a changeId and a snapshot, by pages.

Every refusal is the one a host makes; the switches that make answers wrong are here, too.
Source: design notes on vSphere, section 2 "QueryChangedDiskAreas" and "Faults and fallback".
"""

from __future__ import annotations

from dataclasses import dataclass

from lab.esx.areas import Area, clipped, merged, rounded
from lab.esx.change_tracking import ChangeId, ChangeTracking, InvalidArgumentError, block_bytes
from lab.esx.datastore import DatastoreKind
from lab.esx.disk_chain import ChainReader, open_chain
from lab.esx.errors import FileFaultError
from lab.esx.hardware import Disk
from lab.esx.virtual_machine import VirtualMachine
from lab.faults import FaultName

ALL_ALLOCATED = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedAreas:
    """What is known of [start_offset, start_offset + length)."""

    start_offset: int
    length: int
    areas: tuple[Area, ...]


def query_changed_areas(
    vm: VirtualMachine, snapshot_id: int | None, disk_key: int, start_offset: int, change_id: str
) -> ChangedAreas:
    """Return the first page from `start_offset` on.

    Raises:
        InvalidArgumentError: of the disk, the offset, the changeId, or a missing snapshot.
        NotFoundError: there is no such snapshot.
        FileFaultError: the tracking cannot answer for this changeId.
    """
    disk = _disk(vm, snapshot_id, disk_key)
    if not vm.on:
        vm.reload_tracking()  # somebody may have written to the disks since
    if not 0 <= start_offset < disk.capacity_bytes:
        raise InvalidArgumentError(f"no offset {start_offset}", invalidProperty="startOffset")
    fields: dict[str, str | int]
    fields = {"vm": vm.vm_id, "vm_name": vm.config.name, "disk": disk_key}
    take = vm.site.faults.take
    if take(FaultName.CBT_RESET, **fields):
        running = vm.config.disk(disk_key)
        if running is not None:
            vm.reset_tracking(running)
    if take(FaultName.CBT_MISSING_LIST, **fields):
        raise FileFaultError(f"Error caused by file {disk.path}", file=str(disk.path))
    if take(FaultName.CBT_STUCK_PAGE, **fields):
        return ChangedAreas(start_offset=start_offset, length=0, areas=())
    areas = _areas(vm, snapshot_id, disk, change_id)
    if take(FaultName.CBT_EMPTY_LIST, **fields):
        areas = []
    if take(FaultName.CBT_PARTIAL_LIST, **fields):
        areas = clipped(areas, 0, _middle(areas))
    page = _page(areas, start_offset, disk.capacity_bytes, vm.site.changed_areas_max)
    if take(FaultName.CBT_UNSORTED_LIST, **fields):
        page = _with_areas(page, (*reversed(page.areas),))
    if take(FaultName.CBT_OVERLAPPING_LIST, **fields):
        page = _with_areas(page, (*page.areas[:1], *page.areas))
    if take(FaultName.CBT_OUTSIDE_LIST, **fields):
        page = _with_areas(page, (*page.areas, (disk.capacity_bytes - 512, 65536)))
    return page


def _disk(vm: VirtualMachine, snapshot_id: int | None, disk_key: int) -> Disk:
    if snapshot_id is None:
        if vm.on:
            raise InvalidArgumentError("a running VM needs a snapshot", invalidProperty="snapshot")
        disk = vm.config.disk(disk_key)
    else:
        disk = vm.snapshot(snapshot_id).config.disk(disk_key)
    if disk is None:
        raise InvalidArgumentError(f"there is no disk {disk_key}", invalidProperty="deviceKey")
    return disk


def _areas(vm: VirtualMachine, snapshot_id: int | None, disk: Disk, change_id: str) -> list[Area]:
    tracking = vm.tracking.get(disk.key)
    if snapshot_id is not None and not disk.change_id:
        tracking = None
    if tracking is None:
        raise InvalidArgumentError(f"{disk.label} is not tracked", invalidProperty="deviceKey")
    if change_id == ALL_ALLOCATED:
        return _allocated(vm, disk, tracking)
    since = ChangeId.parse(change_id)
    try:
        until = ChangeId.parse(disk.change_id) if snapshot_id is not None else None
        return tracking.changed(since, until)
    except FileFaultError as error:
        text = f"Error caused by file {disk.path}: {error}"
        raise FileFaultError(text, file=str(disk.path)) from error


def _allocated(vm: VirtualMachine, disk: Disk, tracking: ChangeTracking) -> list[Area]:
    """Only VMFS knows; on NFS the whole disk counts as allocated."""
    if vm.site.datastores.get(disk.path.datastore).kind is not DatastoreKind.VMFS:
        return [(0, disk.capacity_bytes)]
    if tracking.misses_deltas:
        raise FileFaultError(f"Error caused by file {disk.path}", file=str(disk.path))
    reader = ChainReader(vm.site.datastores, open_chain(vm.site.datastores, disk.path))
    return rounded(reader.allocated(), block_bytes(disk.capacity_bytes), disk.capacity_bytes)


def _page(areas: list[Area], start: int, capacity_bytes: int, limit: int) -> ChangedAreas:
    wanted = clipped(merged(areas), start, capacity_bytes)
    page, rest = wanted[:limit], wanted[limit:]
    end = rest[0][0] if rest else capacity_bytes
    return ChangedAreas(start_offset=start, length=end - start, areas=tuple(page))


def _with_areas(page: ChangedAreas, areas: tuple[Area, ...]) -> ChangedAreas:
    return ChangedAreas(start_offset=page.start_offset, length=page.length, areas=areas)


def _middle(areas: list[Area]) -> int:
    """The offset up to which half of the changed bytes lie, in whole blocks."""
    left = sum(length for _, length in areas) // 2
    for start, length in areas:
        if left < length:
            return start + left // 65536 * 65536
        left -= length
    return 0
