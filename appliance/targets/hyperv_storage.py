"""What a Hyper-V host has of a session: `SessionStorage`, in one way per presentation.

    volume        one iSCSI disk; its NTFS volume holds VHDX files and the VM's own files
    pass-through  an iSCSI disk per disk, offline on the host, attached whole to the VM
    share         an SMB share that holds VHDX files

Invariant: `holds` names whatever of a VM would break were the session to end; so only a VM of which
nothing is named has left.
Thread model: one per call of the target; blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from appliance.exports.datastore.session import Presentation
from appliance.exports.iscsi.target import Chap
from appliance.exports.smb.share import ShareAccount
from appliance.targets.hyperv_recovery_plan import HypervState
from appliance.targets.recovery import Downtime, DowntimeNeededError
from hyperv.host_session import HostSession
from hyperv.iscsi_disk import IscsiDisk, connect, disconnect, hold_offline, is_on, offline, online
from hyperv.mapped_share import is_on_share, map_share, unmap_share
from hyperv.new_vm import NewDisk, import_disk, move, set_power
from hyperv.patience import Patience
from hyperv.script_types import Vm, VmDisk

_RUNNING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class VmMaking:
    """`folder`: for the VM's own files."""

    folder: str
    disks: tuple[NewDisk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The host's side of one session."""

    session: HostSession
    vm_folder: str  # the host's own
    known: HypervState
    chap: Callable[[str], Chap]
    share_account: Callable[[], ShareAccount]
    patience: Patience


class SessionStorage(Protocol):
    def mount(self) -> None:
        """Raises HypervError."""
        ...

    def making(self) -> VmMaking:
        """What a VM is made with. Raises HypervError."""
        ...

    def holds_disk(self, disk: VmDisk) -> bool: ...

    def holds(self, vm: Vm) -> tuple[str, ...]:
        """What of a VM, which is the session's by key or mark, is on the session."""
        ...

    def is_used_by(self, vm: Vm) -> bool:
        """Of any VM of the host."""
        ...

    def move(self, vm: Vm, folder: str, downtime: Downtime, *, allow_downtime: bool) -> None:
        """Off the session, into a folder of the host; empty: of the host's own choice.

        Where `downtime` has begun on return, the caller is to power the VM on.

        Raises: DowntimeNeededError, HypervError.
        """
        ...

    def unmount(self) -> None:
        """Raises HypervError."""
        ...


def storage_of(side: Side) -> SessionStorage:
    if side.known.presentation is Presentation.PASS_THROUGH:
        return PassThroughStorage(side)
    if side.known.presentation is Presentation.SHARE:
        return ShareStorage(side)
    return VolumeStorage(side)


def _log_in(side: Side, disk: IscsiDisk) -> None:
    chap = side.chap(side.known.session_id)
    connect(
        side.session,
        disk,
        user=chap.user,
        secret=lambda: chap.secret.reveal().decode(),
        patience=side.patience,
    )


class VolumeStorage:
    """A `SessionStorage`."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._disk = side.known.disk

    def mount(self) -> None:
        _log_in(self._side, self._disk)
        online(self._side.session, self._disk, self._side.patience)

    def making(self) -> VmMaking:
        folder = online(self._side.session, self._disk, self._side.patience)
        return VmMaking(folder=folder, disks=self._side.known.new_disks(folder))

    def holds_disk(self, disk: VmDisk) -> bool:
        return is_on(self._disk, disk.path)

    def holds(self, vm: Vm) -> tuple[str, ...]:
        paths = [vm.folder, *(disk.path for disk in vm.disks)]
        return tuple(path for path in paths if is_on(self._disk, path))

    def is_used_by(self, vm: Vm) -> bool:
        return bool(self.holds(vm))

    def move(self, vm: Vm, folder: str, downtime: Downtime, *, allow_downtime: bool) -> None:
        folder = folder or f"{self._side.vm_folder}\\{self._side.known.vm_name}"
        move(self._side.session, vm.id, folder, self._side.patience)

    def unmount(self) -> None:
        offline(self._side.session, self._disk, self._side.patience)
        disconnect(self._side.session, self._disk, self._side.patience)


class PassThroughStorage:
    """A `SessionStorage`. The VM's own files are the host's from the start."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._places = {
            f"{disk.controller}{disk.controller_number}:{disk.location}"
            for disk in side.known.disks
        }

    def mount(self) -> None:
        _log_in(self._side, self._side.known.disk)
        for disk in self._side.known.whole_disks.values():
            hold_offline(self._side.session, disk, self._side.patience)

    def making(self) -> VmMaking:
        side = self._side
        numbers = {
            number: hold_offline(side.session, disk, side.patience)
            for number, disk in side.known.whole_disks.items()
        }
        return VmMaking(folder=side.vm_folder, disks=side.known.pass_through_disks(numbers))

    def holds_disk(self, disk: VmDisk) -> bool:
        return disk.pass_through and disk.place in self._places

    def holds(self, vm: Vm) -> tuple[str, ...]:
        return tuple(disk.place for disk in vm.disks if self.holds_disk(disk))

    def is_used_by(self, vm: Vm) -> bool:
        """A disk of the host has no name that says whose it is: the VM's mark does."""
        return self._side.known.marker in vm.notes and bool(self.holds(vm))

    def move(self, vm: Vm, folder: str, downtime: Downtime, *, allow_downtime: bool) -> None:
        """By copying, of a VM that is off then; its own files stay where they are."""
        side = self._side
        if not allow_downtime:
            raise DowntimeNeededError(
                f"{side.session.address}: {vm.name} has pass-through disks, which Hyper-V does not"
                " move while a VM runs"
            )
        folder = folder or f"{side.vm_folder}\\{side.known.vm_name}"
        if vm.state == _RUNNING:
            downtime.begins()
        set_power(side.session, vm.id, "shutdown", side.patience)
        serials = side.known.whole_disks
        for state, disk in zip(
            side.known.disks,
            side.known.new_disks(f"{folder}\\Virtual Hard Disks\\{side.known.session_id}"),
            strict=True,
        ):
            import_disk(
                side.session,
                vm.id,
                side.known.marker,
                disk,
                serial=serials[state.number].serial,
                patience=side.patience,
            )

    def unmount(self) -> None:
        side = self._side
        for disk in side.known.whole_disks.values():
            offline(side.session, disk, side.patience)
        disconnect(side.session, side.known.disk, side.patience)


