"""Writing to a vSphere VM that is there: its power, its disks, its tracking, its configuration.

Disks are written through hot-add only: there is no other way to write into a disk file that exists
(datastore HTTPS replaces whole files, a lease makes new VMs).

Thread model: functions; they block. Errors are those of `vmware/`, which the caller translates.
Source: design notes section 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyVmomi import vim

from appliance.base.reasons import Reason
from appliance.sources.frozen import DiskIdentity
from appliance.sources.vsphere_reasons import reason, reasons
from appliance.targets.contract import (
    ExistingDisk,
    ExistingVm,
    NoSuchPlaceError,
    NoWriterError,
    Power,
    TrackingNotResetError,
)
from vmware.captured_vm import CapturedVm
from vmware.change_tracking import Tracking, reset_tracking
from vmware.config_rollback import nics_still_there, rollback_spec
from vmware.datastore_files import write_small_file
from vmware.datastore_path import DatastorePath
from vmware.disks import DiskInfo
from vmware.errors import ObjectGoneError, VsphereError
from vmware.findings import Weight
from vmware.inventory import Power as LeafPower
from vmware.inventory import VmInfo, read_vm
from vmware.marker import Marker, Purpose
from vmware.network_choice import NetworkChoiceError, choose_networks
from vmware.new_vm import reconfigure_vm
from vmware.placement import reachable_networks
from vmware.properties import fetch_one
from vmware.session import Session
from vmware.transports.contract import DiskRequest, DiskWriter, Refusal
from vmware.transports.hot_add import HotAdd

_POWER = {LeafPower.ON: Power.ON, LeafPower.OFF: Power.OFF}


def look(session: Session, key: str) -> ExistingVm:
    return _existing(read_vm(session, key))


def refusal(session: Session, key: str, disk: ExistingDisk, hot_add: HotAdd) -> Refusal | None:
    vm = read_vm(session, key)
    return hot_add.refusal(
        DiskRequest(session=session, vm=vm, snapshot_moref="", disk=_disk_of(vm, disk))
    )


def open_writer(session: Session, key: str, disk: ExistingDisk, hot_add: HotAdd) -> DiskWriter:
    """Raises: NoWriterError, VsphereErrors."""
    vm = read_vm(session, key)
    if vm.power is not LeafPower.OFF or vm.has_snapshots or vm.consolidation_needed:
        raise NoWriterError(
            f"{vm.name} is not off, or has snapshots or unmerged disk files: its disks cannot be "
            "written now"
        )
    found = _disk_of(vm, disk)
    against = hot_add.refusal(DiskRequest(session=session, vm=vm, snapshot_moref="", disk=found))
    if against is not None:
        raise NoWriterError(f"{found.label}: {against.text}; next step: {against.next_step}")
    return hot_add.open_writer(session, vm, found, empty=False)


def reset(session: Session, key: str, appliance_id: str, run_id: str) -> tuple[Reason, ...]:
    """The VM is off, so this takes effect at once and needs no snapshot.

    Raises: TrackingNotResetError, VsphereError.
    """
    marker = Marker(appliance_id=appliance_id, run_id=run_id, purpose=Purpose.TRACKING)
    if not read_vm(session, key).cbt_enabled:
        return ()  # the next backup has no change list in any case
    try:
        outcome = reset_tracking(session, key, marker)
    except VsphereError as error:
        raise TrackingNotResetError(f"changed block tracking: {error}") from error
    if outcome.tracking is not Tracking.STARTED and read_vm(session, key).cbt_enabled:
        said = "; ".join(found.text for found in outcome.findings)
        raise TrackingNotResetError(f"changed block tracking: {said}")
    return reasons(outcome.findings)


def roll_back_configuration(
    session: Session, key: str, hardware: Mapping[str, Any], networks: Mapping[str, str]
) -> tuple[Reason, ...]:
    """Set the configuration back, then the NVRAM.

    Raises: NoSuchPlaceError: nothing was changed. VsphereErrors: nothing was changed, or all but
        the NVRAM.
    """
    captured = CapturedVm.parse(hardware)
    vm = read_vm(session, key)
    target = session.object(vim.VirtualMachine, key)
    paths = ("config.hardware.device", "config.changeVersion", "config.extraConfig")
    read = fetch_one(session, f"look at {vm.name}", target, paths).values
    present = list(read.get("config.hardware.device") or ())
    try:
        chosen = choose_networks(
            nics_still_there(captured, present),
            reachable_networks(session, vm.host_moref),
            networks,
        )
    except NetworkChoiceError as error:
        raise NoSuchPlaceError(str(error)) from error
    planned = rollback_spec(captured, present, chosen, str(read.get("config.changeVersion") or ""))
    what = f"set the configuration of {vm.name} back"
    reconfigure_vm(session, key, planned.spec, what=what)
    if captured.nvram is not None:
        vmx = DatastorePath.parse(vm.vmx_file_name)
        options = read.get("config.extraConfig") or ()
        named = [str(option.value) for option in options if option.key == "nvram"]
        name = named[0] if named and named[0] else f"{vmx.name.removesuffix('.vmx')}.nvram"
        write_small_file(session, vm.datacenter_path, vmx.sibling(name), captured.nvram)
    return tuple(
        reason(found, warning=found.weight is not Weight.NOTE) for found in planned.findings
    )


def _existing(vm: VmInfo) -> ExistingVm:
    return ExistingVm(
        key=vm.moref,
        name=vm.name,
        power=_POWER.get(vm.power, Power.OTHER),
        has_snapshots=vm.has_snapshots,
        needs_consolidation=vm.consolidation_needed,
        disks=tuple(
            ExistingDisk(
                label=disk.label,
                identity=DiskIdentity(uuid=disk.backing_uuid, place=disk.address),
                size_bytes=disk.capacity_bytes,
                file_name=disk.file_name,
            )
            for disk in vm.disks
        ),
    )


def _disk_of(vm: VmInfo, wanted: ExistingDisk) -> DiskInfo:
    """The disk as it is now, which must be exactly the one that was looked at."""
    for disk in vm.disks:
        if (disk.address, disk.backing_uuid, disk.file_name, disk.capacity_bytes) == (
            wanted.identity.place,
            wanted.identity.uuid,
            wanted.file_name,
            wanted.size_bytes,
        ):
            return disk
    raise ObjectGoneError(f"{vm.name} has no disk {wanted.file_name} any more")
