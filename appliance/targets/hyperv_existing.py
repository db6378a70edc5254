"""Writing to a Hyper-V VM that is there: what it is now, its disks, its tracking.

Disks are written into their VHDX files over SMB, block by block, while the VM is off and nobody
else has them open. What cannot be written so is refused before anything is touched.

Change tracking: the host does not know of writes from outside, so our reference points of the VM
are removed; without one the next backup reads everything.

Thread model: functions; they block. Errors are those of `hyperv/`, which the caller translates.
Source: design notes sections 3 and 8; [MS-VHDX].
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.base.errors import ApplianceError
from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.sources.frozen import DiskIdentity
from appliance.sources.hyperv_disks import journaled_points
from appliance.sources.hyperv_host import HypervHost
from appliance.sources.hyperv_listing import disk_label, relayed
from appliance.sources.intents import Intents
from appliance.targets.contract import (
    ExistingDisk,
    ExistingVm,
    NoWriterError,
    Power,
    TrackingNotResetError,
)
from appliance.targets.hyperv_sink import HypervSink, disk_in_place
from hyperv import inventory
from hyperv.checkpoints import list_checkpoints, wait_until_idle
from hyperv.errors import GoneError, HypervError
from hyperv.host_session import HostSession
from hyperv.inventory import disk_obstacle, read_vm
from hyperv.marker import Marker, Purpose
from hyperv.new_vm import set_power
from hyperv.patience import Patience
from hyperv.reference_points import remove_reference_point
from hyperv.script_types import Vm, VmDisk
from hyperv.shares import share_for_writing, unshare
from hyperv.windows_path import drive_of

log = EventLog(__name__)

_POWER = {"on": Power.ON, "off": Power.OFF}


def look(session: HostSession, key: str) -> ExistingVm:
    vm = read_vm(session, key)
    checkpoints = list_checkpoints(session, key, Patience())
    return ExistingVm(
        key=vm.id,
        name=vm.name,
        power=_POWER.get(inventory.power(vm), Power.OTHER),
        has_snapshots=bool(checkpoints or vm.parent_checkpoint),
        needs_consolidation=any(_is_delta(disk) for disk in vm.disks),
        disks=tuple(
            ExistingDisk(
                label=disk_label(disk),
                identity=DiskIdentity(uuid=disk.virtual_disk_id, place=disk.place),
                size_bytes=disk.size_bytes,
                file_name=disk.path,
            )
            for disk in vm.disks
        ),
    )


def power_off(session: HostSession, key: str, within_s: float, patience: Patience) -> None:
    """Raises HypervError."""
    try:
        set_power(session, key, "shutdown", patience, deadline_s=within_s)
    except GoneError:
        raise
    except HypervError:  # no integration services, or not in time
        patience.check()
    set_power(session, key, "off", patience.unstoppable())  # nothing, if it is off already
    wait_until_idle(session, key, patience.unstoppable())


def refusal(session: HostSession, key: str, disk: ExistingDisk) -> Reason | None:
    found = _disk_of(read_vm(session, key), disk)
    obstacle = disk_obstacle(found)
    if obstacle is not None:
        return relayed(obstacle)
    if found.error:
        return Reason(
            "restore.disk-not-readable",
            f"the host cannot read the disk file ({found.error})",
            "mend that on the host, or restore the point as a new VM",
        )
    if found.format != "vhdx":
        return Reason(
            "restore.not-vhdx",
            f"only VHDX files are written in place, and this is {found.format or 'another file'}",
            "restore the point as a new VM, which gets VHDX files",
        )
    if found.type == "differencing":
        return Reason(
            "restore.differencing-disk",
            "the disk file builds on a parent file that other VMs may use too",
            "restore the point as a new VM",
        )
    return None


def open_in_place(
    host: HypervHost, appliance_id: str, key: str, disk: ExistingDisk, run_id: RunId
) -> HypervSink:
    """Raises: NoWriterError, HypervErrors, ApplianceErrors of the SMB connection."""
    session = host.session
    vm = read_vm(session, key)
    if vm.state != inventory.OFF or list_checkpoints(session, key, Patience()):
        raise NoWriterError(
            f"{vm.name} is not off, or has checkpoints: its disks cannot be written now"
        )
    against = refusal(session, key, disk)
    if against is not None:
        raise NoWriterError(f"{disk.label}: {against.text}; next step: {against.next_step}")
    path = _disk_of(vm, disk).path
    shares: Mapping[str, str] | None = None
    marker = Marker(appliance_id=appliance_id, run_id=run_id, purpose=Purpose.RESTORE)
    if not host.facts.admin_shares:
        shares = share_for_writing(session, [drive_of(path)], marker, Patience())

    def free() -> None:
        if shares is not None:
            try:
                unshare(session, marker.text, Patience())
            except HypervError as error:  # the next clean-up removes it by its mark
                log.warning("a share was not removed", marker=marker.text, error=error)

    try:
        # writing that has begun is not cancelled half way: the caller asks between areas
        return HypervSink(
            host.name, host.smb, path, shares, disk_in_place, CancelToken(), on_free=free
        )
    except ApplianceError:
        free()
        raise


def reset_tracking(session: HostSession, key: str, intents: Intents) -> tuple[Reason, ...]:
    """Remove the reference points of ours that a recovery point builds on.

    Raises: TrackingNotResetError.
    """
    failures = []
    for intent in journaled_points(intents, key):
        try:
            if intent.made is not None:
                remove_reference_point(session, intent.made, Patience())
        except HypervError as error:
            failures.append(str(error))
            continue
        intents.close(intent.id)
    if failures:
        raise TrackingNotResetError(f"a reference point could not be removed: {failures[0]}")
    return ()


def _is_delta(disk: VmDisk) -> bool:
    """A file that a checkpoint left, rather than one that somebody made to be a child."""
    return disk.path.lower().endswith((".avhdx", ".avhd"))


def _disk_of(vm: Vm, wanted: ExistingDisk) -> VmDisk:
    """The disk as it is now, which must be exactly the one that was looked at."""
    for disk in vm.disks:
        if (disk.place, disk.virtual_disk_id, disk.path, disk.size_bytes) == (
            wanted.identity.place,
            wanted.identity.uuid,
            wanted.file_name,
            wanted.size_bytes,
        ):
            return disk
    raise GoneError(f"{vm.name} has no disk {wanted.file_name} any more")
