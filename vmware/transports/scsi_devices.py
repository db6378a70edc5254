"""The guest's view of a disk that was hot-added: found by address, proven by size and identity.

Reading the wrong device would put another VM's data into a backup, so all of this must hold:

1. the SCSI target is the unit on the virtual controller. VMware's bus number is not Linux's host
   number (KB 67757), so the host is not compared;
2. it was not there before the attach;
3. its size is the disk's, to the byte;
4. its world-wide name is the disk's uuid. A guest without `disk.EnableUUID` shows none; then its
   controller must be proven by its PCI slot instead;
5. no other device fits. Two attached disks may share a uuid (clones of each other): the PCI slot of
   the controller decides between them, where it is known.

Everything is below `root`, which is `/` in an appliance; `/sys` and `/dev` may be mounted
elsewhere. Names read from sysfs are checked before they become part of a path. Blocks on the file
system only.

Source: Linux Documentation/ABI, sysfs-class-scsi_host, sysfs-block; Broadcom KB 67757.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_ADDRESS = re.compile(r"(\d{1,5}):0:(\d{1,5}):0")
_NAME = re.compile(r"[a-z][a-z0-9]{1,31}")
_SECTOR_BYTES = 512
_TEXT_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedDevice:
    unit_number: int
    size_bytes: int
    uuid: str | None  # backing.uuid
    pci_slot: int | None  # of its controller; None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDevice:
    name: str  # sdX
    address: str  # H:C:T:L
    path: Path  # of the node to open


class ScsiDevices:
    """The SCSI disks below one root. Thread-safe: it keeps nothing."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        return self._root

    def addresses(self) -> frozenset[str]:
        """The SCSI addresses that exist now: to be taken before an attach."""
        return frozenset(_names(self._sys("class/scsi_device")))

    def rescan(self) -> None:
        """Ask every SCSI host to look for new targets; those that cannot are left out."""
        for host in _names(self._sys("class/scsi_host")):
            with suppress(OSError):
                (self._sys("class/scsi_host") / host / "scan").write_text("- - -\n")

    def find(self, wanted: WantedDevice, before: frozenset[str]) -> list[GuestDevice]:
        """Every device that fits in all respects; the caller wants exactly one."""
        named: list[GuestDevice] = []
        located: list[GuestDevice] = []
        hosts = self._hosts_at(wanted.pci_slot)
        for device in self._new(wanted, before):
            wwn = self._wwn(device.name)
            here = int(device.address.partition(":")[0]) in hosts
            if wwn is not None and wanted.uuid is not None and wwn == plain_uuid(wanted.uuid):
                (located if here else named).append(device)
            elif wwn is None and here:
                located.append(device)
        return located or named

    def _new(self, wanted: WantedDevice, before: frozenset[str]) -> Iterator[GuestDevice]:
        """Devices that came since, with the right target and size, and a node to open."""
        for address in sorted(self.addresses() - before):
            match = _ADDRESS.fullmatch(address)
            if match is None or int(match[2]) != wanted.unit_number:
                continue
            for name in _names(self._sys("class/scsi_device") / address / "device/block"):
                path = self._root / "dev" / name
                if (
                    _NAME.fullmatch(name)
                    and self._size_bytes(name) == wanted.size_bytes
                    and path.exists()
                ):
                    yield GuestDevice(name=name, address=address, path=path)

    def forget(self, device: GuestDevice) -> None:
        """Tell the kernel to let go of the device, before the VM loses it."""
        with suppress(OSError):
            (self._sys("block") / device.name / "device/delete").write_text("1\n")

    def product_uuid(self) -> str | None:
        """The SMBIOS uuid of this machine as the firmware shows it; needs root."""
        return _text(self._sys("class/dmi/id/product_uuid"))

    def _sys(self, path: str) -> Path:
        return self._root / "sys" / path

    def _size_bytes(self, name: str) -> int | None:
        text = _text(self._sys("block") / name / "size")
        return int(text) * _SECTOR_BYTES if text and text.isdigit() else None

    def _wwn(self, name: str) -> str | None:
        """The device's NAA identifier as 32 hex digits; None when it shows none."""
        text = _text(self._sys("block") / name / "device/wwid")
        if text and text.startswith("naa."):
            return text.removeprefix("naa.").lower()
        folder = self._root / "dev/disk/by-id"
        for link in _names(folder):
            if link.startswith("wwn-0x") and "-part" not in link:
                with suppress(OSError):
                    if (folder / link).readlink().name == name:
                        return link.removeprefix("wwn-0x").lower()
        return None

    def _hosts_at(self, pci_slot: int | None) -> set[int]:
        """The Linux SCSI hosts of the controller in a PCI slot; empty when that is not known."""
        if pci_slot is None:
            return set()
        address = _text(self._sys("bus/pci/slots") / str(pci_slot) / "address")
        if not address or not re.fullmatch(r"[0-9a-f:.]{1,20}", address):
            return set()
        hosts = set()
        for host in _names(self._sys("class/scsi_host")):
            with suppress(OSError):
                place = (self._sys("class/scsi_host") / host).resolve()
                if any(part.split(".")[0] == address.split(".")[0] for part in place.parts):
                    hosts.add(int(host.removeprefix("host")))
        return hosts


def plain_uuid(uuid: str) -> str:
    """A backing's uuid as 32 hex digits in lower case, as it stands in a world-wide name."""
    return "".join(c for c in uuid.lower() if c in "0123456789abcdef")


def _names(folder: Path) -> list[str]:
    with suppress(OSError):
        return sorted(entry.name for entry in folder.iterdir())
    return []


def _text(path: Path) -> str | None:
    with suppress(OSError), path.open("rb") as file:
        return file.read(_TEXT_LIMIT_BYTES).decode(errors="replace").strip()
    return None
