"""Reading what a dynamic VHDX holds, from the page cache, to nowhere.

The peer is `qemu-img convert` to its null driver. Ours reads data only, in pieces of 8 MiB, in one
thread; qemu 7.2 maps no holes in VHDX and reads those too, so the figure is seconds per disk.
"""

from __future__ import annotations

import time
from pathlib import Path

from appliance.base.units import MIB
from appliance.blocks.extents import ExtentKind
from appliance.sources.image import open_disk_image
from tests.perf import programs
from tests.perf.context import Bench, alternate
from tests.perf.table import Row

NAME = "disk-files"
PIECE_BYTES = 8 * MIB
DISK_BYTES = 2 << 30


def run(bench: Bench) -> list[Row]:
    programs.require("qemu-img")
    data_bytes = (256 if bench.quick else 1024) * MIB
    with bench.folder("disk-files") as folder:
        image = folder / "disk.vhdx"
        _make(bench, folder / "disk.raw", image, data_bytes)
        results = alternate(
            bench.rounds,
            {
                "holdfast": lambda _: {"seconds": _read(image, data_bytes)},
                "qemu-img convert": lambda _: {"seconds": _convert(image)},
            },
        )
    return [
        Row(
            section=NAME,
            measure=f"dynamic VHDX of 2 GiB with {data_bytes // MIB} MiB, read",
            unit="s",
            ours=results.value("holdfast", "seconds"),
            peer="qemu-img convert",
            theirs=results.value("qemu-img convert", "seconds"),
        )
    ]


def _make(bench: Bench, raw: Path, image: Path, data_bytes: int) -> None:
    """Random pieces, evenly over the disk, in blocks of 1 MiB."""
    random = bench.random(NAME)
    step = DISK_BYTES // (data_bytes // PIECE_BYTES)
    with raw.open("wb") as file:
        file.truncate(DISK_BYTES)
        for offset in range(0, DISK_BYTES, step):
            file.seek(offset)
            file.write(random.randbytes(PIECE_BYTES))
    programs.run(
        ["qemu-img", "convert", "-O", "vhdx", "-o", "subformat=dynamic,block_size=1M", raw, image]
    )
    raw.unlink()


def _read(image: Path, data_bytes: int) -> float:
    started = time.perf_counter()
    buffer = memoryview(bytearray(PIECE_BYTES))
    done = at = 0
    with open_disk_image(image) as disk:
        while at < disk.size_bytes:
            for extent in disk.map_extents(at, disk.size_bytes - at):
                at = extent.end
                if extent.kind is ExtentKind.ZERO:
                    continue
                for start in range(extent.offset, extent.end, PIECE_BYTES):
                    length = min(PIECE_BYTES, extent.end - start)
                    disk.read_into(start, buffer[:length])
                    done += length
    if done < data_bytes:
        raise programs.NotMeasuredError(f"{done} of {data_bytes} bytes were read")
    return time.perf_counter() - started


def _convert(image: Path) -> float:
    target = f"driver=null-co,size={DISK_BYTES}"
    return programs.run(
        ["qemu-img", "convert", "-n", "-f", "vhdx", "--target-image-opts", image, target]
    ).seconds
