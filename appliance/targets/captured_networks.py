"""The networks that a VM was on when it was backed up: what a restore can map to others.

Reads the hardware document of a recovery point, of either hypervisor. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.base.errors import UsageError
from appliance.targets.point_hardware import for_vsphere
from vmware.errors import VsphereError


def captured_networks(hardware: Mapping[str, Any]) -> tuple[str, ...]:
    """Their names, each once; the adapter's where the network had none. Empty: not known."""
    try:
        nics = for_vsphere(hardware).vm.nics
    except (UsageError, VsphereError, ValueError):
        return ()
    return tuple(dict.fromkeys(nic.names[0] for nic in nics if nic.names))
