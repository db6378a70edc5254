"""Images of every format and a block device, made by qemu-img, read as the disk they hold."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.base.errors import SourceError
from appliance.base.units import KIB, MIB
from appliance.blocks.extents import ExtentKind
from appliance.sources.errors import (
    ExternalFileError,
    ImageProgramError,
    SourceReadError,
    SourceShrankError,
)
from appliance.sources.image import DiskImage, open_disk_image
from appliance.sources.image_format import ImageFormat
from appliance.sources.qemu_nbd import QemuNbd
from tests.support.needs import needs
from tests.support.vhdx_files import PRESENT, MadeVhdx, with_log

pytestmark = pytest.mark.integration
SIZE = 48 * MIB


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A sparse disk, and its bytes."""
    source = random.Random(5)
    content = bytearray(SIZE)
    for offset, length in ((0, 300_000), (10 * MIB + 512, 3 * MIB), (SIZE - 70_000, 70_000)):
        content[offset : offset + length] = source.randbytes(length)
    path = tmp_path_factory.mktemp("disks") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for start in range(0, SIZE, 64 * KIB):
            piece = content[start : start + 64 * KIB]
            if any(piece):
                file.seek(start)
                file.write(piece)
    return path, bytes(content)


def check_reads(disk: DiskImage, content: bytes) -> None:
    assert disk.size_bytes == len(content)
    position = zero_bytes = 0
    while position < len(content):
        for mapped in disk.map_extents(position, len(content) - position):
            assert mapped.offset == position
            if mapped.kind is ExtentKind.ZERO:
                zero_bytes += mapped.length
                assert not any(content[position : mapped.end])
            position = mapped.end
    assert zero_bytes > 20 * MIB
    source = random.Random(6)
    ranges = [(0, len(content)), (len(content) - 1, 1), (7, 0)]
    for _ in range(30):
        offset = source.randrange(len(content))
        ranges.append((offset, source.randrange(min(5 * MIB, len(content) - offset))))
    with ThreadPoolExecutor(6) as pool:
        for (offset, length), got in zip(
            ranges, pool.map(lambda r: disk.read_at(*r), ranges), strict=True
        ):
            assert got == content[offset : offset + length]


FORMATS = {
    "qcow2": ("qcow2", ImageFormat.QCOW2, ()),
    "qcow2 zstd": ("qcow2", ImageFormat.QCOW2, ("-c", "-o", "compression_type=zstd")),
    "vmdk": ("vmdk", ImageFormat.VMDK, ()),
    "vmdk stream": ("vmdk", ImageFormat.VMDK, ("-o", "subformat=streamOptimized")),
    "vhdx": ("vhdx", ImageFormat.VHDX, ()),
    "vhd": ("vpc", ImageFormat.VHD, ("-o", "force_size=on")),
}


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_of_any_format_reads_as_its_disk(
    raw: tuple[Path, bytes], tmp_path: Path, name: str
) -> None:
    """Found by its header or named: size, bytes and holes are those of the disk."""
    needs("qemu-img", "qemu-nbd")
    driver, named, options = FORMATS[name]
    image = tmp_path / "image.raw"  # the name must not matter
    run("qemu-img", "convert", "-O", driver, *options, raw[0], image)
    for asked in (ImageFormat.AUTO, named):
        with open_disk_image(image, asked) as disk:
            check_reads(disk, raw[1])


def test_a_fixed_vhd_is_as_long_as_its_footer_says(tmp_path: Path) -> None:
    """The size is not rounded to the cylinder geometry, which would cut the end off."""
    needs("qemu-img", "qemu-nbd")
    image, content = tmp_path / "disk.vhd", random.Random(3).randbytes(5 * MIB)
    run("qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=on",
        image, str(len(content)))  # fmt: skip
    with image.open("r+b") as file:
        file.write(content)
        file.seek(len(content) + 28)
        file.write(b"vpc ")  # Virtual PC: qemu would go by the geometry
        file.seek(len(content))
        footer = bytearray(file.read(512))
        footer[64:68] = bytes(4)
        file.seek(len(content) + 64)
        file.write((~sum(footer) & 0xFFFF_FFFF).to_bytes(4, "big"))
    with open_disk_image(image) as disk:
        assert disk.size_bytes == len(content)
        assert disk.read_at(0, len(content)) == content


def test_external_files_are_opened_only_when_allowed(tmp_path: Path) -> None:
    """A backing file named in a header is refused, or read when the operator says so."""
    needs("qemu-img", "qemu-nbd")
    secret, image = tmp_path / "secret", tmp_path / "overlay.qcow2"
    secret.write_bytes(b"secret".ljust(MIB, b"!"))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", image)
    with pytest.raises(ExternalFileError):
        open_disk_image(image)
    with open_disk_image(image, allow_external=True) as disk:
        assert disk.read_at(0, 6) == b"secret"
    server = QemuNbd(image, ImageFormat.QCOW2)  # past the check of the header
    assert server.device.read_at(0, 6) == bytes(6)
    server.close()


