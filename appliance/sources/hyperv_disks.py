"""The disks of a frozen Hyper-V VM: their numbers, change lists and readers.

A disk keeps its number from point to point: it is known by its Virtual Disk ID, else by its place
on the controllers. A change id is a token of ours for the run that left a reference point; the
host's own ids stand in the reference point, which the journal names.

Thread model: one run, one thread; what it returns may be used by many.
Source: design notes sections 3 and 4; `hyperv.changed_blocks`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.base.ids import RunId
from appliance.base.reasons import Reason
from appliance.blocks.extents import Extent
from appliance.sources.changes import OTHER_VM, Changes, is_mistrusted
from appliance.sources.disk_numbers import PlacedDisk, disk_numbers
from appliance.sources.frozen import DiskIdentity, KnownState
from appliance.sources.hyperv_reasons import reason
from appliance.sources.intents import Intents, Made, OpenIntent
from hyperv.changed_blocks import Baseline, FullRead, changed_ranges
from hyperv.host_session import HostSession
from hyperv.patience import Patience
from hyperv.reference_points import list_reference_points, rct_id_of
from hyperv.script_types import CheckpointDisk, ReferencePoint
from hyperv.windows_path import base_name

MISTRUSTED = Reason(
    "rct.mistrusted",
    "the change list of this disk failed an audit, so all of it is read",
    "none: the next backup asks a new reference point",
)


def change_id_of(run_id: RunId) -> str:
    """What stands for the reference point that a run leaves."""
    return f"rct:{run_id}"


def identity_of_disk(disk: CheckpointDisk, change_id: str | None) -> DiskIdentity:
    return DiskIdentity(uuid=disk.virtual_disk_id, place=disk.place, change_id=change_id)


def numbers(disks: Sequence[CheckpointDisk], known: KnownState | None) -> list[int]:
    return disk_numbers(
        [PlacedDisk(uuid=disk.virtual_disk_id, place=disk.place) for disk in disks], known
    )


def frozen_names(disks: Sequence[CheckpointDisk]) -> str:
    """What the journal keeps with a reference point: the frozen file's name by place."""
    return json.dumps({disk.place: base_name(disk.frozen.path) for disk in disks})


def journaled_points(intents: Intents, vm_key: str) -> list[OpenIntent]:
    """The reference points of ours on a VM, the newest first."""
    return [
        intent
        for intent in intents.abandoned()
        if intent.kind == Made.REFERENCE_POINT and intent.target == vm_key
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    point: ReferencePoint
    names: dict[str, str]  # of the frozen files then, by place


class ChangesAsked:
    """Asks what has changed on the disks of one VM; each reference point is looked up once."""

    def __init__(
        self,
        session: HostSession,
        vm_key: str,
        instance: str,
        intents: Intents,
        patience: Patience,
    ) -> None:
        self._session = session
        self._vm_key = vm_key
        self._instance = instance
        self._patience = patience
        self._journal = {
            change_id_of(intent.run_id): intent for intent in journaled_points(intents, vm_key)
        }
        self._points: dict[str, ReferencePoint] | None = None

    def since(self, disk: CheckpointDisk, number: int, known: KnownState | None) -> Changes:
        """Raises: HypervError: the host does not answer."""
        old = known.disk(number) if known else None
        if known is None or old is None:
            return Changes(extents=None)
        if known.instance != self._instance or old.identity is None:
            return Changes(extents=None, reasons=(OTHER_VM,))
        if is_mistrusted(old):
            return Changes(extents=None, reasons=(MISTRUSTED,))
        base = self._base(old.change_id)
        found = changed_ranges(
            self._session,
            disk,
            Baseline(
                rct_id=rct_id_of(base.point, disk) if base else "",
                virtual_disk_id=old.identity.uuid,
                size_bytes=old.size_bytes,
                frozen_name=base.names.get(old.identity.place, "") if base else "",
            ),
            self._patience,
        )
        if isinstance(found, FullRead):
            return Changes(extents=None, reasons=(reason(found.finding),))
        return Changes(extents=tuple(Extent(offset, length) for offset, length in found.ranges))

    def _base(self, change_id: str | None) -> _Base | None:
        intent = self._journal.get(change_id or "")
        if intent is None or intent.made is None:
            return None
        point = self._all_points().get(intent.made)
        return _Base(point=point, names=_names(intent.detail)) if point else None

    def _all_points(self) -> dict[str, ReferencePoint]:
        if self._points is None:
            found = list_reference_points(self._session, self._vm_key, self._patience)
            self._points = {point.id: point for point in found}
        return self._points


def _names(detail: str) -> dict[str, str]:
    try:
        found = json.loads(detail)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(place): str(name) for place, name in found.items()}
