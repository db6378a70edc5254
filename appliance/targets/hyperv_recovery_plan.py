"""What instant recovery will make on a Hyper-V host, decided before anything is made.

    recovery point's capture + wishes + what the host has -> `RecoveryPlan`, `HypervState`

The VM gets everything of the captured one; adapters keep their switch where the host has one of
that name, or get on a private switch that is made for the session. Pure but for the questions to
the host.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.exports.datastore.session import Presentation
from appliance.exports.iscsi.target import disk_serial, target_name
from appliance.exports.smb.share import share_name
from appliance.exports.vhdx_volume.ntfs_tools import missing_program
from appliance.sources.hyperv_host import HypervHost
from appliance.targets.contract import Keep, TargetError
from appliance.targets.point_hardware import for_hyperv
from appliance.targets.recovery import (
    PresentationError,
    PublishedDisk,
    RecoveryPlan,
    RecoveryRequest,
    TargetState,
)
from appliance.targets.translation import ForeignPointError
from hyperv.captured_vm import Adapter
from hyperv.config_capture import Capture
from hyperv.inventory import list_vms
from hyperv.iscsi_disk import IscsiDisk
from hyperv.mapped_share import MappedShare
from hyperv.marker import SESSION, Marker, Purpose
from hyperv.new_vm import NewAdapter, NewDisk, list_switches
from hyperv.patience import Patience
from hyperv.private_switch import PrivateSwitch

_MICROSOFT_INITIATOR = "iqn.1991-05.com.microsoft:"
_SECTOR_BYTES = 512
_PRESENTATIONS = (Presentation.ISCSI, Presentation.PASS_THROUGH, Presentation.SHARE)
_NAME_MOST = 100
_NAME_PREFIX = "holdfast-"


class SwitchNotFoundError(UsageError):
    """The Hyper-V host has no virtual switch of this name; `--disconnect` leaves an adapter
    unconnected."""

    code = "instant.no-switch"


class HypervStateDamagedError(TargetError):
    """What the session knows of its Hyper-V host cannot be understood; discard it by hand."""

    code = "instant.state-damaged"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StateSwitch(_Strict):
    name: str
    marker: str


class StateAdapter(_Strict):
    name: str
    switch_name: str
    mac: str
    legacy: bool
    vlan_id: int


class StateDisk(_Strict):
    number: int
    file: str
    controller: str
    controller_number: int
    location: int
    boot_first: bool

    def as_new(self, *, path: str = "", disk_number: int = -1) -> NewDisk:
        return NewDisk(
            path=path,
            controller=self.controller,
            controller_number=self.controller_number,
            location=self.location,
            boot_first=self.boot_first,
            disk_number=disk_number,
        )


class HypervState(_Strict):
    """The target's own document."""

    session_id: str
    marker: str
    vm_name: str
    portal: str
    port: int = Field(gt=0, lt=65536)
    keep_identity: bool
    adapters: tuple[StateAdapter, ...]
    disks: tuple[StateDisk, ...]
    isolated: StateSwitch | None = None  # made for the session, or for the group that it is of
    presentation: Presentation = Presentation.ISCSI
    domain: str = ""  # with a share: that host and appliance are members of; empty: an account

    @classmethod
    def parse(cls, state: TargetState) -> HypervState:
        """Raises HypervStateDamagedError."""
        try:
            return cls.model_validate_json(state)
        except ValidationError as error:
            raise HypervStateDamagedError(str(error)) from error

    @property
    def share(self) -> MappedShare:
        return MappedShare(server=self.portal, port=self.port, name=share_name(self.session_id))

    @property
    def disk(self) -> IscsiDisk:
        """The one with the volume."""
        return self._lun(self.session_id)

    @property
    def whole_disks(self) -> dict[int, IscsiDisk]:
        """With pass-through, by number."""
        return {
            disk.number: self._lun(disk_serial(self.session_id, disk.number)) for disk in self.disks
        }

    def _lun(self, serial: str) -> IscsiDisk:
        return IscsiDisk(
            portal=self.portal,
            port=self.port,
            target=target_name(self.session_id),
            serial=serial,
            marker=self.marker,
        )

    @property
    def private_switch(self) -> PrivateSwitch | None:
        return PrivateSwitch(**self.isolated.model_dump()) if self.isolated else None

    @property
    def new_adapters(self) -> list[NewAdapter]:
        return [NewAdapter(**each.model_dump()) for each in self.adapters]

    def new_disks(self, folder: str) -> tuple[NewDisk, ...]:
        """VHDX files of a folder."""
        return tuple(disk.as_new(path=f"{folder}\\{disk.file}") for disk in self.disks)

    def pass_through_disks(self, numbers: Mapping[int, int]) -> tuple[NewDisk, ...]:
        """`numbers`: that the host gives its disks, by ours."""
        return tuple(disk.as_new(disk_number=numbers[disk.number]) for disk in self.disks)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedAt:
    """`domain`: that our Samba is a member of, asked for shares alone; empty: none."""

    iscsi_port: int
    smb_port: int
    domain: Callable[[], str]


