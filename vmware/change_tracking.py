"""Turning changed block tracking on where that is safe, and resetting it where it is in doubt.

Invariant: the flag is never set while the VM has a snapshot. Tracking that starts above a snapshot
misses changes without any error (KB 320557). Between the look and the reconfigure somebody else may
take one, so the reconfigure carries the configuration version that was looked at.

A running VM starts tracking at its next stun, so a snapshot is made and removed for that; it
carries our marker with its own purpose. Changes before that moment are unknown to tracking: the
next backup reads everything anyway, having no base.

Source: vSphere API reference, VirtualMachineConfigSpec.changeTrackingEnabled; KB 320557.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pyVmomi import vim

from vmware.errors import VsphereError
from vmware.findings import Finding, Weight
from vmware.marker import Marker, Purpose
from vmware.patience import Patience
from vmware.properties import fetch_one
from vmware.quiesce import Ladder, Rung
from vmware.session import Session
from vmware.snapshot_tree import flatten
from vmware.snapshots import create_snapshot, remove_snapshot
from vmware.tasks import wait_for_task

DEADLINE_S = 900.0

_LOWEST_HARDWARE = 7
_PREFIXES: tuple[tuple[Any, str], ...] = (
    (vim.vm.device.VirtualSCSIController, "scsi"),
    (vim.vm.device.VirtualSATAController, "sata"),
    (vim.vm.device.VirtualNVMEController, "nvme"),
    (vim.vm.device.VirtualIDEController, "ide"),
)


class Tracking(StrEnum):
    ACTIVE = "active"  # it was on already
    STARTED = "started"  # it is on from now
    OFF = "off"  # the findings say why


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingOutcome:
    tracking: Tracking
    findings: tuple[Finding, ...] = ()


def enable_tracking(
    session: Session,
    vm_moref: str,
    marker: Marker,
    *,
    patience: Patience | None = None,
    deadline_s: float = DEADLINE_S,
) -> TrackingOutcome:
    """Turn tracking on for all disks, if the VM can and has no snapshot. Idempotent.

    Raises: VsphereError, CancelledError; the VM may have tracking on then, and no snapshot of ours.
    """
    switch = _Switch(session, vm_moref, marker, patience or Patience(), deadline_s)
    config = switch.look()
    if config.get("config.changeTrackingEnabled"):
        return TrackingOutcome(tracking=Tracking.ACTIVE, findings=_untracked_disks(config))
    obstacle = _obstacle(config)
    if obstacle is not None:
        return TrackingOutcome(tracking=Tracking.OFF, findings=(obstacle,))
    return switch.turn_on(config)


def reset_tracking(
    session: Session,
    vm_moref: str,
    marker: Marker,
    *,
    patience: Patience | None = None,
    deadline_s: float = DEADLINE_S,
) -> TrackingOutcome:
    """Turn tracking off and on again, so that every earlier change id becomes void.

    Raises: as `enable_tracking`; tracking may be off then.
    """
    switch = _Switch(session, vm_moref, marker, patience or Patience(), deadline_s)
    config = switch.look()
    obstacle = _obstacle(config)
    if obstacle is not None:
        return TrackingOutcome(tracking=Tracking.OFF, findings=(obstacle,))
    if config.get("config.changeTrackingEnabled"):
        switch.set_flag(config, wanted=False)
        switch.stun(config)
        config = switch.look()
        obstacle = _obstacle(config)  # somebody may have been quicker
        if obstacle is not None:
            return TrackingOutcome(tracking=Tracking.OFF, findings=(obstacle,))
    return switch.turn_on(config)


class _Switch:
    """One VM's flag; used once, by one thread."""

    def __init__(
        self,
        session: Session,
        vm_moref: str,
        marker: Marker,
        patience: Patience,
        deadline_s: float,
    ) -> None:
        self._session = session
        self._moref = vm_moref
        self._vm = session.object(vim.VirtualMachine, vm_moref)
        self._marker = replace(marker, purpose=Purpose.TRACKING)
        self._patience = patience
        self._deadline_s = deadline_s

    def look(self) -> Mapping[str, Any]:
        paths = (
            "capability.changeTrackingSupported",
            "config.version",
            "config.changeTrackingEnabled",
            "config.changeVersion",
            "config.extraConfig",
            "config.hardware.device",
            "runtime.powerState",
            "snapshot",
        )
        return fetch_one(self._session, f"look at {self._moref}", self._vm, paths).values

    def turn_on(self, config: Mapping[str, Any]) -> TrackingOutcome:
        self.set_flag(config, wanted=True)
        findings: tuple[Finding, ...] = ()
        try:
            self.stun(config)
        except VsphereError as error:
            self._patience.check()
            findings = (
                Finding(
                    "cbt.not-activated",
                    f"tracking is enabled, but the snapshot that starts it failed: {error}",
                    "none: it starts with the snapshot of the next backup",
                ),
            )
        seen = self.look()
        if not seen.get("config.changeTrackingEnabled"):
            return TrackingOutcome(tracking=Tracking.OFF, findings=(*findings, _DID_NOT_STICK))
        return TrackingOutcome(
            tracking=Tracking.STARTED, findings=(*findings, *_untracked_disks(seen))
        )

    def set_flag(self, config: Mapping[str, Any], *, wanted: bool) -> None:
        """Raises BusyError: the configuration was changed since `config` was read."""
        what = f"turn change tracking of {self._moref} {'on' if wanted else 'off'}"
        spec = vim.vm.ConfigSpec(changeTrackingEnabled=wanted)
        if config.get("config.changeVersion"):
            spec.changeVersion = config["config.changeVersion"]
        task = self._session.call(what, self._vm.ReconfigVM_Task, spec)
        wait_for_task(
            self._session,
            task,
            what=what,
            deadline_s=self._deadline_s,
            cancelled=self._patience.cancelled,
        )

    def stun(self, config: Mapping[str, Any]) -> None:
        """Make a running VM take notice of the flag; one that is off has already."""
        if str(config.get("runtime.powerState")) != "poweredOn":
            return
        taken = create_snapshot(
            self._session,
            self._moref,
            self._marker,
            ladder=Ladder(top=Rung.CRASH, bottom=Rung.CRASH),
            patience=self._patience,
            deadline_s=self._deadline_s,
        )
        remove_snapshot(
            self._session,
            self._moref,
            taken.moref,
            appliance_id=self._marker.appliance_id,
            patience=self._patience.unstoppable(),
        )


