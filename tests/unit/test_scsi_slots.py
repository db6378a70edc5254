"""Free places on the appliance's SCSI controllers."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from vmware.transports.scsi_slots import Slot, disk_at, free_slot

Disk = vim.vm.device.VirtualDisk


def controller(key: int, bus: int, *, shared: str = "noSharing") -> Any:
    return vim.vm.device.ParaVirtualSCSIController(
        key=key, busNumber=bus, sharedBus=shared, scsiCtlrUnitNumber=7
    )


def disk(key: int, controller_key: int, unit: int, *files: str) -> Any:
    backing = None
    for name in reversed(files or ("[ds] x.vmdk",)):
        backing = Disk.FlatVer2BackingInfo(fileName=name, diskMode="persistent", parent=backing)
    return Disk(
        key=key, controllerKey=controller_key, unitNumber=unit, capacityInKB=1, backing=backing
    )


def test_all_places_but_the_controllers_own_are_given_once() -> None:
    """15 disks fit on a controller; unit 7 is the controller."""
    devices = [controller(1000, 0)]
    units = []
    while (slot := free_slot(devices)) is not None:
        units.append(slot.unit_number)
        devices.append(disk(2000 + len(devices), 1000, slot.unit_number))
    assert units == [n for n in range(16) if n != 7]


def test_disks_are_spread_over_the_controllers() -> None:
    """The emptiest controller is next, so that queues are shared."""
    devices = [controller(1000, 0), controller(1001, 1), disk(2000, 1000, 0)]
    assert free_slot(devices) == Slot(controller_key=1001, bus_number=1, unit_number=0)


def test_a_shared_bus_is_not_used() -> None:
    """A cluster's bus is not ours to add disks to."""
    assert free_slot([controller(1000, 0, shared="physicalSharing")]) is None


def test_other_controllers_do_not_count() -> None:
    """No SCSI, no place; keys are whatever the server says."""
    ide = vim.vm.device.VirtualIDEController(key=200, busNumber=0)
    assert free_slot([ide]) is None
    assert free_slot([ide, controller(5, 2)]) == Slot(controller_key=5, bus_number=2, unit_number=0)


def test_a_disk_is_known_by_place_and_file() -> None:
    """Also when the server shows a private log above the file; never by the place alone."""
    place = Slot(controller_key=1000, bus_number=0, unit_number=3)
    devices = [controller(1000, 0), disk(2001, 1000, 3, "[ds] a-log.vmdk", "[ds] a.vmdk")]
    found = disk_at(devices, place, "[ds] a.vmdk")
    assert found is not None
    assert found.key == 2001
    assert disk_at(devices, place, "[ds] b.vmdk") is None
    elsewhere = Slot(controller_key=1000, bus_number=0, unit_number=4)
    assert disk_at(devices, elsewhere, "[ds] a.vmdk") is None