def plan_recovery(
    host: HypervHost,
    appliance_id: str,
    place: ServedAt,
    request: RecoveryRequest,
    patience: Patience,
) -> RecoveryPlan:
    """`place`: where sessions are served.

    Raises: UsageError (ForeignPointError, SwitchNotFoundError, …), HypervError.
    """
    native = for_hyperv(request.hardware, request.disks)
    capture = native.vm
    vms = list_vms(host.session, patience)
    original_is_there = native.is_foreign or host.knows_vm(capture.vm.id, vms, patience)
    keep_mac = _keeps(request.mac, original_is_there)
    name = request.name or capture.vm.name
    if not request.name and any(vm.name == name for vm in vms):
        name = f"{name}-{request.session_id}"
    switches = set(list_switches(host.session, patience))
    reasons: list[Reason] = []
    presentation = _presentation(request, reasons)
    adapters = tuple(
        _adapter(each, request, switches, reasons, keep_mac=keep_mac)
        for each in capture.vm.adapters
    )
    isolated_name = _isolated_name(request)
    is_isolated = any(adapter.switch_name == isolated_name for adapter in adapters)
    state = HypervState(
        session_id=request.session_id,
        marker=_marker(appliance_id, request.session_id),
        vm_name=name[:_NAME_MOST],
        portal=request.address or _own_address(host.login.address),
        port=place.smb_port if presentation is Presentation.SHARE else place.iscsi_port,
        keep_identity=_keeps(request.identity, original_is_there),
        adapters=adapters,
        disks=_disks(capture, request),
        isolated=StateSwitch(
            name=isolated_name,
            marker=_marker(appliance_id, isolated_name.removeprefix(_NAME_PREFIX)),
        )
        if is_isolated
        else None,
        presentation=presentation,
        domain=place.domain() if presentation is Presentation.SHARE else "",
    )
    return RecoveryPlan(
        vm_name=state.vm_name,
        folder="vm",
        disks=tuple(
            PublishedDisk(number=disk.number, size_bytes=disk.size_bytes, file=_file(disk.number))
            for disk in request.disks
        ),
        files={},
        address=state.portal,
        clients=_clients(host, presentation),
        state=TargetState(state.model_dump_json()),
        reasons=tuple(dict.fromkeys((*native.reasons, *reasons))),
        presentation=presentation,
    )


def _marker(appliance_id: str, session_id: str) -> str:
    """`session_id`: or what a group of sessions has in its place."""
    run_id = f"{SESSION}{session_id}"
    return Marker(appliance_id=appliance_id, run_id=run_id, purpose=Purpose.RESTORE).text


def _isolated_name(request: RecoveryRequest) -> str:
    return request.isolated_name or f"{_NAME_PREFIX}{request.session_id}"