def _obstacle(config: Mapping[str, Any]) -> Finding | None:
    if not config.get("capability.changeTrackingSupported"):
        return Finding(
            "cbt.not-supported",
            "the VM cannot track changed blocks",
            "none: every backup reads the whole disks",
        )
    version = str(config.get("config.version", ""))
    number = version.removeprefix("vmx-")
    if number.isdigit() and int(number) < _LOWEST_HARDWARE:
        return Finding(
            "cbt.old-hardware",
            f"virtual hardware {version} is too old to track changed blocks",
            "upgrade the VM's hardware version",
        )
    if flatten(config.get("snapshot")):
        return Finding(
            "cbt.has-snapshots",
            "tracking cannot be started safely while the VM has snapshots",
            "remove the VM's snapshots; until then every backup reads the whole disks",
        )
    return None


def _untracked_disks(config: Mapping[str, Any]) -> tuple[Finding, ...]:
    """Disks whose own switch is off although the VM's is on."""
    options = {
        str(option.key).lower(): str(option.value).strip().lower()
        for option in config.get("config.extraConfig") or []
    }
    devices: list[Any] = config.get("config.hardware.device") or []
    prefixes = {
        device.key: f"{prefix}{device.busNumber}"
        for device in devices
        for kind, prefix in _PREFIXES
        if isinstance(device, kind)
    }
    disks: list[Any] = [d for d in devices if isinstance(d, vim.vm.device.VirtualDisk)]
    return tuple(
        Finding(
            "cbt.disk-switched-off",
            f"tracking is switched off for {disk.deviceInfo.label}",
            f"remove {where}.ctkEnabled from the VM's advanced settings, or set it to TRUE",
        )
        for disk in disks
        for where in (f"{prefixes.get(disk.controllerKey)}:{disk.unitNumber}",)
        if options.get(f"{where}.ctkenabled", "true") in ("false", "0")
    )


_DID_NOT_STICK = Finding(
    "cbt.did-not-stick",
    "vSphere took the change, but tracking is still off",
    "look at the VM's events",
    Weight.WARNING,
)
