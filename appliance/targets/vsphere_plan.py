"""What the new VM will be and where it will go: everything decided before anything is made.

Data path: the captured document and the operator's wishes -> `vmware.vm_spec`. Reads only.
Thread model: a function; it blocks.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.sources.vsphere_reasons import reasons
from appliance.targets.contract import Keep, NewVmRequest, NoSuchPlaceError, WantedDisk
from appliance.targets.matched_disks import matched_disks
from appliance.targets.point_hardware import for_vsphere
from vmware.captured_vm import CapturedDisk, CapturedVm
from vmware.hardware_versions import newest_hardware
from vmware.marker import Marker, Purpose
from vmware.network_choice import NetworkChoiceError, choose_networks
from vmware.new_vm import find_by_instance_uuid
from vmware.placement import (
    Placement,
    PlacementError,
    WantedPlace,
    choose_place,
    reachable_networks,
)
from vmware.session import Session
from vmware.vm_spec import PlannedVm, SpecChoices, UuidPolicy, first_spec
from vmware.vm_spec_devices import MacPolicy, PlannedDisk, nics_that_can_be_made

_NAME_LIMIT = 80  # characters, as vCenter has


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    captured: CapturedVm
    choices: SpecChoices
    placement: Placement
    planned: PlannedVm
    disks: dict[int, PlannedDisk]  # by number
    marker: Marker
    reasons: tuple[Reason, ...]

    @property
    def same_vm(self) -> bool:
        return self.choices.uuid is UuidPolicy.KEEP


def plan_build(session: Session, appliance_id: str, request: NewVmRequest) -> BuildPlan:
    """Decide everything, and check that it can be.

    Raises: NoSuchPlaceError, UsageError: the request cannot be; VsphereErrors.
    """
    if not 0 < len(request.name) <= _NAME_LIMIT:
        raise UsageError(f"a VM's name has 1 to {_NAME_LIMIT} characters: {request.name[:100]!r}")
    native = for_vsphere(request.hardware, request.disks)
    captured = native.vm
    matched = matched_disks(captured, native.disks)
    wanted = WantedPlace(
        folder_path=request.place.folder,
        pool_path=request.place.pool,
        host=request.place.machine,
        datastore=request.place.datastore,
    )
    need_bytes = sum(_need_bytes(matched[disk.number], disk) for disk in request.disks)
    try:
        placement = choose_place(session, wanted, captured.placement, need_bytes)
        networks = choose_networks(
            nics_that_can_be_made(captured.nics),
            reachable_networks(session, placement.host_moref),
            dict(request.networks),
            native.left_unconnected(request.unconnected, request.networks),
        )
    except (PlacementError, NetworkChoiceError) as error:
        raise NoSuchPlaceError(str(error)) from error
    original_there = native.is_foreign or (
        captured.instance_uuid != ""
        and find_by_instance_uuid(session, captured.instance_uuid) is not None
    )
    instance_uuid = str(uuid.uuid4())
    marker = Marker(
        appliance_id=appliance_id,
        run_id=request.run_id,
        purpose=Purpose.RESTORE,
        subject=instance_uuid,
    )
    choices = SpecChoices(
        name=request.name,
        home=f"[{placement.datastore.name}]",
        mark=marker.text,
        instance_uuid=instance_uuid,
        hardware_most=newest_hardware(session, placement.host_moref),
        disk_keys=frozenset(disk.key for disk in matched.values()),
        networks=networks,
        mac=MacPolicy.KEEP if _keeps(request.mac, original_there) else MacPolicy.NEW,
        uuid=UuidPolicy.KEEP if _keeps(request.identity, original_there) else UuidPolicy.NEW,
    )
    planned = first_spec(captured, choices)
    by_key = {disk.captured.key: disk for disk in planned.disks}
    return BuildPlan(
        captured=captured,
        choices=choices,
        placement=placement,
        planned=planned,
        disks={number: by_key[disk.key] for number, disk in matched.items()},
        marker=marker,
        reasons=(*native.reasons, *reasons(placement.findings), *reasons(planned.findings)),
    )


def _keeps(wanted: Keep, original_there: bool) -> bool:
    return wanted is Keep.KEEP or (wanted is Keep.AUTO and not original_there)


def _need_bytes(disk: CapturedDisk, wanted: WantedDisk) -> int:
    return wanted.data_bytes if disk.thin else wanted.size_bytes
