"""Files we make and files we read, judged by qemu and libvhdi."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv.vhdx.layout import METADATA_OFFSET, FixedVhdxLayout
from hyperv.vhdx.reader import open_disk_file
from hyperv.vhdx.shape import VhdxShape
from hyperv.vhdx.source import LocalFile
from hyperv.vhdx.structures import METADATA_TABLE_BYTES
from hyperv.vhdx.writer import DynamicVhdxWriter, FileSink
from tests.support.huge_files import huge_file_folder
from tests.support.layout_file import write_layout
from tests.support.needs import needs
from tests.support.vhdi_mount import vhdi_disk
from tests.support.vhdx_files import BAT_AT, PAGE, PARTIAL, PRESENT, MadeVhdx, with_log

pytestmark = pytest.mark.integration
MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
SIZES = [MIB, 127 * GIB, 2 * TIB, 62 * TIB]


def shape(disk_bytes: int, sector_bytes: int = 512) -> VhdxShape:
    return VhdxShape(
        disk_bytes=disk_bytes, disk_id=uuid.uuid4(), data_write_id=uuid.uuid4(),
        file_write_id=uuid.uuid4(), logical_sector_bytes=sector_bytes,
    )  # fmt: skip


def run(*command: str | Path) -> str:
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def probes(disk_bytes: int) -> dict[int, bytes]:
    """Random bytes at the ends, around borders of blocks and chunks, and anywhere."""
    rng = random.Random(disk_bytes)
    borders = [0, disk_bytes, 32 * MIB, 4 * GIB, 128 * 4 * GIB, disk_bytes // 2]
    borders += [rng.randrange(disk_bytes) // 4096 * 4096 for _ in range(10)]
    places = {}
    for border in sorted({border for border in borders if border <= disk_bytes}):
        start, end = max(0, border - 4096), min(disk_bytes, border + 4096)
        if not any(start < at + len(data) and at < end for at, data in places.items()):
            places[start] = rng.randbytes(end - start)
    return places


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where sparse files of any size may be."""
    with tempfile.TemporaryDirectory(dir=huge_file_folder(63 * TIB), prefix="vhdx-") as name:
        yield Path(name)


def check_probes(image: Path, places: dict[int, bytes], *, with_qemu: bool) -> None:
    """Every place, and what lies before and behind it, as each judge reads it."""
    with vhdi_disk(image) as seen:
        for at, data in places.items():
            assert seen.read_at(at, len(data)) == data
    if with_qemu:
        for at, data in places.items():
            copy = image.with_suffix(".part")  # "count" is counted from the start of the disk
            run("qemu-img", "dd", "-f", "vhdx", "-O", "raw", "bs=4096", f"skip={at // 4096}",
                f"count={(at + len(data)) // 4096}", f"if={image}", f"of={copy}")  # fmt: skip
            assert copy.read_bytes() == data
    with LocalFile(image) as source:
        disk_of_ours = open_disk_file(source)
        for at, data in places.items():
            assert disk_of_ours.read_at(at, len(data)) == data


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@pytest.mark.parametrize("disk_bytes", SIZES, ids=["1 MiB", "127 GiB", "2 TiB", "62 TiB"])
def test_the_synthesised_vhdx_passes_every_judge(
    folder: Path, disk_bytes: int, sector_bytes: int
) -> None:
    """qemu-img check (512-byte sectors: it knows no others), libvhdi, and the bytes."""
    needs("qemu-img", "vhdiinfo")
    image, places = folder / "disk.vhdx", probes(disk_bytes)
    write_layout(FixedVhdxLayout(shape(disk_bytes, sector_bytes)), image, places)
    if sector_bytes == 512:
        assert "No errors" in run("qemu-img", "check", "-f", "vhdx", image)
    told = run("vhdiinfo", image)
    assert "Fixed" in told
    assert f"({disk_bytes} bytes)" in told
    assert f"Bytes per sector\t: {sector_bytes} bytes" in told
    with image.open(
        "r+b"
    ) as file:  # libvhdi misreads fixed disks (see VhdiDisk): now it is dynamic
        file.seek(METADATA_OFFSET + METADATA_TABLE_BYTES + 4)
        file.write(bytes(4))
    assert "Dynamic" in run("vhdiinfo", image)
    check_probes(image, places, with_qemu=sector_bytes == 512)


def test_a_synthesised_vhdx_is_the_disk_byte_for_byte(tmp_path: Path) -> None:
    """qemu-img compare of the whole disk, with a size that fills no block."""
    needs("qemu-img")
    content = random.Random(1).randbytes(40 * MIB + 512)
    layout = FixedVhdxLayout(shape(len(content)))
    write_layout(layout, tmp_path / "disk.vhdx", {0: content})
    (tmp_path / "disk.raw").write_bytes(content)
    run("qemu-img", "compare", "-f", "vhdx", "-F", "raw",
        tmp_path / "disk.vhdx", tmp_path / "disk.raw")  # fmt: skip


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@pytest.mark.parametrize("disk_bytes", SIZES, ids=["1 MiB", "127 GiB", "2 TiB", "62 TiB"])
def test_a_dynamic_file_of_ours_passes_every_judge(
    folder: Path, disk_bytes: int, sector_bytes: int
) -> None:
    """Written in random order, some of it zeros; only blocks that were written are there."""
    needs("qemu-img", "vhdiinfo")
    image, places = folder / "disk.vhdx", probes(disk_bytes)
    order = list(places.items())
    random.Random(2).shuffle(order)
    with image.open("wb", buffering=0) as new:
        writer = DynamicVhdxWriter(FileSink(new.fileno()), shape(disk_bytes, sector_bytes))
        for at, data in order:
            writer.write_at(at, data)
        writer.finish()
    if sector_bytes == 512:
        assert "No errors" in run("qemu-img", "check", "-f", "vhdx", image)
    told = run("vhdiinfo", image)
    assert "Dynamic" in told
    assert f"({disk_bytes} bytes)" in told
    assert image.stat().st_size <= 40 * MIB + len(places) * 64 * MIB
    check_probes(image, places, with_qemu=sector_bytes == 512)


