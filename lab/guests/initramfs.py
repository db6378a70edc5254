"""The initramfs of the lab guests: static busybox, a few kernel modules, one init script.

Written directly as a cpio archive, so that the same inputs give the same bytes.
Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

BUSYBOX = Path("/bin/busybox")  # Debian package busybox-static
# Controllers and NICs the sandbox and common hypervisors show; NVMe is built into the kernel.
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net"),
    *("ata_piix", "sd_mod", "vmw_pvscsi", "vmxnet3"),
    *("button", "evdev"),  # the ACPI power button
)
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def initramfs(
    kernel_root: Path, init: str, scripts: dict[str, str], modules: Iterable[str] = MODULES
) -> bytes:
    """Return the archive; `scripts` go to /bin, modules to /modules with their load order."""
    files = _with_dependencies(kernel_root, modules)
    folders = ("bin", "data", "dev", "modules", "proc", "root", "run", "sys")
    entries = [Entry(name=name, mode=stat.S_IFDIR | 0o755) for name in folders]
    entries += [
        Entry(name="dev/console", mode=stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry(name="bin/busybox", mode=stat.S_IFREG | 0o755, data=BUSYBOX.read_bytes()),
        Entry(name="bin/sh", mode=stat.S_IFLNK | 0o777, data=b"busybox"),
        Entry(name="init", mode=stat.S_IFREG | 0o755, data=init.encode()),
        _file("modules/order", "".join(f"{path.stem}\n" for path in files).encode()),
    ]
    entries += [_file(f"modules/{path.name}", path.read_bytes()) for path in files]
    entries += [
        Entry(name=f"bin/{name}", mode=stat.S_IFREG | 0o755, data=text.encode())
        for name, text in scripts.items()
    ]
    return _archive(entries)


def _file(name: str, data: bytes) -> Entry:
    return Entry(name=name, mode=stat.S_IFREG | 0o644, data=data)


def _with_dependencies(kernel_root: Path, names: Iterable[str]) -> list[Path]:
    """Return module files so that each stands behind what it depends on."""
    tree = kernel_root / "lib" / "modules"
    files = {path.stem.replace("-", "_"): path for path in sorted(tree.rglob("*.ko"))}
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in ordered:
            return
        path = files[name]
        match = _DEPENDS.search(path.read_bytes())
        for needed in filter(None, (match[1] if match else b"").decode().split(",")):
            add(needed.replace("-", "_"))
        ordered[name] = path

    for name in names:
        add(name)
    return list(ordered.values())


def _archive(entries: Iterable[Entry]) -> bytes:
    archive = bytearray()
    for inode, entry in enumerate([*entries, Entry(name="TRAILER!!!", mode=0)], start=1):
        name = entry.name.encode() + b"\0"
        fields = (
            *(inode, entry.mode, 0, 0, 1, 0, len(entry.data)),  # uid, gid, links, mtime
            *(0, 0, *entry.device, len(name), 0),
        )
        archive += b"070701" + b"".join(b"%08X" % value for value in fields) + name
        archive += bytes(-len(archive) % 4) + entry.data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
