"""What a Hyper-V host says of a disk file."""

from __future__ import annotations

from hyperv.script_types import DiskFile


def disk_file(path: str, *, disk_id: str = "", size_bytes: int = 1 << 20) -> DiskFile:
    return DiskFile(
        path=path,
        format="vhdx",
        type="dynamic",
        virtual_disk_id=disk_id,
        size_bytes=size_bytes,
        file_size_bytes=4096,
        logical_sector_bytes=512,
        physical_sector_bytes=4096,
        parent_path="",
        error="",
    )
