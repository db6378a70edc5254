"""The disk in a VHD or VHDX file as libvhdi sees it: a FUSE mount by vhdimount."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.needs import needs


class VhdiDisk:
    """What libvhdi 20210425 gets wrong, its users here leave out: in a *fixed* VHDX it takes the
    table entries of sector bitmaps for blocks, so all is off by one from the second chunk on; and a
    block that is absent in two files of a chain in a row reads as zeros."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self.size_bytes = os.fstat(self._fd).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def vhdi_disk(image: Path) -> Iterator[VhdiDisk]:
    """Yield the disk; parents are looked for next to the image.

    libvhdi does not replay logs: not for files that have one.
    """
    needs("vhdimount", "fusermount")
    with tempfile.TemporaryDirectory(prefix="vhdi-") as name:
        folder = Path(name)
        subprocess.run(
            ["vhdimount", image, folder], check=True, timeout=60, stdout=subprocess.DEVNULL
        )
        try:
            # vhdi1 is the root of the chain, the highest number the image itself.
            newest = max(folder.iterdir(), key=lambda each: int(each.name.removeprefix("vhdi")))
            disk = VhdiDisk(newest)
            try:
                yield disk
            finally:
                disk.close()
        finally:
            subprocess.run(["fusermount", "-u", "-z", folder], check=True, timeout=60)
