"""The raw system disk as VMDK for the OVA, qcow2 for KVM and VHDX for Hyper-V; holes stay holes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lab.guests.packages import run
from vmware.stream_optimized_writer import StreamOptimizedWriter

_READ_BYTES = 4 << 20
_TIMEOUT_S = 900


def write_vmdk(raw: Path, target: Path) -> None:
    """streamOptimized, compressed as well as zlib does: it is written once and sent often."""
    with raw.open("rb") as source, target.open("xb") as out:
        size_bytes = os.fstat(source.fileno()).st_size

        def sink(data: bytes) -> None:
            out.write(data)

        writer = StreamOptimizedWriter(sink, size_bytes, level=6)
        for start, end in _data(source.fileno(), size_bytes):
            for offset in range(start, end, _READ_BYTES):
                writer.write_at(
                    offset, os.pread(source.fileno(), min(_READ_BYTES, end - offset), offset)
                )
        writer.close()


def write_qcow2(raw: Path, target: Path) -> None:
    options = ["-c", "-o", "compression_type=zstd"]
    run(["qemu-img", "convert", "-O", "qcow2", *options, raw, target], timeout_s=_TIMEOUT_S)


def write_vhdx(raw: Path, target: Path) -> None:
    """qemu-img puts random identifiers in it: the one file that differs from build to build."""
    options = ["-o", "subformat=dynamic,block_size=1M"]
    run(["qemu-img", "convert", "-O", "vhdx", *options, raw, target], timeout_s=_TIMEOUT_S)


def _data(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    offset = 0
    while offset < size_bytes:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            return  # only a hole is left
        end = os.lseek(fd, offset, os.SEEK_HOLE)
        yield offset, end
        offset = end
