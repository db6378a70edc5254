"""What a recovery point remembers of its VM, so that a later run can ask for changes since.

`Manifest.hardware` is the document that the source captured, plus our own key `backup`:

    {"version": 1, "instance": …, "disks": [{"number", "uuid", "place", "change_id"}],
     "skipped": [{"label", "code", "text"}]}

`change_id` here is what the hypervisor said; `DiskEntry.change_id` is what is believed. One that
stands here and not there failed an audit, and its tracking is due to be reset. A document that is
not of this shape tells nothing, and everything is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.repository.manifest import Manifest
from appliance.sources.frozen import DiskIdentity, FrozenVm, KnownDisk, KnownState, SkippedDisk

_KEY = "backup"
_VERSION = 1


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Disk(_Strict):
    number: int = Field(ge=0, lt=256)
    uuid: str = Field(max_length=256)
    place: str = Field(max_length=256)
    change_id: str | None = Field(default=None, max_length=4096)


class _Skipped(_Strict):
    label: str
    code: str
    text: str


class _Backup(_Strict):
    version: int = Field(default=_VERSION, ge=_VERSION, le=_VERSION)
    instance: str = Field(max_length=256)
    disks: tuple[_Disk, ...] = Field(max_length=256)
    skipped: tuple[_Skipped, ...] = ()


def hardware_document(vm: FrozenVm, skipped: Sequence[SkippedDisk]) -> dict[str, Any]:
    """What goes into the manifest: as captured, with what the next run needs."""
    if not vm.instance:
        return vm.hardware
    backup = _Backup(
        instance=vm.instance,
        disks=tuple(
            _Disk(
                number=disk.number,
                uuid=disk.identity.uuid,
                place=disk.identity.place,
                change_id=disk.identity.change_id,
            )
            for disk in vm.disks
            if disk.identity is not None
        ),
        skipped=tuple(
            _Skipped(label=disk.label, code=disk.reason.code, text=disk.reason.text)
            for disk in skipped
        ),
    )
    return {**vm.hardware, _KEY: backup.model_dump(mode="json")}


def known_state(manifest: Manifest) -> KnownState | None:
    """The point as something that changes can be asked against; None: it does not say enough."""
    try:
        backup = _Backup.model_validate(manifest.hardware.get(_KEY))
    except ValidationError:
        return None
    identities = {
        disk.number: DiskIdentity(uuid=disk.uuid, place=disk.place, change_id=disk.change_id)
        for disk in backup.disks
    }
    return KnownState(
        run_id=manifest.run_id,
        instance=backup.instance,
        disks=tuple(
            KnownDisk(
                number=disk.number,
                label=disk.label,
                size_bytes=disk.size_bytes,
                change_id=disk.change_id,
                identity=identities.get(disk.number),
            )
            for disk in manifest.disks
        ),
    )
