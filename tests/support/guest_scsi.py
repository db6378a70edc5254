"""A guest's /sys and /dev in a folder: disks come and go as a VM's devices do."""

from __future__ import annotations

import shutil
from pathlib import Path


class GuestScsi:
    """`root` is what `ScsiDevices` gets. SCSI host 2 is the controller in PCI slot 192."""

    def __init__(self, root: Path, *, product_uuid: str = "") -> None:
        self.root = root
        self.shows_wwn = True
        self.let_go: list[str] = []  # devices that the kernel was told to forget, then were lost
        for folder in ("sys/class/scsi_device", "sys/block", "dev/disk/by-id"):
            (root / folder).mkdir(parents=True)
        dmi = root / "sys/class/dmi/id"
        dmi.mkdir(parents=True)
        (dmi / "product_uuid").write_text(product_uuid + "\n")
        self.add_host(0, slot=None)
        self.add_host(2, slot=192)
        self._letters = iter("bcdefghijklmnopqrstuvwxyz")

    def add_host(self, number: int, *, slot: int | None) -> None:
        """A controller's SCSI host, and the PCI slot it is in."""
        place = self.root / f"sys/devices/pci0000:00/0000:{number:02x}:00.0/host{number}"
        place.mkdir(parents=True)
        (place / "scan").write_text("")
        classes = self.root / "sys/class/scsi_host"
        classes.mkdir(parents=True, exist_ok=True)
        (classes / f"host{number}").symlink_to(place)
        if slot is not None:
            slots = self.root / f"sys/bus/pci/slots/{slot}"
            slots.mkdir(parents=True)
            (slots / "address").write_text(f"0000:{number:02x}:00\n")

    def plug(
        self, content: bytes | Path, *, unit: int, uuid: str = "", host: int = 2, size: int = -1
    ) -> str:
        """A disk appears; returns its name. `size` in bytes, if it is to differ."""
        name = f"sd{next(self._letters)}"
        length = content.stat().st_size if isinstance(content, Path) else len(content)
        device = self.root / f"sys/class/scsi_device/{host}:0:{unit}:0/device"
        (device / "block" / name).mkdir(parents=True)
        block = self.root / "sys/block" / name
        block.mkdir()
        (block / "size").write_text(f"{(length if size < 0 else size) // 512}\n")
        (block / "device").symlink_to(device)
        (device / "delete").write_text("")
        if self.shows_wwn and uuid:
            plain = uuid.lower().replace("-", "").replace(" ", "")
            (device / "wwid").write_text(f"naa.{plain}\n")
        node = self.root / "dev" / name
        if isinstance(content, Path):
            node.symlink_to(content)
        else:
            node.write_bytes(content)
        return name

    def unplug(self, unit: int, host: int = 2) -> None:
        """The VM loses the disk."""
        address = self.root / f"sys/class/scsi_device/{host}:0:{unit}:0"
        told = (address / "device/delete").read_text().strip() == "1"
        for name in [entry.name for entry in (address / "device/block").iterdir()]:
            if told:
                self.let_go.append(name)
            shutil.rmtree(self.root / "sys/block" / name)
            (self.root / "dev" / name).unlink()
        shutil.rmtree(address)

    def rescans(self) -> int:
        """How many hosts have been asked to scan."""
        folder = self.root / "sys/class/scsi_host"
        return sum((host / "scan").read_text() == "- - -\n" for host in folder.iterdir())
