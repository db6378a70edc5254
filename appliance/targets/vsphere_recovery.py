"""Instant recovery on vSphere: a `WitnessedTarget` over a logged-in vCenter or ESXi host.

    plan -> mount -> register -> power_on -> wait_alive -> … -> move -> settle -> unmount
                                                           or   take_away     -> unmount

A VM is the session's if the .vmx it was registered from lies on the session's datastore, or if it
carries the session's mark; it is found again by either. One that has left the datastore is an
ordinary VM and never touched by a discard.
Thread model: one thread per session; calls block.
Source: design notes section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from appliance.base.errors import UsageError
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.exports.datastore.session import Presentation
from appliance.sources.vsphere_host import VsphereHost
from appliance.sources.vsphere_reasons import reasons, vsphere_calls
from appliance.targets.contract import NoSuchPlaceError
from appliance.targets.point_hardware import for_vsphere
from appliance.targets.recovery import (
    Downtime,
    DowntimeNeededError,
    GuestLife,
    Life,
    MoveRequest,
    PresentationError,
    RecoveryPlan,
    RecoveryRequest,
    RegisteredVm,
    StillThereError,
    TargetState,
)
from appliance.targets.vsphere_recovery_plan import SessionNames, VsphereState, plan_recovery
from vmware.datastores import DatastoreFacts, list_datastores
from vmware.errors import BusyError, ObjectGoneError, VsphereError
from vmware.findings import Finding
from vmware.heartbeat import wait_for_heartbeat
from vmware.inventory import read_vm
from vmware.isolated_network import add_isolated_network, remove_isolated_network
from vmware.nas_datastore import find_nas, mount_nas, unmount_nas
from vmware.new_vm import unregister_vm
from vmware.patience import Patience
from vmware.power import Origin, power_off, power_on, power_state, shut_down
from vmware.register import (
    find_registered,
    is_marked,
    prepare_start,
    refuse_strangers,
    register_vm,
    settle_moved,
    settle_registration,
)
from vmware.relocate import (
    RELOCATE_DEADLINE_S,
    LiveMoveRefusedError,
    files_on,
    relocate_vm,
)
from vmware.running_tasks import TaskKind, settle
from vmware.screenshot import take_screenshot

log = EventLog(__name__)

NAME_PREFIX = "holdfast-"
WITHOUT_TOOLS_S = 120.0
SHUTDOWN_S = 300.0


class VsphereRecovery:
    """A `WitnessedTarget`. Its host is somebody else's to close."""

    def __init__(self, host: VsphereHost, appliance_id: str) -> None:
        self._host = host
        self._session = host.session
        self._appliance_id = appliance_id

    @property
    def name(self) -> str:
        return self._host.name

    def plan(self, request: RecoveryRequest) -> RecoveryPlan:
        names = SessionNames(
            datastore=f"{NAME_PREFIX}{request.session_id}",
            export_path=f"/holdfast/{request.session_id}",
            mark=f"{self._appliance_id}/{request.session_id}",
        )
        if request.presentation not in (None, Presentation.NFS):
            raise PresentationError(f"{self.name}: {request.presentation} is for Hyper-V hosts")
        with vsphere_calls(self.name):
            return plan_recovery(self._session, names, request)

    def mount(self, state: TargetState, cancel: CancelToken) -> None:
        known = VsphereState.parse(state)
        with vsphere_calls(self.name, cancel):
            mount_nas(self._session, known.nas, known.hosts, patience=_patience(cancel))
            if known.isolated:
                add_isolated_network(self._session, known.host, known.isolated)

    def register(
        self, state: TargetState, hardware: Mapping[str, Any], cancel: CancelToken
    ) -> RegisteredVm:
        known = VsphereState.parse(state)
        with vsphere_calls(self.name, cancel):
            captured = for_vsphere(hardware).vm
            key = register_vm(
                self._session,
                known.vmx_path,
                name=known.vm_name,
                folder_moref=known.folder,
                pool_moref=known.pool,
                host_moref=known.host,
                datacenter_moref=known.datacenter,
                patience=_patience(cancel),
            )
            refuse_strangers(self._session, key, known.mark)
            found: tuple[Finding, ...] = ()
            if power_state(self._session, key) == "poweredOff":
                found = prepare_start(self._session, key, captured, known.chosen())
        return RegisteredVm(key=key, reasons=reasons(found))

    def power_on(self, state: TargetState, key: str, cancel: CancelToken) -> None:
        origin = Origin.MOVED if VsphereState.parse(state).same_vm else Origin.COPIED
        with vsphere_calls(self.name, cancel):
            power_on(self._session, key, origin, patience=_patience(cancel))

    def wait_alive(self, key: str, *, within_s: float, cancel: CancelToken) -> GuestLife:
        with vsphere_calls(self.name, cancel):
            found = wait_for_heartbeat(
                self._session,
                key,
                deadline_s=within_s,
                without_tools_s=min(within_s, WITHOUT_TOOLS_S),
                patience=_patience(cancel),
            )
        return GuestLife(
            life=Life(found.life.value), host_name=found.host_name, address=found.address
        )

    def machine_of(self, state: TargetState) -> str:
        return VsphereState.parse(state).host_name

    def screenshot(self, state: TargetState, key: str, cancel: CancelToken) -> bytes:
        with vsphere_calls(self.name, cancel):
            return take_screenshot(self._session, key, patience=_patience(cancel))

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
        known = VsphereState.parse(state)
        with vsphere_calls(self.name, cancel):
            settle(
                self._session,
                key,
                TaskKind.RELOCATE,  # that a killed or cancelled finalise had asked for
                _patience(cancel),
                deadline_s=RELOCATE_DEADLINE_S,
            )
            if not files_on(self._session, key, known.nas.name):
                return ()
            refuse_strangers(self._session, key, known.mark)
            datastore = self._production(key, request)
            if downtime.has_begun and power_state(self._session, key) == "poweredOff":
                return self._move_cold(known, key, datastore, downtime, cancel, on_progress)
            try:
                self._relocate(key, datastore, cancel, on_progress)
            except LiveMoveRefusedError as error:
                if not request.allow_downtime:
                    raise DowntimeNeededError(f"{self.name}: {error}") from error
                return self._move_cold(known, key, datastore, downtime, cancel, on_progress)
        return ()

    def left_behind(self, state: TargetState, key: str) -> tuple[str, ...]:
        known = VsphereState.parse(state)
        with vsphere_calls(self.name):
            return files_on(self._session, key, known.nas.name)

    def settle(self, key: str, hardware: Mapping[str, Any]) -> None:
        with vsphere_calls(self.name):
            settle_moved(self._session, key, for_vsphere(hardware).vm)

    def take_away(self, state: TargetState, key: str | None) -> tuple[Reason, ...]:
        known = VsphereState.parse(state)
        with vsphere_calls(self.name):
            settle_registration(self._session, known.folder, Patience())
            found = find_registered(self._session, known.vmx_path, known.datacenter)
            if found is None:
                return self._left(known, key)
            refuse_strangers(self._session, found, known.mark)
            power_off(self._session, found)
            unregister_vm(self._session, found)
        return ()

    def unmount(self, state: TargetState) -> tuple[Reason, ...]:
        known = VsphereState.parse(state)
        told: tuple[Reason, ...] = ()
        with vsphere_calls(self.name):
            there = find_nas(self._session, known.nas)
            if there is not None and there.vm_morefs:
                raise StillThereError(
                    f"{self.name}: VMs use the datastore {known.nas.name}: "
                    f"{', '.join(there.vm_morefs)}"
                )
            unmount_nas(self._session, known.nas)
            if known.isolated:
                try:
                    remove_isolated_network(self._session, known.host, known.isolated)
                except BusyError as error:
                    told = (_network_in_use(known, error),)
        return told

    # Inside

    def _left(self, known: VsphereState, key: str | None) -> tuple[Reason, ...]:
        """No VM is registered from the datastore's .vmx: has ours gone elsewhere?"""
        if key is None or not is_marked(self._session, key, known.mark):
            return ()
        try:
            behind = files_on(self._session, key, known.nas.name)
        except ObjectGoneError:
            return ()
        if behind:
            raise StillThereError(
                f"{self.name}: {known.vm_name} has left the datastore in part; finalise it, or "
                f"move these back or on: {', '.join(behind[:5])}"
            )
        return (
            Reason(
                "instant.vm-stays",
                f"{known.vm_name} has left the session's datastore and is not taken away",
                "delete it in the vSphere client if it is not wanted",
            ),
        )

    def _production(self, key: str, request: MoveRequest) -> DatastoreFacts:
        """The vSphere datastore to move to, one that the VM's host can write to."""
        host = read_vm(self._session, key).host_moref
        offered = [
            item
            for item in list_datastores(self._session)
            if item.accessible
            and host in item.writable_hosts
            and not item.name.startswith(NAME_PREFIX)
        ]
        named = [
            item for item in offered if not request.datastore or item.name == request.datastore
        ]
        if not named:
            there = ", ".join(item.name for item in offered) or "none"
            wanted = f" {request.datastore!r}" if request.datastore else ""
            raise NoSuchPlaceError(
                f"{self.name}: no vSphere datastore{wanted} that the VM's host can write to "
                f"(there are: {there})"
            )
        best = min(
            named,
            key=lambda item: (
                item.free_bytes < request.need_bytes,
                item.name != request.preferred,
                -item.free_bytes,
            ),
        )
        if best.free_bytes < request.need_bytes:
            raise UsageError(
                f"{self.name}: {request.need_bytes >> 20} MiB are needed; the vSphere datastore "
                f"{best.name} has {best.free_bytes >> 20} MiB"
            )
        return best

    def _relocate(
        self,
        key: str,
        datastore: DatastoreFacts,
        cancel: CancelToken,
        on_progress: Callable[[int], None],
    ) -> None:
        relocate_vm(
            self._session,
            key,
            datastore.moref,
            patience=_patience(cancel),
            on_progress=on_progress,
        )

    def _move_cold(
        self,
        known: VsphereState,
        key: str,
        datastore: DatastoreFacts,
        downtime: Downtime,
        cancel: CancelToken,
        on_progress: Callable[[int], None],
    ) -> tuple[Reason, ...]:
        """It is started again whether the move succeeded or not; by the next finalise, where the
        shutdown itself was not seen to end."""
        downtime.begins()
        shut_down(self._session, key, within_s=SHUTDOWN_S, patience=_patience(cancel))
        try:
            self._relocate(key, datastore, cancel, on_progress)
        finally:
            origin = Origin.MOVED if known.same_vm else Origin.COPIED
            try:
                power_on(self._session, key, origin)
                downtime.ends()
            except VsphereError as error:
                log.error("a VM that was moved is off", vm=key, error=error)
                raise
        return (
            Reason(
                "instant.moved-cold",
                "the VM was shut down, moved and started again, because it could not move running",
                "see in vSphere whether its licence covers Storage vMotion",
            ),
        )


def _patience(cancel: CancelToken) -> Patience:
    return Patience(cancelled=lambda: cancel.cancelled)


def _network_in_use(known: VsphereState, error: BusyError) -> Reason:
    return Reason(
        "instant.network-stays",
        f"the isolated network {known.isolated} on {known.host_name} is in use: {error}",
        "connect the VM to another network, then remove what has that name there",
    )
