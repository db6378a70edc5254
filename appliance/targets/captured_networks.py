"""The networks that a VM was on when it was backed up: what a restore can map to others.

Reads the hardware document of a recovery point, of either hypervisor. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.targets.hyperv_plan import captured_switches
from appliance.targets.translation import ForeignPointError
from vmware.captured_vm import CapturedVm
from vmware.errors import VsphereError


def captured_networks(hardware: Mapping[str, Any]) -> tuple[str, ...]:
    """Their names, each once; the adapter's where the network had none. Empty: not known."""
    try:
        return captured_switches(hardware)
    except ForeignPointError:
        pass
    try:
        nics = CapturedVm.parse(hardware).nics
    except (VsphereError, ValueError):
        return ()
    return tuple(dict.fromkeys(nic.names[0] for nic in nics if nic.names))