def test_the_parent_of_a_vhdx_is_opened_only_when_allowed_and_only_beside_it(
    tmp_path: Path,
) -> None:
    """The path in the file chooses a name in the same folder, nothing else."""
    parent = MadeVhdx(disk_bytes=MIB, blocks={0: (PRESENT, b"secret" * 1000)})
    child = MadeVhdx(disk_bytes=MIB, parent=parent, parent_path="..\\elsewhere\\base.vhdx")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "disks").mkdir()
    image = child.write(tmp_path / "disks" / "child.vhdx")
    parent.write(tmp_path / "elsewhere" / "base.vhdx")
    with pytest.raises(ExternalFileError, match=r"base\.vhdx"):
        open_disk_image(image, allow_external=True)
    parent.write(tmp_path / "disks" / "base.vhdx")
    with pytest.raises(ExternalFileError, match=r"base\.vhdx"):
        open_disk_image(image)
    with open_disk_image(image, allow_external=True) as disk:
        assert disk.read_at(0, 6) == b"secret"


def test_a_vhdx_that_was_not_closed_is_read_with_its_log(tmp_path: Path) -> None:
    """What is only in the log is part of the disk; the file stays as it is."""
    file = MadeVhdx(disk_bytes=MIB, blocks={0: (PRESENT, b"old" * 1000)}).build()
    (tmp_path / "disk.vhdx").write_bytes(with_log(file, [[(len(file) - MIB, b"new!" * 1024)]]))
    before = (tmp_path / "disk.vhdx").read_bytes()
    with open_disk_image(tmp_path / "disk.vhdx") as disk:
        assert disk.read_at(0, 4) == b"new!"
    assert (tmp_path / "disk.vhdx").read_bytes() == before


def test_a_vhdx_cut_off_while_it_is_read_is_a_source_that_shrank(tmp_path: Path) -> None:
    """Not zeros, and not a damaged image."""
    image = MadeVhdx(disk_bytes=2 * MIB, blocks={0: (PRESENT, b"a"), 1: (PRESENT, b"b")})
    path = image.write(tmp_path / "disk.vhdx")
    with open_disk_image(path) as disk:
        os.truncate(path, path.stat().st_size - 4096)
        with pytest.raises(SourceShrankError, match=r"disk\.vhdx"):
            disk.read_at(0, 2 * MIB)


def test_a_damaged_image_is_an_error_with_the_words_of_qemu(
    raw: tuple[Path, bytes], tmp_path: Path
) -> None:
    """The message names the file and carries the reason."""
    needs("qemu-img", "qemu-nbd")
    image = tmp_path / "image.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", raw[0], image)
    with image.open("r+b") as file:
        file.seek(36)  # entries of the L1 table
        file.write(b"\x7f\xff\xff\xff")
    with pytest.raises(ImageProgramError, match=r"image\.qcow2.*L1"):
        open_disk_image(image)


def test_a_server_killed_while_it_is_read_is_a_source_error(
    raw: tuple[Path, bytes], tmp_path: Path
) -> None:
    """The run fails with a typed error instead of hanging or storing zeros."""
    needs("qemu-img", "qemu-nbd")
    image = tmp_path / "image.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", raw[0], image)
    with pytest.raises(SourceError), open_disk_image(image) as disk:
        os.kill(child_of(os.getpid()), signal.SIGKILL)
        with pytest.raises(SourceReadError, match=r"image\.qcow2"):
            disk.read_at(0, MIB)
        raise SourceReadError("as a run would")


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1])


def test_no_child_outlives_a_process_killed_hard(raw: tuple[Path, bytes], tmp_path: Path) -> None:
    """After kill -9 qemu-nbd goes by itself, because its last client is gone."""
    needs("qemu-img", "qemu-nbd")
    image = tmp_path / "image.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", raw[0], image)
    script = (
        "import sys, time; from pathlib import Path\n"
        "from appliance.sources.image import open_disk_image\n"
        "disk = open_disk_image(Path(sys.argv[1])); print('open', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, image],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    server = child_of(process.pid)
    assert not list(tmp_path.glob("holdfast-nbd-*"))
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while is_running(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(server)


def is_running(pid: int) -> bool:
    """A zombie that nobody has reaped yet does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def loop_device(path: Path) -> Iterator[Path]:
    needs("losetup")
    made = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True)
    if made.returncode:
        if os.environ.get("HOLDFAST_NO_SKIP"):
            pytest.fail(f"losetup: {made.stderr}")
        pytest.skip(f"no loop device here: {made.stderr}")
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def test_a_block_device_is_read_raw_whatever_its_first_bytes_say(tmp_path: Path) -> None:
    """A guest that writes a qcow2 header to its volume is backed up with that header in it."""
    content = b"QFI\xfb\0\0\0\3".ljust(4096, b"\0") + random.Random(8).randbytes(2 * MIB)
    content += bytes(-len(content) % 4096)
    (tmp_path / "volume").write_bytes(content)
    with loop_device(tmp_path / "volume") as device, open_disk_image(device) as disk:
        assert disk.size_bytes == len(content)
        assert disk.read_at(0, len(content)) == content
        assert [m.kind for m in disk.map_extents(0, len(content))] == [ExtentKind.DATA]
