"""What this machine gives to the sources: a VDDK, if the customer brought one, and its devices."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.sources.vsphere_transports import SourceTools, appliance_disks

DEVICE_ROOT = "HOLDFAST_DEVICE_ROOT"
"""Where /sys and /dev of the appliance VM are seen, for an appliance that runs in a container."""


def source_tools(home: Path, vddk: Path | None = None) -> SourceTools:
    """`vddk`: where it was unpacked; HOME/vddk if that exists."""
    usual = home / "vddk"
    return SourceTools(
        vddk_folder=vddk or (usual if usual.is_dir() else None),
        appliance_disks=appliance_disks(Path(os.environ.get(DEVICE_ROOT, "/"))),
    )
