"""Which recovery points the VMs of an inventory have: the repository read by identity."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.repository.manifest import Manifest
from appliance.sources.vm_identity import KnownPoint, PointNames, identity_of


def known_point(manifest: Manifest) -> KnownPoint:
    return KnownPoint(
        point_id=manifest.id,
        name=manifest.vm,
        created_at=manifest.created_at,
        identity=identity_of(manifest.hardware),
    )


def point_names(manifests: Iterable[Manifest]) -> PointNames:
    """The names and newest points of all VMs in a repository (`sources/vm_identity.py`)."""
    return PointNames(map(known_point, manifests))
