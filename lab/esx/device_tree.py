"""The appliance's /sys and /dev below a folder of the lab: SCSI hosts, disks, and what they do.

The layout is Linux's, as far as a program looks that finds a hot-added disk: `class/scsi_host`
(links that lead through the controller's PCI address), `class/scsi_device/H:0:U:0`, `block/sdX`,
`/dev/sdX` and `/dev/disk/by-id`. Linux's host numbers differ from VMware's bus numbers, on purpose.
`scan` and `device/delete` are pipes that a thread listens on: a delete takes the device away until
a rescan finds it again, as in a kernel.

Thread model: any thread; one lock. `close` joins the thread and removes the folder.
Source: Linux Documentation/ABI sysfs-class-scsi_host and sysfs-block; Broadcom KB 67757.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import threading
import uuid as uuids
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.esx.hardware import Controller

FIRST_HOST = 2  # after the two channels of the IDE controller
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedDisk:
    """`uuid` empty: the guest shows no identity (disk.EnableUUID is off)."""

    bus: int
    unit: int
    size_bytes: int
    uuid: str
    node: Path

    @property
    def address(self) -> str:
        return f"{FIRST_HOST + self.bus}:0:{self.unit}:0"


class DeviceTree:
    """`root` is made; it stands for `/`."""

    def __init__(self, root: Path, bios_uuid: str) -> None:
        self.root = root
        self._lock = threading.RLock()
        self._attached: dict[str, AttachedDisk] = {}
        self._names: dict[str, str] = {}  # of what the kernel knows, by address
        self._pipes: dict[int, Path] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._closed = False
        for folder in (
            "sys/class/scsi_device",
            "sys/class/scsi_host",
            "sys/block",
            "dev/disk/by-id",
        ):
            self._path(folder).mkdir(parents=True)
        self._write("sys/class/dmi/id/product_uuid", swapped_uuid(bios_uuid))
        self._thread = threading.Thread(target=self._listen, name="lab-sysfs", daemon=True)
        self._thread.start()

    def add_controller(self, controller: Controller) -> None:
        """Idempotent."""
        number = FIRST_HOST + controller.bus_number
        link = self._path(f"sys/class/scsi_host/host{number}")
        with self._lock:
            if link.is_symlink():
                return
            address = f"0000:{3 + controller.bus_number:02x}:00"
            host = f"sys/devices/pci0000:00/{address}.0/host{number}/scsi_host/host{number}"
            self._path(host).mkdir(parents=True)
            link.symlink_to(os.path.relpath(self._path(host), link.parent))
            self._pipe(f"{host}/scan")
            self._write(f"{host}/proc_name", "vmw_pvscsi")
            self._write(f"sys/bus/pci/slots/{controller.pci_slot}/address", address)

    def attach(self, disk: AttachedDisk) -> None:
        with self._lock:
            self._attached[disk.address] = disk
            self._appear(disk)

    def detach(self, bus: int, unit: int) -> None:
        """Idempotent; also for a device that was deleted before."""
        address = f"{FIRST_HOST + bus}:0:{unit}:0"
        with self._lock:
            self._attached.pop(address, None)
            self._vanish(address)

    def rescan(self) -> None:
        with self._lock:
            for disk in self._attached.values():
                self._appear(disk)

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        os.write(self._wake_write, b"x")
        self._thread.join()
        for fd in [*self._pipes, self._wake_read, self._wake_write]:
            os.close(fd)
        self._selector.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def _appear(self, disk: AttachedDisk) -> None:
        if disk.address in self._names:
            return
        name = next(name for name in _disk_names() if name not in self._names.values())
        self._names[disk.address] = name
        device = f"sys/class/scsi_device/{disk.address}/device"
        self._write(f"{device}/vendor", "VMware")
        self._write(f"{device}/model", "Virtual disk")
        if disk.uuid:
            self._write(f"{device}/wwid", f"naa.{uuids.UUID(disk.uuid).hex}")
        self._path(f"{device}/block/{name}").mkdir(parents=True)
        self._pipe(f"{device}/delete")
        self._write(f"sys/block/{name}/size", str(disk.size_bytes // 512))
        self._write(f"sys/block/{name}/ro", "0")
        self._link(f"sys/block/{name}/device", self._path(device))
        self._path(f"dev/{name}").symlink_to(disk.node)
        for link in self._identities(disk):
            self._path("dev/disk/by-id", link).symlink_to(f"../../{name}")

    def _vanish(self, address: str) -> None:
        name = self._names.pop(address, None)
        if name is None:
            return
        for link in self._path("dev/disk/by-id").iterdir():
            if link.readlink().name == name:
                link.unlink()
        self._path(f"dev/{name}").unlink()
        shutil.rmtree(self._path(f"sys/block/{name}"))
        folder = self._path(f"sys/class/scsi_device/{address}")
        for fd, pipe in list(self._pipes.items()):
            if folder in pipe.parents:
                self._selector.unregister(fd)
                os.close(fd)
                del self._pipes[fd]
        shutil.rmtree(folder)

    def _identities(self, disk: AttachedDisk) -> list[str]:
        """Two disks of one uuid have one link: the first one's."""
        if not disk.uuid:
            return []
        digits = uuids.UUID(disk.uuid).hex
        names = [f"wwn-0x{digits}", f"scsi-3{digits}"]
        return [name for name in names if not self._path("dev/disk/by-id", name).is_symlink()]

    def _listen(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select():
                if key.fd != self._wake_read:
                    self._heard(key.fd)

    def _heard(self, fd: int) -> None:
        with self._lock:
            pipe = self._pipes.get(fd)
            if pipe is None:
                return
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
            if pipe.name == "scan":
                self.rescan()
            else:
                self._vanish(pipe.parent.parent.name)

    def _pipe(self, path: str) -> None:
        place = self._path(path)
        os.mkfifo(place)
        fd = os.open(place, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._pipes[fd] = place
        self._selector.register(fd, selectors.EVENT_READ)

    def _write(self, path: str, text: str) -> None:
        place = self._path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text}\n")

    def _link(self, path: str, target: Path) -> None:
        place = self._path(path)
        place.symlink_to(os.path.relpath(target, place.parent))

    def _path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)


def swapped_uuid(uuid: str) -> str:
    """SMBIOS stores the first three fields in little-endian; Linux shows them so."""
    return str(uuids.UUID(bytes=uuids.UUID(uuid).bytes_le)).upper()


def _disk_names() -> Iterator[str]:
    """sdb, sdc, …, sdz, sdaa, …: the first is the appliance's own."""
    for first in ["", *_LETTERS]:
        for last in _LETTERS:
            if (name := f"sd{first}{last}") != "sda":
                yield name
