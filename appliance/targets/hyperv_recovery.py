"""Instant recovery on Hyper-V: a `WitnessedTarget` over a logged-in host.

    plan -> mount: iSCSI login, private switch -> register: VM + disks of the session -> power_on
         -> … -> move: Move-VMStorage, or by copying -> settle -> unmount: logout, switch away
         or   take_away: stop, remove                          -> unmount

How disks of the session are had is the storage's (`hyperv_storage`). A VM is the session's if its
notes carry the session's mark; one that has left the session's storage is never removed.
Thread model: one thread per session; calls block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.exports.iscsi.target import Chap
from appliance.exports.smb.share import ShareAccount
from appliance.sources.hyperv_errors import hyperv_calls
from appliance.sources.hyperv_host import HypervHost, patience_until
from appliance.targets.hyperv_recovery_plan import HypervState, ServedAt, plan_recovery
from appliance.targets.hyperv_storage import SessionStorage, Side, storage_of
from appliance.targets.point_hardware import for_hyperv
from appliance.targets.recovery import (
    Downtime,
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
from hyperv.marker import Marker
from hyperv.new_vm import attach, find_marked, new_vm, remove, set_power, unmark
from hyperv.patience import Patience
from hyperv.private_switch import make_switch, remove_switch
from hyperv.screenshot import take_screenshot

_UP = frozenset({5, 6})  # VMHeartbeatStatus: ok, with or without the health of applications
_WITHOUT_SERVICES_S = 300.0


class HypervRecovery:
    """A `WitnessedTarget`. Its host is somebody else's to close."""

    def __init__(
        self,
        host: HypervHost,
        appliance_id: str,
        *,
        served_at: Callable[[], ServedAt],
        chap: Callable[[str], Chap],
        share_account: Callable[[], ShareAccount],
    ) -> None:
        """`chap`: of a session; `share_account`: of all shares."""
        self._host = host
        self._session = host.session
        self._appliance_id = appliance_id
        self._served_at = served_at
        self._chap = chap
        self._share_account = share_account

    @property
    def name(self) -> str:
        return self._host.name

    def plan(self, request: RecoveryRequest) -> RecoveryPlan:
        place = self._served_at()
        with hyperv_calls(self.name):
            return plan_recovery(self._host, self._appliance_id, place, request, Patience())

    def mount(self, state: TargetState, cancel: CancelToken) -> None:
        known, patience = HypervState.parse(state), patience_until(cancel)
        with hyperv_calls(self.name, cancel):
            self._storage(known, patience).mount()
            if known.private_switch is not None:
                make_switch(self._session, known.private_switch, patience)

    def register(
        self, state: TargetState, hardware: Mapping[str, Any], cancel: CancelToken
    ) -> RegisteredVm:
        known, patience = HypervState.parse(state), patience_until(cancel)
        captured = for_hyperv(hardware).vm.vm
        with hyperv_calls(self.name, cancel):
            making = self._storage(known, patience).making()
            made = find_marked(self._session, known.marker, patience)
            key = (
                made.id
                if made is not None
                else new_vm(
                    self._session,
                    captured,
                    marker=known.marker,
                    name=known.vm_name,
                    folder=making.folder,
                    adapters=known.new_adapters,
                    keep_identity=known.keep_identity,
                    patience=patience,
                )
            )
            attach(self._session, key, known.marker, making.disks, patience)
        return RegisteredVm(key=key, reasons=(_NEW_TPM,) if captured.security.tpm else ())

    def power_on(self, state: TargetState, key: str, cancel: CancelToken) -> None:
        with hyperv_calls(self.name, cancel):
            set_power(self._session, key, "on", patience_until(cancel))

    def wait_alive(self, key: str, *, within_s: float, cancel: CancelToken) -> GuestLife:
        patience, deadline_s = patience_until(cancel), min(within_s, _WITHOUT_SERVICES_S)
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
            return take_screenshot(self._session, key, patience_until(cancel))

    # Leaving

    def move(
        self,
        state: TargetState,
        key: str,
        request: MoveRequest,
        downtime: Downtime,
        cancel: CancelToken,
        on_progress: Callable[[int], None],
    ) -> tuple[Reason, ...]:
        """The host says nothing of its progress. `request.datastore`: a folder of the host."""
        known = HypervState.parse(state)
        storage = self._storage(known, patience_until(cancel))
        with hyperv_calls(self.name, cancel):
            vm = read_vm(self._session, key, patience_until(cancel))
            if not storage.holds(vm):
                return ()
            if known.marker not in vm.notes:
                raise StillThereError(f"{self.name}: {vm.name} is not this session's any more")
            storage.move(vm, request.datastore, downtime, allow_downtime=request.allow_downtime)
        on_progress(100)
        return ()

    def left_behind(self, state: TargetState, key: str) -> tuple[str, ...]:
        storage = self._storage(HypervState.parse(state), Patience())
        with hyperv_calls(self.name):
            return storage.holds(read_vm(self._session, key, Patience()))

    def settle(self, key: str, hardware: Mapping[str, Any]) -> None:
        notes = for_hyperv(hardware).vm.vm.notes
        with hyperv_calls(self.name):
            vm = read_vm(self._session, key, Patience())
            found = next((word for word in vm.notes.split() if Marker.parse(word)), None)
            if found is not None:
                unmark(self._session, vm, found, notes, Patience())

    def take_away(self, state: TargetState, key: str | None) -> tuple[Reason, ...]:
        known, patience = HypervState.parse(state), Patience()
        storage = self._storage(known, patience)
        with hyperv_calls(self.name):
            vm = find_marked(self._session, known.marker, patience)
            if vm is None:
                return self._left(storage, key)
            if not storage.holds(vm) and vm.disks:
                return (_HAS_LEFT,)
            if not all(storage.holds_disk(disk) for disk in vm.disks):
                raise StillThereError(f"{self.name}: {vm.name} has left the session in part")
            remove(self._session, vm.id, known.marker, patience)
        return ()

    def unmount(self, state: TargetState) -> tuple[Reason, ...]:
        known, patience = HypervState.parse(state), Patience()
        storage = self._storage(known, patience)
        with hyperv_calls(self.name):
            for vm in list_vms(self._session, patience):
                if storage.is_used_by(vm):
                    raise StillThereError(f"{self.name}: {vm.name} is on the session's storage")
            storage.unmount()
            if known.private_switch is None:
                return ()
            names = remove_switch(self._session, known.private_switch, patience)
        return (_switch_in_use(known.private_switch.name, names),) if names else ()

    def _left(self, storage: SessionStorage, key: str | None) -> tuple[Reason, ...]:
        if key is None:
            return ()
        try:
            vm = read_vm(self._session, key, Patience())
        except GoneError:
            return ()
        if storage.holds(vm):
            raise StillThereError(f"{self.name}: {vm.name} is not this session's any more")
        return (_HAS_LEFT,)

    def _storage(self, known: HypervState, patience: Patience) -> SessionStorage:
        return storage_of(
            Side(
                session=self._session,
                vm_folder=self._host.facts.vm_folder,
                known=known,
                chap=self._chap,
                share_account=self._share_account,
                patience=patience,
            )
        )


def _switch_in_use(switch: str, names: tuple[str, ...]) -> Reason:
    return Reason(
        "instant.network-stays",
        f"the private switch {switch} is in use by {', '.join(names)}",
        "connect the VM to another network, then remove what has that name there",
    )


_NEW_TPM = Reason(
    "instant.new-tpm",
    "the VM has a new, empty TPM: the host's own keys protect the old one's content",
    "have the recovery keys of its disk encryption ready",
)
_HAS_LEFT = Reason(
    "instant.vm-left",
    "the VM is no longer on the session's storage, so it was left alone",
    "remove it on the host if it is not wanted",
)
