"""The configuration of a VM that is there set back to a captured one: `configure_vm`.

Set are processors, memory, secure boot, the disk to boot from and the switches of adapters; disks,
controllers and adapters are neither added nor taken away.
Thread model: functions; they block. Source: `scripts/configure_vm.ps1`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperv.captured_vm import CapturedVm
from hyperv.host_session import HostSession
from hyperv.patience import Patience
from hyperv.script_types import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlace:
    controller: str
    controller_number: int
    location: int


class _Configured(Answer):
    id: str


def memory_parameters(captured: CapturedVm) -> Mapping[str, object]:
    """As `new_vm` and `configure_vm` take it."""
    return {
        "startup_bytes": captured.memory.startup_bytes,
        "minimum_bytes": captured.memory.minimum_bytes,
        "maximum_bytes": captured.memory.maximum_bytes,
        "dynamic": captured.memory.dynamic,
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
    firmware = captured.firmware
    parameters = {
        "vm_id": vm_id,
        "processors": captured.processor.count,
        "nested": captured.processor.nested,
        "memory": memory_parameters(captured),
        "secure_boot": firmware.secure_boot if firmware else False,
        "secure_boot_template": firmware.secure_boot_template if firmware else "",
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
