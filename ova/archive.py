"""The OVA: a tar of descriptor, manifest and disks, in the order that importers read.

The manifest has no space before its parenthesis: ESXi refuses the other form. Names, owners and
times are pinned. Source: DMTF DSP0243 1.1, section 5; design notes on vSphere, section 9.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

_READ_BYTES = 1 << 20


def write_ova(target: Path, name: str, descriptor: str, disks: Sequence[Path], epoch: int) -> None:
    """`disks` in the order of the descriptor's References, each named there as its file is."""
    raw = descriptor.encode()
    lines = [f"SHA256({name}.ovf)= {hashlib.sha256(raw).hexdigest()}"]
    lines += [f"SHA256({disk.name})= {file_digest(disk)}" for disk in disks]
    manifest = "".join(f"{line}\n" for line in lines).encode()
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as ova:
        for file_name, content in ((f"{name}.ovf", raw), (f"{name}.mf", manifest)):
            ova.addfile(_entry(file_name, len(content), epoch), io.BytesIO(content))
        for disk in disks:
            with disk.open("rb") as file:
                ova.addfile(_entry(disk.name, disk.stat().st_size, epoch), file)


def file_digest(path: Path) -> str:
    """SHA-256, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _entry(name: str, size_bytes: int, epoch: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size_bytes
    entry.mtime = epoch
    entry.mode = 0o644
    entry.uname = entry.gname = "root"
    return entry
