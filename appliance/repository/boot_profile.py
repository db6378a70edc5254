"""Boot profiles: which parts of its disks a VM reads while it boots, kept beside its points.

A verified boot records them; the next start of that point, or of a later one of the same VM,
fetches them ahead. A profile is advice: a missing or damaged one makes a boot slower, nothing
else, so reading one never raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.base.errors import ApplianceError
from appliance.blocks.extents import Extent
from appliance.repository.blob_store.contract import BlobExistsError
from appliance.repository.format import BOOT_PROFILES, DOCUMENT_LIMIT_BYTES

if TYPE_CHECKING:
    from appliance.repository.manifest import Manifest
    from appliance.repository.repository import Repository

_EXTENTS_LIMIT = 100_000
_EARLIER_POINTS = 8  # how far back a profile is looked for


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=1, ge=1, le=1)
    disks: dict[int, list[tuple[int, int]]]  # disk number -> (offset, length), first read first


BootProfile = dict[int, list[Extent]]
"""Disk number -> extents in the order in which they were first read."""


def profile_name(point_id: str) -> str:
    return f"{BOOT_PROFILES}/{point_id}.profile"


def save_profile(repository: Repository, manifest: Manifest, profile: BootProfile) -> None:
    """Keep the profile of a boot; the first one of a point stays. Raises StorageError."""
    disks = {
        number: [(extent.offset, extent.length) for extent in extents[:_EXTENTS_LIMIT]]
        for number, extents in profile.items()
    }
    name = profile_name(manifest.point_id)
    text = _Document(disks=disks).model_dump_json().encode()
    try:
        repository.store.put(name, repository.documents.encode(name, text))
    except BlobExistsError:
        return


def load_profile(repository: Repository, manifest: Manifest) -> BootProfile:
    """Return the profile of this point, else of the nearest earlier one of its VM, else nothing."""
    earlier = [
        point
        for point in repository.points.list(manifest.vm)
        if point.created_at <= manifest.created_at
    ]
    for point in reversed(earlier[-_EARLIER_POINTS:]):
        profile = _read(repository, point.point_id)
        if profile:
            return profile
    return {}


def _read(repository: Repository, point_id: str) -> BootProfile:
    name = profile_name(point_id)
    try:
        blob = repository.store.get(name, limit_bytes=DOCUMENT_LIMIT_BYTES)
        document = _Document.model_validate_json(repository.documents.decode(name, blob))
        return {
            number: [Extent(offset, length) for offset, length in extents]
            for number, extents in document.disks.items()
        }
    except (ApplianceError, ValidationError, ValueError):
        return {}
