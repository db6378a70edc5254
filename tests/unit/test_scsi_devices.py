"""Which guest device is the disk that was attached: exactly one, or none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.guest_scsi import GuestScsi
from vmware.transports.scsi_devices import ScsiDevices, WantedDevice

UUID = "6000C29a-b3d1-4a01-9c5f-0123456789ab"
OTHER = "6000C29a-b3d1-4a01-9c5f-0123456789ac"
CONTENT = bytes(8192)
WANTED = WantedDevice(unit_number=3, size_bytes=8192, uuid=UUID, pci_slot=192)


@pytest.fixture
def guest(tmp_path: Path) -> GuestScsi:
    return GuestScsi(tmp_path)


def find(
    guest: GuestScsi, wanted: WantedDevice = WANTED, before: frozenset[str] = frozenset()
) -> list[str]:
    return [device.name for device in ScsiDevices(guest.root).find(wanted, before)]


def test_a_device_of_the_right_place_size_and_name_is_it(guest: GuestScsi) -> None:
    """Address, size and world-wide name agree."""
    name = guest.plug(CONTENT, unit=3, uuid=UUID)
    (device,) = ScsiDevices(guest.root).find(WANTED, frozenset())
    assert (device.name, device.address) == (name, "2:0:3:0")
    assert device.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("unit", "uuid", "size"), [(4, UUID, 8192), (3, OTHER, 8192), (3, UUID, 4096), (3, UUID, 8704)]
)
def test_one_wrong_hint_and_it_is_not(guest: GuestScsi, unit: int, uuid: str, size: int) -> None:
    """A device that is nearly right holds another disk's data."""
    guest.plug(CONTENT, unit=unit, uuid=uuid, size=size)
    assert find(guest) == []


def test_what_was_there_before_the_attach_is_not(guest: GuestScsi) -> None:
    """The disk came with the attach, so an older device cannot be it."""
    guest.plug(CONTENT, unit=3, uuid=UUID)
    assert find(guest, before=ScsiDevices(guest.root).addresses()) == []


def test_without_a_name_the_pci_slot_must_prove_it(guest: GuestScsi) -> None:
    """disk.EnableUUID may be off; then the controller is proven by its slot, or nothing is."""
    guest.shows_wwn = False
    name = guest.plug(CONTENT, unit=3, uuid=UUID)
    assert find(guest) == [name]
    assert find(guest, replace(WANTED, pci_slot=None)) == []
    assert find(guest, replace(WANTED, pci_slot=224)) == []


def test_two_clones_are_told_apart_by_their_controller(guest: GuestScsi) -> None:
    """Clones share uuid, size and maybe unit; the PCI slot decides, or both are returned."""
    guest.add_host(5, slot=224)
    guest.plug(CONTENT, unit=3, uuid=UUID, host=5)
    name = guest.plug(CONTENT, unit=3, uuid=UUID, host=2)
    assert find(guest) == [name]
    assert len(find(guest, replace(WANTED, pci_slot=None))) == 2


def test_a_wrong_pci_slot_does_not_hide_a_named_device(guest: GuestScsi) -> None:
    """The slot numbers of VMware and Linux are not promised to agree; a world-wide name is."""
    name = guest.plug(CONTENT, unit=3, uuid=UUID)
    assert find(guest, replace(WANTED, pci_slot=160)) == [name]


def test_the_name_may_come_from_udev(guest: GuestScsi) -> None:
    """Older kernels show no wwid in sysfs, but udev links /dev/disk/by-id."""
    guest.shows_wwn = False
    name = guest.plug(CONTENT, unit=3)
    plain = UUID.lower().replace("-", "")
    (guest.root / f"dev/disk/by-id/wwn-0x{plain}").symlink_to(f"../../{name}")
    assert find(guest, replace(WANTED, pci_slot=None)) == [name]
    assert find(guest, replace(WANTED, pci_slot=None, uuid=OTHER)) == []


def test_a_device_without_its_node_is_not_ready(guest: GuestScsi) -> None:
    """udev makes the node a moment later."""
    name = guest.plug(CONTENT, unit=3, uuid=UUID)
    (guest.root / "dev" / name).unlink()
    assert find(guest) == []


def test_odd_names_in_sysfs_never_become_paths(guest: GuestScsi) -> None:
    """Only plain device names and addresses count."""
    (guest.root / "sys/class/scsi_device/2:0:3:0/device/block/..sda").mkdir(parents=True)
    (guest.root / "sys/class/scsi_device/2:1:3:0/device/block/sdq").mkdir(parents=True)
    assert find(guest) == []


def test_a_rescan_asks_every_host(guest: GuestScsi) -> None:
    """The Linux number of the controller need not be known."""
    ScsiDevices(guest.root).rescan()
    assert guest.rescans() == 2


def test_a_machine_without_scsi_has_nothing(tmp_path: Path) -> None:
    """No sysfs, no devices, no error."""
    devices = ScsiDevices(tmp_path)
    devices.rescan()
    assert devices.find(WANTED, devices.addresses()) == []
    assert devices.product_uuid() is None
