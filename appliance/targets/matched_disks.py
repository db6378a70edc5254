"""Which disk of a configuration captured on vSphere each disk of the point is. Pure."""

from __future__ import annotations

from appliance.base.errors import UsageError
from appliance.targets.contract import WantedDisk
from vmware.captured_vm import CapturedDisk, CapturedVm
from vmware.vm_spec_devices import disk_address


def matched_disks(captured: CapturedVm, disks: tuple[WantedDisk, ...]) -> dict[int, CapturedDisk]:
    """The captured disk of each wanted one, by number. Raises UsageError."""
    places = {disk_address(captured, disk): disk for disk in captured.disks}
    found: dict[int, CapturedDisk] = {}
    for wanted in disks:
        disk = places.get(wanted.place)
        if disk is None or disk.capacity_bytes != wanted.size_bytes:
            raise UsageError(
                f"{wanted.label}: the captured configuration has no disk of "
                f"{wanted.size_bytes} bytes at {wanted.place or 'an unknown place'}; "
                "get the disk back with `restore image`"
            )
        found[wanted.number] = disk
    return found
