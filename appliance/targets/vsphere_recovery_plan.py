"""Instant recovery on vSphere, decided: hosts, place, networks, identity, and the files to publish.

Data path: the captured document and the operator's wishes -> the VM's folder (.vmx, descriptors,
NVRAM) and `VsphereState`, which says how to find again whatever is made. Reads only.
Thread model: functions; they block.
"""

from __future__ import annotations

import re
import secrets
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.base.errors import StorageError, UsageError
from appliance.exports.datastore.session import Presentation
from appliance.sources.vsphere_reasons import reasons
from appliance.targets.contract import Keep, NoSuchPlaceError, WantedDisk
from appliance.targets.matched_disks import matched_disks
from appliance.targets.point_hardware import for_vsphere
from appliance.targets.recovery import (
    Breadth,
    PublishedDisk,
    RecoveryPlan,
    RecoveryRequest,
    TargetState,
)
from appliance.targets.translation import NativeVm
from vmware.captured_vm import CapturedDisk, CapturedVm
from vmware.datastore_path import DatastorePath
from vmware.findings import Finding
from vmware.hardware_versions import newest_hardware
from vmware.isolated_network import isolated_network
from vmware.nas_datastore import NasExport, vmkernel_addresses
from vmware.network_choice import ChosenNetwork, NetworkChoiceError, choose_networks
from vmware.networks import NetworkInfo
from vmware.new_vm import find_by_instance_uuid
from vmware.placement import (
    Placement,
    PlacementError,
    WantedPlace,
    choose_place,
    hosts_beside,
    reachable_networks,
)
from vmware.register import MARK_KEY
from vmware.session import Session
from vmware.vm_spec_devices import (
    MacPolicy,
    disk_address,
    nics_that_can_be_made,
    plan_devices,
)
from vmware.vmdk_descriptor import flat_descriptor, format_descriptor
from vmware.vmx import VmxChoices, build_vmx

_NAME_LIMIT = 80  # characters, as vCenter has
_STEM_LIMIT = 40
_SPACE_FINDINGS = ("placement.other-datastore",)  # nothing is put on a datastore of vSphere's


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Network(_Strict):
    """What an adapter is connected to: `NetworkInfo`, and whether it starts connected."""

    moref: str
    kind: str
    name: str
    portgroup_key: str
    switch_name: str
    switch_uuid: str
    vlan: str
    opaque_id: str
    opaque_type: str
    start_connected: bool


