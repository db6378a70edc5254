"""Which recovery points the VMs of an inventory have: the repository read by identity."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.base.ids import RecoveryPointId
from appliance.catalog.points import VmPoints
from appliance.repository.manifest import Manifest
from appliance.sources.vm_identity import KnownPoint, PointNames, VmKey, identity_of


def known_point(manifest: Manifest) -> KnownPoint:
    identity = identity_of(manifest.hardware)
    return KnownPoint(
        point_id=manifest.id,
        name=manifest.vm,
        created_at=manifest.created_at,
        vm_key=identity.key if identity else None,
    )


def newest_by_vm(kept: Iterable[VmPoints]) -> dict[VmKey, VmPoints]:
    """The name that each VM's newest point is kept under; a VM may have had several."""
    newest: dict[VmKey, VmPoints] = {}
    for each in kept:
        if each.vm_key is not None:
            key = VmKey(each.vm_key)
            if key not in newest or newest[key].newest_at < each.newest_at:
                newest[key] = each
    return newest


def kept_names(vms: Iterable[VmPoints]) -> PointNames:
    """As `point_names`, by the catalog's list (`point_book.py`) in place of every manifest."""
    return PointNames(
        KnownPoint(
            point_id=RecoveryPointId(vm.newest_id),
            name=vm.vm,
            created_at=vm.newest_at,
            vm_key=VmKey(vm.vm_key) if vm.vm_key is not None else None,
        )
        for vm in vms
    )


def point_names(manifests: Iterable[Manifest]) -> PointNames:
    """The names and newest points of all VMs in a repository (`sources/vm_identity.py`)."""
    return PointNames(map(known_point, manifests))
