"""The data disk: found, formatted only when blank, grown when it was enlarged, never anything else.

It is a whole disk with one ext4 file system labelled `holdfast-data`, and holds the state folder
with the repository. A system disk that was never prepared takes over a data disk that it finds, so
an appliance is replaced by deploying a new one and attaching the old data disk. Once a disk was
chosen its UUID is recorded, and no other is ever used or formatted: disks of VMs are attached to
this machine while they are backed up, and a new VM's disk may be blank.

`plan` is pure and says what to do; `carry_out` does it. Nothing is written to a disk that is not
proven blank. Source: mke2fs(8), resize2fs(8), blkid(8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from appliance.base.units import GIB, format_size
from appliance.machine.errors import DataDiskError

LABEL = "holdfast-data"
MIN_BYTES = 4 * GIB


class Content(StrEnum):
    BLANK = "blank"
    OURS = "ours"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A whole disk that holds nothing of the running system."""

    device: str
    size_bytes: int
    content: Content
    uuid: str = ""
    """Of our file system, where `content` says so."""


class Step(StrEnum):
    FORMAT = "format"
    USE = "use"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    step: Step
    disk: Disk


def plan(disks: Sequence[Disk], recorded_uuid: str) -> Plan:
    """`recorded_uuid`: of the disk this machine has used before, "" at its first boot.

    Raises DataDiskError: none, or more than one that it could be.
    """
    ours = [disk for disk in disks if disk.content is Content.OURS]
    if recorded_uuid:
        known = [disk for disk in ours if disk.uuid == recorded_uuid]
        if len(known) == 1:
            return Plan(step=Step.USE, disk=known[0])
        if known:
            raise DataDiskError(f"{_names(known)} are copies of each other: remove one")
        raise DataDiskError(f"the data disk {recorded_uuid} is not attached")
    if len(ours) == 1:
        return Plan(step=Step.USE, disk=ours[0])
    if ours:
        raise DataDiskError(f"{_names(ours)} are all data disks: leave one attached")
    blank = [disk for disk in disks if disk.content is Content.BLANK]
    large = [disk for disk in blank if disk.size_bytes >= MIN_BYTES]
    if len(large) == 1:
        return Plan(step=Step.FORMAT, disk=large[0])
    if large:
        raise DataDiskError(f"{_names(large)} are all blank: leave the one attached that is meant")
    if blank:
        raise DataDiskError(f"{_names(blank)}: smaller than {format_size(MIN_BYTES)}")
    if disks:
        raise DataDiskError(f"{_names(disks)}: neither blank nor a data disk of Holdfast")
    raise DataDiskError("no disk beside the system disk")


def _names(disks: Sequence[Disk]) -> str:
    return ", ".join(f"{disk.device} ({format_size(disk.size_bytes)})" for disk in disks)
