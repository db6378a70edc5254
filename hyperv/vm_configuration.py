"""The configuration of a VM as a captured one has it: of one that is there, and the rest of a new.

`configure_vm` sets processors, memory, secure boot, the disk to boot from and the switches of
adapters; disks, controllers and adapters are neither added nor taken away. `apply_settings` gives a
new VM what `new_vm` has no parameters for: weights and limits, start and stop actions, guards.
Thread model: functions; they block. Source: scripts `configure_vm`, `apply_settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperv.captured_vm import CapturedVm
from hyperv.host_session import HostSession
from hyperv.patience import Patience
from hyperv.script_types import Answer

_START_NOTHING = 2
_USUAL_TEMPLATE = "MicrosoftWindows"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlace:
    controller: str
    controller_number: int
    location: int


class _Configured(Answer):
    id: str


class _Applied(Answer):
    refused: list[str]


def memory_parameters(captured: CapturedVm) -> Mapping[str, object]:
    """As `new_vm` and `configure_vm` take it."""
    return {
        "startup_bytes": captured.memory.startup_bytes,
        "minimum_bytes": captured.memory.minimum_bytes,
        "maximum_bytes": captured.memory.maximum_bytes,
        "dynamic": captured.memory.dynamic,
    }


def secure_boot_parameters(captured: CapturedVm) -> Mapping[str, object]:
    """As `new_vm` and `configure_vm` take it. A host before 2016 names no template: it has one."""
    firmware = captured.firmware
    if firmware is None or not firmware.secure_boot:
        return {"secure_boot": False, "secure_boot_template": ""}
    return {
        "secure_boot": True,
        "secure_boot_template": firmware.secure_boot_template or _USUAL_TEMPLATE,
    }


def configure_vm(
    host: HostSession,
    vm_id: str,
    captured: CapturedVm,
    *,
    boot_disk: DiskPlace | None,
    switches: Mapping[str, str],
    patience: Patience,
) -> None:
    """Set a VM that is off back; `switches`: name or empty, by the id of an adapter it has now.

    Raises: ScriptError, HypervError.
    """
    parameters = {
        "vm_id": vm_id,
        "processors": captured.processor.count,
        "nested": captured.processor.nested,
        "memory": memory_parameters(captured),
        **secure_boot_parameters(captured),
        "boot_disk": None
        if boot_disk is None
        else {
            "controller": boot_disk.controller,
            "controller_number": boot_disk.controller_number,
            "location": boot_disk.location,
        },
        "adapters": [{"id": id, "switch_name": name} for id, name in switches.items()],
    }
    host.call("configure_vm", parameters, _Configured, patience=patience)


def apply_settings(
    host: HostSession,
    vm_id: str,
    marker: str,
    captured: CapturedVm,
    *,
    is_copy: bool,
    patience: Patience,
) -> list[str]:
    """Return the groups of settings that the host refused; a copy is not started with the host,
    as its original is. Raises HypervError."""
    parameters = {
        "vm_id": vm_id,
        "marker": marker,
        "start_action": _START_NOTHING if is_copy else captured.start_action,
        "start_delay_s": captured.start_delay_s,
        "stop_action": captured.stop_action,
        "checkpoint_type": captured.checkpoint_type,
        "automatic_checkpoints": captured.automatic_checkpoints,
        "processor": {
            "reserve": captured.processor.reserve,
            "limit": captured.processor.limit,
            "weight": captured.processor.weight,
        },
        "memory": {"buffer": captured.memory.buffer, "weight": captured.memory.weight},
        "adapters": [
            {
                "mac_spoofing": adapter.mac_spoofing,
                "dhcp_guard": adapter.dhcp_guard,
                "router_guard": adapter.router_guard,
                "device_naming": adapter.device_naming,
            }
            for adapter in captured.adapters
        ],
    }
    return host.call("apply_settings", parameters, _Applied, patience=patience).refused