def _presentation(request: RecoveryRequest, reasons: list[Reason]) -> Presentation:
    """A volume, or whole disks where none can be made. Raises PresentationError."""
    if request.presentation is None:
        if not missing_program():
            return Presentation.ISCSI
        reasons.append(_NO_VOLUME)
        return Presentation.PASS_THROUGH
    if request.presentation not in _PRESENTATIONS:
        raise PresentationError(f"{request.presentation} is not for Hyper-V hosts")
    return request.presentation


def _file(number: int) -> str:
    return f"disk-{number}.vhdx"


def _disks(capture: Capture, request: RecoveryRequest) -> tuple[StateDisk, ...]:
    captured = {disk.number: disk for disk in capture.disks}
    missing = [disk.number for disk in request.disks if disk.number not in captured]
    if missing:
        raise ForeignPointError(f"the point does not say where disk {missing[0]} hung")
    wanted = sorted(
        (captured[disk.number] for disk in request.disks),
        key=lambda disk: (disk.controller, disk.controller_number, disk.location),
    )
    for disk in wanted:
        if disk.logical_sector_bytes != _SECTOR_BYTES:
            raise UsageError(
                f"disk {disk.number} has sectors of {disk.logical_sector_bytes} bytes, which an"
                " iSCSI LUN of ours has not"
            )
    boots = capture.boot_disk
    return tuple(
        StateDisk(
            number=disk.number,
            file=_file(disk.number),
            controller=disk.controller,
            controller_number=disk.controller_number,
            location=disk.location,
            boot_first=disk.number == boots,
        )
        for disk in wanted
    )


def _adapter(
    adapter: Adapter,
    request: RecoveryRequest,
    switches: set[str],
    reasons: list[Reason],
    *,
    keep_mac: bool,
) -> StateAdapter:
    old = adapter.switch_name
    new = dict(request.networks).get(old, "")
    if new and new not in switches:
        raise SwitchNotFoundError(new)
    if request.isolate_all or old in request.isolated:
        new = _isolated_name(request)
    elif old not in request.unconnected and not new and old:
        new = old if old in switches else ""
        if not new:
            reasons.append(_NO_SWITCH)
    return StateAdapter(
        name=adapter.name,
        switch_name=new,
        mac=adapter.mac if keep_mac and not adapter.dynamic_mac else "",
        legacy=adapter.legacy,
        vlan_id=adapter.vlan_id if adapter.vlan_mode == 1 else 0,
    )


def _keeps(wish: Keep, original_is_there: bool) -> bool:
    return wish is Keep.KEEP or (wish is Keep.AUTO and not original_is_there)


def _clients(host: HypervHost, presentation: Presentation) -> tuple[str, ...]:
    """The host by its addresses as we know them, and by the names that its initiator has unless
    somebody changed them; any of them lets it in, with the password. On a share, by addresses and
    its computer account."""
    try:
        found = socket.getaddrinfo(host.login.address, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"{host.login.address}: {error}") from error
    addresses = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    if presentation is Presentation.SHARE:
        return (*addresses, f"{host.facts.computer_name}$")
    names = dict.fromkeys(
        f"{_MICROSOFT_INITIATOR}{name.lower()}"
        for name in (host.facts.fqdn, host.facts.computer_name)
        if name
    )
    return (*addresses, *names)


def _own_address(peer: str) -> str:
    """Ours, on the way to the host. Nothing is sent."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise UsageError(f"no way to {peer}: {error}; name our address with --address") from error


_NO_VOLUME = Reason(
    "instant.no-volume",
    "the programs that make an NTFS volume are not installed, so the VM has pass-through disks",
    "install the Debian package ntfs-3g; this VM has no checkpoints and moves only when shut down",
)
_NO_SWITCH = Reason(
    "instant.switch-missing",
    "the host has no virtual switch of the name that an adapter was on, so it is unconnected",
    "name another with --network OLD=NEW, or connect it on the host",
)
