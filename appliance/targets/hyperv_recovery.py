"""Instant recovery on Hyper-V: a `WitnessedTarget` over a logged-in host.

    plan -> mount: iSCSI login, disk online; private switch
         -> register: VM + VHDX files of the volume -> power_on
         -> … -> move: Move-VMStorage -> settle -> unmount: disk offline, logout; switch away
         or   take_away: stop, remove           -> unmount

A VM is the session's if its notes carry the session's mark. Its configuration lies on the session's
volume too, so nothing of it stays on the host. One that has left the volume is never removed.
Thread model: one thread per session; calls block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.exports.datastore.session import Presentation
from appliance.exports.iscsi.target import Chap
from appliance.sources.hyperv_errors import hyperv_calls
from appliance.sources.hyperv_host import HypervHost
from appliance.targets.hyperv_recovery_plan import HypervState, capture_of, plan_recovery
from appliance.targets.recovery import (
    GuestLife,
    Life,
    MoveRequest,
    RecoveryPlan,
    RecoveryRequest,
    RegisteredVm,
    StillThereError,
    TargetState,
)
from hyperv.errors import DeadlineError, GoneError
from hyperv.inventory import list_vms, read_vm, vm_state
from hyperv.iscsi_disk import connect, disconnect, is_on, offline, online
from hyperv.marker import Marker
from hyperv.new_vm import attach, find_marked, move, new_vm, remove, set_power, unmark
from hyperv.patience import Patience
from hyperv.private_switch import make_switch, remove_switch
from hyperv.screenshot import take_screenshot
from hyperv.script_types import Vm

_UP = frozenset({5, 6})  # VMHeartbeatStatus: ok, with or without the health of applications
_WITHOUT_SERVICES_S = 300.0


class HypervRecovery:
    """A `WitnessedTarget`. Its host is somebody else's to close."""

    presentation = Presentation.ISCSI

    def __init__(
        self,
        host: HypervHost,
        appliance_id: str,
        *,
        portal_port: Callable[[], int],
        chap: Callable[[str], Chap],
    ) -> None:
        """`portal_port`: where sessions are served; `chap`: of a session."""
        self._host = host
        self._session = host.session
        self._appliance_id = appliance_id
        self._portal_port = portal_port
        self._chap = chap

    @property
    def name(self) -> str:
        return self._host.name

    def plan(self, request: RecoveryRequest) -> RecoveryPlan:
        port = self._portal_port()
        with hyperv_calls(self.name):
            return plan_recovery(self._host, self._appliance_id, port, request, Patience())

    def mount(self, state: TargetState, cancel: CancelToken) -> None:
        known, patience = HypervState.parse(state), _patience(cancel)
        chap = self._chap(known.session_id)
        with hyperv_calls(self.name, cancel):
            connect(
                self._session,
                known.disk,
                user=chap.user,
                secret=lambda: chap.secret.reveal().decode(),
                patience=patience,
            )
            online(self._session, known.disk, patience)
            if known.private_switch is not None:
                make_switch(self._session, known.private_switch, patience)

    def register(
        self, state: TargetState, hardware: Mapping[str, Any], cancel: CancelToken
    ) -> RegisteredVm:
        known, patience = HypervState.parse(state), _patience(cancel)
        captured = capture_of(hardware).vm
        with hyperv_calls(self.name, cancel):
            folder = online(self._session, known.disk, patience)
            made = find_marked(self._session, known.marker, patience)
            key = (
                made.id
                if made is not None
                else new_vm(
                    self._session,
                    captured,
                    marker=known.marker,
                    name=known.vm_name,
                    folder=folder,
                    adapters=known.new_adapters,
                    keep_identity=known.keep_identity,
                    patience=patience,
                )
            )
            attach(self._session, key, known.marker, known.new_disks(folder), patience)
        return RegisteredVm(key=key, reasons=(_NEW_TPM,) if captured.security.tpm else ())

    def power_on(self, state: TargetState, key: str, cancel: CancelToken) -> None:
        with hyperv_calls(self.name, cancel):
            set_power(self._session, key, "on", _patience(cancel))

    def wait_alive(self, key: str, *, within_s: float, cancel: CancelToken) -> GuestLife:
        patience, deadline_s = _patience(cancel), min(within_s, _WITHOUT_SERVICES_S)
        with hyperv_calls(self.name, cancel):
            try:
                for _ in patience.looks(deadline_s, "the heartbeat of the guest"):
                    found = vm_state(self._session, key, patience)
                    if found.heartbeat in _UP:
                        address = found.addresses[0] if found.addresses else ""
                        return GuestLife(
                            life=Life.BEATING, host_name=found.guest_name, address=address
                        )
            except DeadlineError:
                pass
        return GuestLife(life=Life.NO_TOOLS, host_name="", address="")

    def machine_of(self, state: TargetState) -> str:
        return self._host.facts.computer_name

    def screenshot(self, state: TargetState, key: str, cancel: CancelToken) -> bytes:
        with hyperv_calls(self.name, cancel):
            return take_screenshot(self._session, key, _patience(cancel))

    # Leaving

    def move(
        self,
        state: TargetState,
        key: str,
        request: MoveRequest,
        cancel: CancelToken,
        on_progress: Callable[[int], None],
    ) -> tuple[Reason, ...]:
        """The host says nothing of its progress. `request.datastore`: a folder of the host."""
        known = HypervState.parse(state)
        folder = request.datastore or f"{self._host.facts.vm_folder}\\{known.vm_name}"
        with hyperv_calls(self.name, cancel):
            vm = read_vm(self._session, key, _patience(cancel))
            if not _files_on(known, vm):
                return ()
            if known.marker not in vm.notes:
                raise StillThereError(f"{self.name}: {vm.name} is not this session's any more")
            move(self._session, key, folder, _patience(cancel))
        on_progress(100)
        return ()

    def left_behind(self, state: TargetState, key: str) -> tuple[str, ...]:
        known = HypervState.parse(state)
        with hyperv_calls(self.name):
            return _files_on(known, read_vm(self._session, key, Patience()))

    def settle(self, key: str, hardware: Mapping[str, Any]) -> None:
        notes = capture_of(hardware).vm.notes
        with hyperv_calls(self.name):
            vm = read_vm(self._session, key, Patience())
            found = next((word for word in vm.notes.split() if Marker.parse(word)), None)
            if found is not None:
                unmark(self._session, vm, found, notes, Patience())

    def take_away(self, state: TargetState, key: str | None) -> tuple[Reason, ...]:
        known, patience = HypervState.parse(state), Patience()
        with hyperv_calls(self.name):
            vm = find_marked(self._session, known.marker, patience)
            if vm is None:
                return self._left(key)
            if not _files_on(known, vm) and vm.disks:
                return (_HAS_LEFT,)
            if any(not is_on(known.disk, disk.path) for disk in vm.disks):
                raise StillThereError(f"{self.name}: {vm.name} has left the volume in part")
            remove(self._session, vm.id, known.marker, patience)
        return ()

    def unmount(self, state: TargetState) -> tuple[Reason, ...]:
        known, patience = HypervState.parse(state), Patience()
        with hyperv_calls(self.name):
            for vm in list_vms(self._session, patience):
                if _files_on(known, vm):
                    raise StillThereError(f"{self.name}: {vm.name} is on the session's volume")
            offline(self._session, known.disk, patience)
            disconnect(self._session, known.disk, patience)
            if known.private_switch is None:
                return ()
            names = remove_switch(self._session, known.private_switch, patience)
        return (_switch_in_use(known.private_switch.name, names),) if names else ()

    def _left(self, key: str | None) -> tuple[Reason, ...]:
        if key is None:
            return ()
        try:
            read_vm(self._session, key, Patience())
        except GoneError:
            return ()
        return (_HAS_LEFT,)


def _files_on(known: HypervState, vm: Vm) -> tuple[str, ...]:
    """What of the VM is on the session's volume."""
    paths = [vm.folder, *(disk.path for disk in vm.disks)]
    return tuple(path for path in paths if is_on(known.disk, path))


def _switch_in_use(switch: str, names: tuple[str, ...]) -> Reason:
    return Reason(
        "instant.network-stays",
        f"the private switch {switch} is in use by {', '.join(names)}",
        "connect the VM to another network, then remove what has that name there",
    )


def _patience(cancel: CancelToken) -> Patience:
    def wait(seconds: float) -> None:
        cancel.wait(seconds)

    return Patience(is_cancelled=lambda: cancel.cancelled, wait=wait)


_NEW_TPM = Reason(
    "instant.new-tpm",
    "the VM has a new, empty TPM: the host's own keys protect the old one's content",
    "have the recovery keys of its disk encryption ready",
)
_HAS_LEFT = Reason(
    "instant.vm-left",
    "the VM is no longer on the session's volume, so it was left alone",
    "remove it on the host if it is not wanted",
)