class VsphereState(_Strict):
    """`TargetState` of vSphere."""

    version: Literal[1] = 1
    mark: str  # appliance and session, as the VM carries it
    export: tuple[str, str, str]  # datastore name, server, path
    hosts: tuple[str, ...]  # morefs, of those that mount it
    host: str  # moref, of the one that is to run the VM
    host_name: str
    datacenter: str
    folder: str
    pool: str
    vm_name: str
    vmx: str  # path on the datastore
    same_vm: bool
    isolated: str = ""  # name of the isolated network; empty: none
    networks: dict[int, _Network] = Field(default_factory=dict)  # by the captured adapter's key

    @property
    def nas(self) -> NasExport:
        name, server, path = self.export
        return NasExport(name=name, remote_host=server, remote_path=path)

    @property
    def vmx_path(self) -> DatastorePath:
        return DatastorePath(self.export[0], self.vmx)

    def chosen(self) -> Mapping[int, ChosenNetwork]:
        return {
            key: ChosenNetwork(
                network=NetworkInfo(**network.model_dump(exclude={"start_connected"})),
                start_connected=network.start_connected,
            )
            for key, network in self.networks.items()
        }

    def text(self) -> TargetState:
        return TargetState(self.model_dump_json())

    @classmethod
    def parse(cls, state: TargetState) -> VsphereState:
        """Raises StorageError: it is not what we wrote."""
        try:
            return cls.model_validate_json(state)
        except ValidationError as error:
            raise StorageError(f"the session's record of vSphere is damaged: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionNames:
    """What a session is called where hosts see it."""

    datastore: str
    export_path: str
    mark: str


def plan_recovery(session: Session, names: SessionNames, request: RecoveryRequest) -> RecoveryPlan:
    """Raises: NoSuchPlaceError, UsageError: the request cannot be; VsphereErrors."""
    native = for_vsphere(request.hardware, request.disks)
    captured = native.vm
    matched = matched_disks(captured, native.disks)
    placement = _placement(session, request, captured)
    name_of_isolated = request.isolated_name or names.datastore
    isolated = isolated_network(name_of_isolated) if _isolates(request) else None
    networks = _networks(session, request, native, placement, isolated)
    original_there = native.is_foreign or (
        bool(captured.instance_uuid)
        and find_by_instance_uuid(session, captured.instance_uuid) is not None
    )
    same_vm = request.identity is Keep.KEEP or (
        request.identity is Keep.AUTO and not original_there
    )
    name = request.name or _default_name(captured, original_there, request.session_id)
    if not 0 < len(name) <= _NAME_LIMIT:
        raise UsageError(f"a VM's name has 1 to {_NAME_LIMIT} characters: {name[:100]!r}")
    hardware = newest_hardware(session, placement.host_moref)
    stem = file_stem(captured.name)
    files = _Files(captured, matched, stem, same_vm=same_vm, hardware=hardware)
    choices = VmxChoices(
        name=name,
        nvram_file=f"{stem}.nvram" if captured.nvram is not None else None,
        disk_files={disk.key: files.descriptor(number) for number, disk in matched.items()},
        networks=networks,
        hardware_most=hardware,
        bios_uuid=captured.bios_uuid if same_vm and captured.bios_uuid else str(uuid.uuid4()),
        instance_uuid=captured.instance_uuid if same_vm and captured.instance_uuid else None,
        mac=_mac(request, networks, isolated, same_vm=same_vm),
        mark=(MARK_KEY, names.mark),
    )
    published = files.published() | {f"{stem}.vmx": build_vmx(captured, choices)}
    address = request.address or _own_address(session)
    hosts = _hosts(session, request.breadth, placement)
    state = VsphereState(
        mark=names.mark,
        export=(names.datastore, address, names.export_path),
        hosts=hosts,
        host=placement.host_moref,
        host_name=placement.host_name,
        datacenter=placement.datacenter_moref,
        folder=placement.folder_moref,
        pool=placement.pool_moref,
        vm_name=name,
        vmx=f"{stem}/{stem}.vmx",
        same_vm=same_vm,
        isolated=isolated.name if isolated else "",
        networks={
            key: _Network(**asdict(chosen.network), start_connected=chosen.start_connected)
            for key, chosen in networks.items()
        },
    )
    return RecoveryPlan(
        vm_name=name,
        folder=stem,
        disks=files.disks(request.disks),
        files=published,
        address=address,
        clients=_clients(session, hosts, placement),
        state=state.text(),
        reasons=(
            *native.reasons,
            *reasons((*_told(placement), *_losses(captured, matched, networks))),
        ),
        presentation=Presentation.NFS,
    )


def file_stem(name: str) -> str:
    """A name for files: of a small alphabet, short, and never empty."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:_STEM_LIMIT] or "vm"


class _Files:
    """The files of the VM's disks."""

    def __init__(
        self,
        captured: CapturedVm,
        matched: Mapping[int, CapturedDisk],
        stem: str,
        *,
        same_vm: bool,
        hardware: int,
    ) -> None:
        self._captured = captured
        self._matched = matched
        self._stem = stem
        self._same_vm = same_vm
        self._hardware = min(captured.hardware_version or hardware, hardware)

    def descriptor(self, number: int) -> str:
        return f"{self._base(number)}.vmdk"

    def disks(self, wanted: Sequence[WantedDisk]) -> tuple[PublishedDisk, ...]:
        return tuple(
            PublishedDisk(
                number=disk.number,
                size_bytes=disk.size_bytes,
                file=f"{self._base(disk.number)}-flat.vmdk",
            )
            for disk in wanted
        )

    def published(self) -> dict[str, bytes]:
        files = {}
        for number, disk in self._matched.items():
            uuid_ = disk.uuid if self._same_vm and disk.uuid else _new_disk_uuid()
            descriptor = flat_descriptor(
                flat_file=f"{self._base(number)}-flat.vmdk",
                size_bytes=disk.capacity_bytes,
                uuid=uuid_,
                content_id=secrets.randbelow(0xFFFFFFFE),
                hardware_version=self._hardware,
                ide=disk_address(self._captured, disk).startswith("ide"),
            )
            files[self.descriptor(number)] = format_descriptor(descriptor)
        if self._captured.nvram is not None:
            files[f"{self._stem}.nvram"] = self._captured.nvram
        return files

    def _base(self, number: int) -> str:
        return f"{self._stem}_{number}" if number else self._stem


def _placement(session: Session, request: RecoveryRequest, captured: CapturedVm) -> Placement:
    wanted = WantedPlace(
        folder_path=request.place.folder,
        pool_path=request.place.pool,
        host=request.place.machine,
        datastore="",
    )
    try:
        return choose_place(session, wanted, captured.placement, 0)
    except PlacementError as error:
        raise NoSuchPlaceError(str(error)) from error


def _isolates(request: RecoveryRequest) -> bool:
    return request.isolate_all or bool(request.isolated)


def _networks(
    session: Session,
    request: RecoveryRequest,
    native: NativeVm[CapturedVm],
    placement: Placement,
    isolated: NetworkInfo | None,
) -> Mapping[int, ChosenNetwork]:
    nics = nics_that_can_be_made(native.vm.nics)
    if isolated is not None and request.isolate_all:
        return {nic.key: ChosenNetwork(network=isolated, start_connected=True) for nic in nics}
    offered = reachable_networks(session, placement.host_moref)
    mapping = dict(request.networks)
    if isolated is not None:
        offered = [*offered, isolated]
        mapping |= dict.fromkeys(request.isolated, isolated.name)
    unconnected = native.left_unconnected(request.unconnected, mapping.items())
    try:
        return choose_networks(nics, offered, mapping, unconnected)
    except NetworkChoiceError as error:
        raise NoSuchPlaceError(str(error)) from error


def _mac(
    request: RecoveryRequest,
    networks: Mapping[int, ChosenNetwork],
    isolated: NetworkInfo | None,
    *,
    same_vm: bool,
) -> MacPolicy:
    """An address that the original may be using must not appear beside it."""
    if request.mac is not Keep.AUTO:
        return MacPolicy.KEEP if request.mac is Keep.KEEP else MacPolicy.NEW
    apart = isolated is not None and all(
        chosen.network.name == isolated.name or not chosen.start_connected
        for chosen in networks.values()
    )
    return MacPolicy.KEEP if same_vm or apart else MacPolicy.NEW


def _default_name(captured: CapturedVm, original_there: bool, session_id: str) -> str:
    if not original_there:
        return captured.name
    ending = f"-{session_id}"
    return f"{captured.name[: _NAME_LIMIT - len(ending)]}{ending}"


def _hosts(session: Session, breadth: Breadth, placement: Placement) -> tuple[str, ...]:
    """The one that is to run the VM comes first."""
    if breadth is Breadth.HOST:
        return (placement.host_moref,)
    others = hosts_beside(session, placement.host_moref)
    return tuple(dict.fromkeys((placement.host_moref, *others)))


def _clients(session: Session, hosts: Sequence[str], placement: Placement) -> tuple[str, ...]:
    addresses = vmkernel_addresses(session, hosts)
    if not addresses:
        raise NoSuchPlaceError(f"{placement.host_name} shows no vmkernel adapter to mount with")
    return addresses


def _own_address(session: Session) -> str:
    """Ours on the way to the server; sends nothing."""
    endpoint = session.endpoint
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            endpoint.address, endpoint.port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise UsageError(f"say with --address where hosts reach this machine: {error}") from error


def _told(placement: Placement) -> list[Finding]:
    return [found for found in placement.findings if found.code not in _SPACE_FINDINGS]


def _losses(
    captured: CapturedVm,
    matched: Mapping[int, CapturedDisk],
    networks: Mapping[int, ChosenNetwork],
) -> list[Finding]:
    """What of the VM does not come along."""
    devices = plan_devices(
        captured,
        disk_keys=frozenset(disk.key for disk in matched.values()),
        networks=networks,
        mac=MacPolicy.KEEP,
        keep_disk_uuids=True,
    )
    return list(devices.findings)


def _new_disk_uuid() -> str:
    return f"6000c29{secrets.token_hex(13)}"[:32].ljust(32, "0")
