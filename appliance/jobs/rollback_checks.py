"""What must hold before a VM's own disks are written: each refusal has an error of its own.

Reads only. Thread model: functions; they block on the hypervisor.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.base.errors import ApplianceError
from appliance.base.ids import RunId
from appliance.repository.manifest import Manifest
from appliance.sources.contract import SourceVm, VmSource
from appliance.sources.frozen import FrozenVm, KnownState
from appliance.sources.vm_identity import identity_of
from appliance.targets.contract import (
    ExistingDisk,
    ExistingVm,
    NoWriterError,
    Power,
    TargetError,
    VmTarget,
)


class OriginalGoneError(ApplianceError):
    """The VM that this recovery point is of is not on this host any more. Restore the point as a
    new VM, without --in-place."""

    code = "restore.original-gone"


class VmRunsError(ApplianceError):
    """The VM runs, and its disks cannot be written while it does. Give --power-off to have its
    guest shut down first."""

    code = "restore.vm-runs"


class VmHasSnapshotsError(ApplianceError):
    """The VM has snapshots or checkpoints (or disk files that are not merged), which rolling back
    would break. Remove them in the hypervisor's client, or restore the point as a new VM."""

    code = "restore.vm-has-snapshots"


class DisksDifferError(ApplianceError):
    """The VM's disks are not those of the recovery point any more (removed, replaced, of another
    size, or no snapshot covers them). Restore the point as a new VM."""

    code = "restore.disks-differ"


class HalfRolledBackError(TargetError):
    """Rolling back broke off while the disks were written: they are neither old nor new. The VM was
    left off. Run the same command again; until that has succeeded, do not power the VM on."""

    code = "restore.half-rolled-back"


class NotVerifiedError(TargetError):
    """The disks were written, but still differ from the recovery point. Look for failing storage or
    for something that writes to them, and restore the point as a new VM."""

    code = "restore.not-verified"


def find_original(source: VmSource, manifest: Manifest) -> SourceVm:
    """The VM of the point, by identity and not by name. Raises OriginalGoneError, SourceError."""
    identity = identity_of(manifest.hardware)
    if identity is None:
        raise OriginalGoneError(f"{manifest.point_id} does not say of which VM it is")
    for vm in source.list_vms():
        if vm.identity.key == identity.key:
            return vm
    raise OriginalGoneError(
        f"{source.name}: no VM with the instance uuid {identity.instance_uuid or identity.moref}"
    )


def check_ready(vm: ExistingVm, *, may_power_off: bool) -> None:
    """Raises VmRunsError, VmHasSnapshotsError."""
    if vm.has_snapshots or vm.needs_consolidation:
        what = "has snapshots" if vm.has_snapshots else "needs consolidation"
        raise VmHasSnapshotsError(f"{vm.name} {what}")
    if vm.power is not Power.OFF and not (vm.power is Power.ON and may_power_off):
        what = "runs" if vm.power is Power.ON else "is suspended"
        raise VmRunsError(f"{vm.name} {what}")


def check_disks(vm: ExistingVm, manifest: Manifest, state: KnownState) -> dict[int, ExistingDisk]:
    """The VM's disk for each disk of the point. Raises DisksDifferError."""
    found: dict[int, ExistingDisk] = {}
    for entry in manifest.disks:
        known = state.disk(entry.number)
        identity = known.identity if known else None
        if identity is None:
            raise DisksDifferError(f"{entry.label}: the point does not say which disk it is")
        same = [
            disk
            for disk in vm.disks
            if disk.identity.uuid == identity.uuid and disk.identity.place == identity.place
        ]
        if len(same) != 1:
            raise DisksDifferError(
                f"{entry.label}: {vm.name} has no disk {identity.uuid or 'without uuid'} at "
                f"{identity.place}"
            )
        if same[0].size_bytes != entry.size_bytes:
            raise DisksDifferError(
                f"{entry.label} has {same[0].size_bytes} bytes, and had {entry.size_bytes}"
            )
        found[entry.number] = same[0]
    return found


def check_frozen(frozen: FrozenVm, manifest: Manifest) -> None:
    """Raises DisksDifferError: a disk of the point is not among those that were frozen."""
    numbers = {disk.number for disk in frozen.disks}
    missing = [entry.label for entry in manifest.disks if entry.number not in numbers]
    if missing:
        why = "; ".join(skipped.reason.text for skipped in frozen.skipped)
        raise DisksDifferError(f"{', '.join(missing)}: no snapshot covers it now ({why})")


def refuse_unless_writable(
    target: VmTarget, vm: ExistingVm, disks: Iterable[ExistingDisk], run_id: RunId
) -> None:
    """Raises NoWriterError."""
    for disk in disks:
        refusal = target.refusal(vm.key, disk, run_id)
        if refusal is not None:
            raise NoWriterError(
                f"{disk.label}: [{refusal.code}] {refusal.text}; next step: {refusal.next_step}"
            )
