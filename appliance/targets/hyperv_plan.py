"""What the new VM on a Hyper-V host will be and where it will go: decided before anything is made.

    the point's capture + the operator's wishes + what the host has -> `BuildPlan`

Nothing is guessed: a switch that is not there is an error that names what is.

Pure but for the questions to the host. Thread model: a function; it blocks.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.sources.hyperv_host import HypervHost
from appliance.targets.contract import Keep, NewVmRequest, NoSuchPlaceError, WantedDisk
from appliance.targets.hyperv_left_out import devices_left_out, settings_left_out
from appliance.targets.point_hardware import capture_of, for_hyperv
from hyperv.captured_vm import Adapter, CapturedVm
from hyperv.config_capture import CapturedDisk, first_to_boot, place_of
from hyperv.errors import FileError
from hyperv.inventory import list_vms
from hyperv.marker import Marker, Purpose
from hyperv.new_vm import NewAdapter, list_switches
from hyperv.patience import Patience
from hyperv.vhdx.errors import UnsupportedDiskFileError
from hyperv.vhdx.shape import VhdxShape
from hyperv.windows_path import shared_path

_NAME = re.compile(r"[^\x00-\x1f<>:\"/\\|?*]{0,99}[^\x00-\x1f<>:\"/\\|?*. ]")
_DISKS_FOLDER = "Virtual Hard Disks"
_DRIVE = 1  # BootType of an entry of the boot order
_ACCESS_VLAN = 1


class NameTakenError(UsageError):
    """The Hyper-V host has a VM of this name already. Give the new one another, with --name."""

    code = "restore.name-taken"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDisk:
    number: int
    label: str
    place: CapturedDisk
    shape: VhdxShape
    boot_first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    captured: CapturedVm
    name: str
    folder: str  # the VM's own folder is made in it
    disks: tuple[PlannedDisk, ...]
    adapters: tuple[NewAdapter, ...]
    same_vm: bool
    need_bytes: int
    marker: Marker
    reasons: tuple[Reason, ...]

    @property
    def disk_folder(self) -> str:
        return f"{self.folder}\\{self.name}\\{_DISKS_FOLDER}"

    @property
    def file_names(self) -> list[str]:
        return [f"{self.name}-{disk.number}" for disk in self.disks]


def plan_build(
    host: HypervHost, appliance_id: str, request: NewVmRequest, patience: Patience
) -> BuildPlan:
    """Decide everything, and check that it can be.

    Raises: ForeignPointError, NoSuchPlaceError, NameTakenError, UsageError; HypervErrors.
    """
    if not _NAME.fullmatch(request.name):
        raise UsageError(
            f"a VM's name on Hyper-V has 1 to 100 characters, none of them one of <>:\"/\\|?*, and "
            f"does not end with a full stop: {request.name[:120]!r}"
        )
    native = for_hyperv(request.hardware, request.disks)
    capture = native.vm
    vms = list_vms(host.session, patience)
    if any(vm.name.casefold() == request.name.casefold() for vm in vms):
        raise NameTakenError(f"{host.name} has a VM called {request.name!r}")
    original_there = native.is_foreign or host.knows_vm(capture.vm.id, vms, patience)
    reasons = [*native.reasons, *devices_left_out(capture.vm)]
    if not native.is_foreign:
        reasons += settings_left_out(capture.vm)
    same_vm = _keeps(request.identity, original_there)
    adapters = planned_adapters(
        capture.vm.adapters,
        list_switches(host.session, patience),
        dict(request.networks),
        request.unconnected,
        keep_mac=_keeps(request.mac, original_there),
    )
    return BuildPlan(
        captured=capture.vm,
        name=request.name,
        folder=_folder(host, request),
        disks=_disks(capture.vm, capture.disks, request.disks, same_vm=same_vm),
        adapters=adapters,
        same_vm=same_vm,
        need_bytes=sum(disk.data_bytes for disk in request.disks),
        marker=Marker(appliance_id=appliance_id, run_id=request.run_id, purpose=Purpose.RESTORE),
        reasons=tuple(reasons),
    )


def planned_adapters(
    adapters: Sequence[Adapter],
    switches: Sequence[str],
    networks: Mapping[str, str],
    unconnected: frozenset[str],
    *,
    keep_mac: bool,
) -> tuple[NewAdapter, ...]:
    """Old names are those of switches, of adapters, or their addresses. Raises NoSuchPlaceError."""
    known = {name for adapter in adapters for name in names_of(adapter)}
    for old in sorted({*networks, *unconnected} - known):
        raise NoSuchPlaceError(
            f"the VM has no network {old!r}, but {', '.join(sorted(known)) or 'none'}"
        )
    return tuple(
        NewAdapter(
            name=adapter.name,
            switch_name=_switch(adapter, switches, networks, unconnected),
            mac=_mac_of(adapter) if keep_mac else "",
            legacy=adapter.legacy,
            vlan_id=adapter.vlan_id if adapter.vlan_mode == _ACCESS_VLAN else 0,
        )
        for adapter in adapters
    )


def names_of(adapter: Adapter) -> tuple[str, ...]:
    """What an operator may call it by; the network comes first."""
    mac = _mac_of(adapter).lower()
    address = ":".join(mac[at : at + 2] for at in range(0, len(mac), 2))
    return tuple(name for name in (adapter.switch_name, adapter.name, address) if name)


def _mac_of(adapter: Adapter) -> str:
    """Empty: the host has not given it one yet, as the VM never ran."""
    return adapter.mac if adapter.mac.strip("0") else ""


def _switch(
    adapter: Adapter,
    switches: Sequence[str],
    networks: Mapping[str, str],
    unconnected: frozenset[str],
) -> str:
    names = names_of(adapter)
    if unconnected & set(names):
        return ""
    wanted = next((networks[name] for name in names if name in networks), adapter.switch_name)
    if wanted and wanted not in switches:
        raise NoSuchPlaceError(
            f"{adapter.name}: no network {wanted!r} to connect it to (virtual switches: "
            f"{', '.join(sorted(switches)) or 'none'})"
        )
    return wanted


def _folder(host: HypervHost, request: NewVmRequest) -> str:
    place = request.place
    for what, name in (
        ("datastore", place.datastore),
        ("resource pool", place.pool),
        ("other host to run it", place.machine),
    ):
        if name:
            raise NoSuchPlaceError(
                f"{host.name}: a Hyper-V host has no {what} {name!r}; --folder says where its "
                "files go, such as D:\\VMs"
            )
    folder = (place.folder or host.facts.vm_folder).rstrip("\\")
    try:
        shared_path(f"{folder}\\x")
    except FileError as error:
        raise NoSuchPlaceError(f"{host.name}: {error}") from error
    return folder


def _disks(
    vm: CapturedVm,
    captured: Sequence[CapturedDisk],
    wanted: Sequence[WantedDisk],
    *,
    same_vm: bool,
) -> tuple[PlannedDisk, ...]:
    places = {disk.number: disk for disk in captured}
    for disk in wanted:
        place = places.get(disk.number)
        if place is None or place.size_bytes != disk.size_bytes:
            raise UsageError(
                f"{disk.label}: the captured configuration has no such disk of {disk.size_bytes} "
                "bytes; get the disk back with `restore image`"
            )
    mine = [places[disk.number] for disk in wanted]
    first = boot_disk(vm, mine)
    return tuple(
        PlannedDisk(
            number=disk.number,
            label=disk.label,
            place=place,
            shape=_shape(place, same_disk=same_vm),
            boot_first=place is first,
        )
        for disk, place in zip(wanted, mine, strict=True)
    )


def boot_disk(vm: CapturedVm, disks: Sequence[CapturedDisk]) -> CapturedDisk:
    """The first of them in the boot order; else the first by its place.

    Older points do not say what the boot order calls their disks: the drive of the order that comes
    first is told apart by its location, as far as that goes.
    """
    named = first_to_boot(vm, disks)
    if named is not None:
        return named
    is_old = not any(disk.attachment for disk in disks)
    order = vm.firmware.boot_order if vm.firmware and is_old else []
    for entry in order:
        parts = entry.attachment.split("\\")
        if entry.type == _DRIVE and len(parts) > 2:
            found = [disk for disk in disks if str(disk.location) == parts[-2]]
            if len(found) == 1:
                return found[0]
            break
    return min(disks, key=place_of)


def _shape(disk: CapturedDisk, *, same_disk: bool) -> VhdxShape:
    try:
        known = uuid.UUID(disk.virtual_disk_id) if same_disk else uuid.uuid4()
    except ValueError:
        known = uuid.uuid4()
    try:
        return VhdxShape(
            disk_bytes=disk.size_bytes,
            disk_id=known,
            data_write_id=uuid.uuid4(),
            file_write_id=uuid.uuid4(),
            logical_sector_bytes=disk.logical_sector_bytes,
            physical_sector_bytes=disk.physical_sector_bytes,
        )
    except UnsupportedDiskFileError as error:
        raise UsageError(f"disk {disk.number}: {error}") from error


def _keeps(wanted: Keep, original_there: bool) -> bool:
    return wanted is Keep.KEEP or (wanted is Keep.AUTO and not original_there)


def captured_switches(hardware: Mapping[str, Any]) -> tuple[str, ...]:
    """The names that a restore can map, each once. Raises ForeignPointError."""
    adapters = capture_of(hardware).vm.adapters
    return tuple(dict.fromkeys(names_of(adapter)[0] for adapter in adapters if names_of(adapter)))
