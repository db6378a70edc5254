"""Which number a disk has in a recovery point: the one that it had in the point before.

A disk is known by its uuid and place, else by its uuid, else by its place on the controllers; a new
one takes the lowest number that the earlier state does not use. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.sources.frozen import DiskIdentity, KnownState

_MOST_DISKS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedDisk:
    uuid: str  # of the disk itself; empty when the hypervisor has none
    place: str  # controller and unit: `scsi0:1`


def disk_numbers(disks: Sequence[PlacedDisk], known: KnownState | None) -> list[int]:
    """Return the number of each disk; new ones are numbered in the order of `disks`."""
    earlier = known.disks if known else ()
    result: dict[int, int] = {}
    for same in (_same_disk, _same_uuid, _same_place):
        for position, disk in enumerate(disks):
            for old in earlier:
                fits = position not in result and old.number not in result.values()
                if fits and old.identity is not None and same(disk, old.identity):
                    result[position] = old.number
    taken = {old.number for old in earlier} | set(result.values())
    free = (number for number in range(_MOST_DISKS) if number not in taken)
    return [
        result[position] if position in result else next(free) for position in range(len(disks))
    ]


def _same_disk(disk: PlacedDisk, old: DiskIdentity) -> bool:
    return _same_uuid(disk, old) and _same_place(disk, old)


def _same_uuid(disk: PlacedDisk, old: DiskIdentity) -> bool:
    return disk.uuid != "" and disk.uuid == old.uuid


def _same_place(disk: PlacedDisk, old: DiskIdentity) -> bool:
    return disk.place == old.place