class ShareStorage:
    """A `SessionStorage`. The VM's own files are the host's from the start."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._share = side.known.share

    def mount(self) -> None:
        """In a domain with us the host's own account is let in, and there is nothing to be done."""
        if self._side.known.domain:
            return
        account = self._side.share_account()
        map_share(
            self._side.session,
            self._share,
            user=account.user,
            password=lambda: account.password.reveal().decode(),
            patience=self._side.patience,
        )

    def making(self) -> VmMaking:
        disks = self._side.known.new_disks(self._share.path)
        return VmMaking(folder=self._side.vm_folder, disks=disks)

    def holds_disk(self, disk: VmDisk) -> bool:
        return is_on_share(self._share, disk.path)

    def holds(self, vm: Vm) -> tuple[str, ...]:
        return tuple(disk.path for disk in vm.disks if self.holds_disk(disk))

    def is_used_by(self, vm: Vm) -> bool:
        return bool(self.holds(vm))

    def move(self, vm: Vm, folder: str, downtime: Downtime, *, allow_downtime: bool) -> None:
        folder = folder or f"{self._side.vm_folder}\\{self._side.known.vm_name}"
        move(self._side.session, vm.id, folder, self._side.patience)

    def unmount(self) -> None:
        if not self._side.known.domain:
            unmap_share(self._side.session, self._share, self._side.patience)