def sample(path: Path, size: int) -> bytes:
    content = bytearray(size)
    rng = random.Random(5)
    for at, length in ((0, 300_000), (17 * MIB + 512, 3 * MIB), (size - 70_000, 70_000)):
        content[at : at + length] = rng.randbytes(length)
    path.write_bytes(content)
    return bytes(content)


IMAGES = {
    "vhdx dynamic": ("vhdx", "subformat=dynamic", 48 * MIB),
    "vhdx fixed": ("vhdx", "subformat=fixed", 45 * MIB + 512),
    "vhdx blocks of 1 MiB": ("vhdx", "subformat=dynamic,block_size=1M", 48 * MIB),
    "vhdx blocks of 64 MiB": ("vhdx", "subformat=dynamic,block_size=64M", 70 * MIB),
    "vhd dynamic": ("vpc", "subformat=dynamic,force_size=on", 48 * MIB),
    "vhd fixed": ("vpc", "subformat=fixed,force_size=on", 45 * MIB + 512),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_qemu_read_as_their_disk(tmp_path: Path, name: str) -> None:
    """Ours, qemu's and libvhdi's reading are the same bytes."""
    needs("qemu-img")
    driver, options, size = IMAGES[name]
    content = sample(tmp_path / "raw", size)
    run("qemu-img", "convert", "-f", "raw", "-O", driver, "-o", options,
        tmp_path / "raw", tmp_path / "image")  # fmt: skip
    with LocalFile(tmp_path / "image") as source:
        disk = open_disk_file(source)
        assert disk.size_bytes == size
        assert disk.read_at(0, size) == content
        if "fixed" not in name and "64" not in name:
            zero = sum(e.length for e in disk.map_extents(0, size) if e.kind.value == "zero")
            assert zero >= 16 * MIB
    with vhdi_disk(tmp_path / "image") as seen:
        assert seen.read_at(0, seen.size_bytes) == content


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@pytest.mark.parametrize("seed", range(3))
def test_a_child_reads_as_libvhdi_reads_it(tmp_path: Path, seed: int, sector_bytes: int) -> None:
    """With partial blocks; qemu reads neither parents nor 4Kn."""
    needs("vhdimount")
    rng = random.Random(seed)
    chain: list[MadeVhdx] = []
    for level in range(2):
        made = MadeVhdx(
            disk_bytes=6 * MIB, sector_bytes=sector_bytes,
            parent=chain[-1] if chain else None, parent_path=f".\\{level - 1}.vhdx",
        )  # fmt: skip
        for block in range(6):
            state = rng.choice([0, PRESENT, *([PARTIAL] if level else [])])
            made.blocks[block] = (state, rng.randbytes(MIB)) if state else 0
            if state == PARTIAL:
                made.bits[block] = [rng.randrange(2) for _ in range(MIB // sector_bytes)]
        made.write(tmp_path / f"{level}.vhdx")
        chain.append(made)
    with vhdi_disk(tmp_path / "1.vhdx") as seen:
        expected = seen.read_at(0, seen.size_bytes)
    with LocalFile(tmp_path / "1.vhdx") as child, LocalFile(tmp_path / "0.vhdx") as parent:
        disk = open_disk_file(child, lambda reference: {"0.vhdx": parent}[reference.file_name])
        assert disk.read_at(0, disk.size_bytes) == expected


@pytest.mark.parametrize("at", [0, 5 * PAGE], ids=["from the start", "from the middle"])
def test_a_dirty_log_reads_as_qemu_repairs_it(tmp_path: Path, at: int) -> None:
    """What qemu writes into a copy when it replays the log is what we read from the original.

    (Where a log goes round its end, qemu 7.2 takes the part at the start for all of it.)
    """
    needs("qemu-img")
    content = random.Random(7).randbytes(3 * MIB)
    blocks = {n: (PRESENT, content[n * MIB : (n + 1) * MIB]) for n in (2, 0, 1)}
    file = MadeVhdx(disk_bytes=3 * MIB, blocks=dict(blocks)).build()
    table = file[BAT_AT : BAT_AT + PAGE]
    block = file.index(content[:PAGE])
    stale = file[:BAT_AT] + bytes(PAGE) + file[BAT_AT + PAGE :]
    dirty = with_log(
        stale, [[(block, b"\x5a" * PAGE)], [(BAT_AT, table), (block + 2 * PAGE, 3 * PAGE)]], at=at
    )
    (tmp_path / "dirty.vhdx").write_bytes(dirty)
    shutil.copy(tmp_path / "dirty.vhdx", tmp_path / "repaired.vhdx")
    run("qemu-img", "check", "-r", "all", "-f", "vhdx", tmp_path / "repaired.vhdx")
    run("qemu-img", "convert", "-f", "vhdx", "-O", "raw",
        tmp_path / "repaired.vhdx", tmp_path / "raw")  # fmt: skip
    expected = (tmp_path / "raw").read_bytes()
    assert expected[PAGE : 2 * PAGE] == content[PAGE : 2 * PAGE]
    assert expected[:PAGE] == b"\x5a" * PAGE

    for name in ("dirty.vhdx", "repaired.vhdx"):
        with LocalFile(tmp_path / name) as source:
            assert open_disk_file(source).read_at(0, 3 * MIB) == expected
    assert (tmp_path / "dirty.vhdx").read_bytes() == dirty
