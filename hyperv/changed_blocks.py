"""What has changed on a disk since a reference point: asked in regions, checked, joined.

The answer is a superset of the changes between the reference point and the frozen file. Anything
that cannot be believed ends in `FullRead` with its reason: reading too much is never wrong.

Guards: the same Virtual Disk ID, the same size, the file that was frozen then is still in the chain
(a checkpoint that was applied since would make it another disk), an id to ask about, an answer that
lies inside what was asked.

Thread model: functions; they block. Source: design notes section 4;
Msvm_ImageManagementService.GetVirtualDiskChanges.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from hyperv.errors import ProtocolError, ScriptError
from hyperv.findings import Finding, Weight
from hyperv.host_session import HostSession
from hyperv.jobs import wait_for_job
from hyperv.patience import Patience
from hyperv.script_types import ChangedRanges, CheckpointDisk
from hyperv.windows_path import base_name

REGION_BYTES: Final = 64 << 30
_MOST_RANGES = 4 << 20  # of one disk: 64 TiB in steps of 16 MiB
_ASKED_AGAIN = 3
_PAIR_BYTES = 16

Range = tuple[int, int]  # offset, length in bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A disk as an earlier run left it."""

    rct_id: str
    virtual_disk_id: str
    size_bytes: int
    frozen_name: str  # of the file that was frozen then, without its folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    ranges: tuple[Range, ...]  # sorted, disjoint, inside the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class FullRead:
    finding: Finding


def changed_ranges(
    host: HostSession,
    disk: CheckpointDisk,
    base: Baseline,
    patience: Patience,
    *,
    region_bytes: int = REGION_BYTES,
) -> Changed | FullRead:
    """Ask what has changed since `base`. Raises: CancelledError, HypervError of the connection."""
    doubt = _doubt(disk, base)
    if doubt is not None:
        return FullRead(finding=doubt)
    try:
        return Changed(ranges=_ask(host, disk, base.rct_id, patience, region_bytes))
    except ScriptError as error:
        return FullRead(
            finding=Finding(
                "rct.refused",
                f"the host does not say what has changed ({error}), so the whole disk is read",
                "none: this backup leaves a new reference point to ask about",
            )
        )
    except ProtocolError as error:
        return FullRead(
            finding=Finding(
                "rct.not-believed",
                f"the host's list of changes cannot be true ({error}), so the whole disk is read",
                "run `Test-VHD` on the disk if this comes back",
            )
        )


def _doubt(disk: CheckpointDisk, base: Baseline) -> Finding | None:
    if not base.rct_id:
        return Finding(
            "rct.no-reference-point",
            "the reference point of the parent is not there any more, so the whole disk is read",
            "none: this backup leaves a new one",
        )
    if disk.virtual_disk_id != base.virtual_disk_id:
        return Finding(
            "rct.other-disk",
            "another virtual disk hangs at this place than at the parent, so all of it is read",
            "none: the next backup reads changed blocks again",
            Weight.NOTE,
        )
    if disk.frozen.size_bytes != base.size_bytes:
        return Finding(
            "rct.resized",
            "the disk has another size than at the parent, so all of it is read",
            "none: the next backup reads changed blocks again",
            Weight.NOTE,
        )
    names = [base_name(file.path) for file in disk.chain]
    if base.frozen_name not in names:
        return Finding(
            "rct.other-chain",
            "the file that the parent was read from is not part of the disk any more (a checkpoint "
            "was applied or removed, or the disk was replaced), so the whole disk is read",
            "none: the next backup reads changed blocks again",
            Weight.NOTE,
        )
    return None


def _ask(
    host: HostSession, disk: CheckpointDisk, rct_id: str, patience: Patience, region_bytes: int
) -> tuple[Range, ...]:
    size_bytes = disk.frozen.size_bytes
    sector = disk.frozen.logical_sector_bytes or 512
    found: list[Range] = []
    offset = 0
    while offset < size_bytes:
        length = min(region_bytes, size_bytes - offset)
        if length == size_bytes:
            length -= sector  # it must be less than the disk; the last sector is asked for next
        answer = _ask_region(host, disk.frozen.path, rct_id, offset, length, patience)
        processed = answer.processed_bytes
        if not 0 < processed <= length:
            raise ProtocolError(f"{processed} bytes of {length} at {offset} were looked at")
        found += _ranges(answer, size_bytes)
        if len(found) > _MOST_RANGES:
            raise ProtocolError(f"more than {_MOST_RANGES} ranges")
        offset += processed
    return _joined(found)


def _ask_region(
    host: HostSession, path: str, rct_id: str, offset: int, length: int, patience: Patience
) -> ChangedRanges:
    parameters = {"path": path, "limit_id": rct_id, "offset": offset, "length": length}
    for _ in range(_ASKED_AGAIN):
        answer = host.call("changed_ranges", parameters, ChangedRanges, patience=patience)
        if not answer.job_id:
            return answer
        wait_for_job(host, answer.job_id, "looking for changed blocks", patience)
    raise ScriptError(f"{host.address}: changed blocks were never ready")


def _ranges(answer: ChangedRanges, size_bytes: int) -> list[Range]:
    """Clipped to the disk. Raises ProtocolError."""
    try:
        raw = base64.b64decode(answer.ranges, validate=True)
    except binascii.Error as error:
        raise ProtocolError(f"ranges: {error}") from None
    if len(raw) != answer.count * _PAIR_BYTES:
        raise ProtocolError(f"{answer.count} ranges in {len(raw)} bytes")
    pairs = np.frombuffer(raw, dtype="<u8").reshape(-1, 2)
    return [
        (offset, min(length, size_bytes - offset))
        for offset, length in pairs.tolist()
        if offset < size_bytes and length > 0
    ]


def _joined(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Sorted; what touches or overlaps becomes one."""
    joined: list[Range] = []
    for offset, length in sorted(ranges):
        if joined and offset <= sum(joined[-1]):
            start, before = joined[-1]
            joined[-1] = (start, max(before, offset + length - start))
        else:
            joined.append((offset, length))
    return tuple(joined)
