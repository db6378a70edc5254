"""Restoring to the formats of other hypervisors, checked by qemu-img, and to a block device."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.base.errors import CancelledError, ExternalProgramError, UsageError
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.base.units import MIB
from appliance.jobs.restore import ImageFormat, restore_image
from appliance.jobs.restore_targets import (
    DeviceHalfWrittenError,
    OutputExistsError,
    OutputTooSmallError,
    QemuTarget,
    open_target,
)
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from tests.support.memory_reader import MemoryReader
from tests.support.needs import needs
from tests.support.points import commit_point

pytestmark = pytest.mark.integration
FORMATS = (ImageFormat.QCOW2, ImageFormat.VMDK, ImageFormat.VHDX)


@dataclass(frozen=True)
class Stored:
    repository: Repository
    manifest: Manifest
    raw: Path


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    folder = tmp_path_factory.mktemp("stored")
    source = random.Random(12)
    content = bytearray(40 * MIB + 5 * 512)
    for offset, length in ((0, 600_000), (9 * MIB + 512, 5 * MIB), (len(content) - 700, 700)):
        content[offset : offset + length] = source.randbytes(length)
    (folder / "disk.raw").write_bytes(content)
    Repository.create(folder / "r")
    with Repository.open(folder / "r") as repository:
        manifest = commit_point(repository, MemoryReader(content), MemoryReader(content[:1001]))
        yield Stored(repository, manifest, folder / "disk.raw")


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def qemu_img(*command: str | Path) -> str:
    needs("qemu-img", "qemu-nbd")
    done = subprocess.run(["qemu-img", *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_restored_image_is_sound_and_holds_the_disk(
    stored: Stored, tmp_path: Path, image_format: ImageFormat
) -> None:
    """`qemu-img check` and `compare` agree; it is sparse, and nothing lies beside it."""
    output = tmp_path / "a name: with signs"
    needs("qemu-img", "qemu-nbd")
    restore_image(stored.repository, stored.manifest, 0, output, format=image_format)
    assert names(tmp_path) == [output.name]
    info = json.loads(qemu_img("info", "--output=json", output))
    assert info["format"] == image_format
    assert info["virtual-size"] == stored.raw.stat().st_size
    qemu_img("check", "-q", "-f", image_format, output)
    qemu_img("compare", "-f", "raw", "-F", image_format, stored.raw, output)
    assert output.stat().st_blocks * 512 < (16 if image_format is ImageFormat.VHDX else 8) * MIB


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_size_between_sectors_is_rounded_up(
    stored: Stored, tmp_path: Path, image_format: ImageFormat
) -> None:
    """These formats count in sectors; the rest of the last one reads as zeros."""
    needs("qemu-img", "qemu-nbd")
    restore_image(stored.repository, stored.manifest, 1, tmp_path / "i", format=image_format)
    qemu_img("convert", "-f", image_format, "-O", "raw", tmp_path / "i", tmp_path / "raw")
    expected = stored.raw.read_bytes()[:1001]
    assert (tmp_path / "raw").read_bytes().rstrip(b"\0") == expected.rstrip(b"\0")


def test_an_image_is_overwritten_only_by_force(stored: Stored, tmp_path: Path) -> None:
    """As for raw files; a cancelled restore leaves the old file and no child process."""
    needs("qemu-img", "qemu-nbd")
    output, cancel = tmp_path / "disk.qcow2", CancelToken()
    output.write_bytes(b"old")
    with pytest.raises(OutputExistsError):
        restore_image(stored.repository, stored.manifest, 0, output, format=ImageFormat.QCOW2)
    cancel.cancel()
    with pytest.raises(CancelledError):
        restore_image(
            stored.repository, stored.manifest, 0, output, format=ImageFormat.QCOW2, force=True,
            context=RunContext(cancel, Progress()),
        )  # fmt: skip
    assert (names(tmp_path), output.read_bytes()) == (["disk.qcow2"], b"old")
    assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == ""
    restore_image(
        stored.repository, stored.manifest, 0, output, format=ImageFormat.QCOW2, force=True
    )
    qemu_img("compare", "-f", "raw", "-F", "qcow2", stored.raw, output)


def test_what_qemu_refuses_is_an_error_with_its_words(tmp_path: Path) -> None:
    """Nothing is left behind."""
    needs("qemu-img", "qemu-nbd")
    with pytest.raises(ExternalProgramError, match="too large"):
        QemuTarget(tmp_path / "disk", ImageFormat.QCOW2, 1 << 62, force=False, sync=False)
    assert names(tmp_path) == []


def test_a_disk_too_large_for_vhdx_is_refused(tmp_path: Path) -> None:
    """The format ends at 64 TiB; nothing is left behind."""
    with pytest.raises(UsageError, match="71468255805440 bytes"):
        open_target(tmp_path / "disk", ImageFormat.VHDX, 65 << 40, force=False, sync=False)
    assert names(tmp_path) == []


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A block device of 48 MiB full of old content."""
    needs("losetup")
    (tmp_path / "volume").write_bytes(b"\xee" * (48 * MIB))
    made = subprocess.run(
        ["losetup", "--find", "--show", tmp_path / "volume"], capture_output=True, text=True
    )
    if made.returncode:
        if os.environ.get("HOLDFAST_NO_SKIP"):
            pytest.fail(f"losetup: {made.stderr}")
        pytest.skip(f"no loop device here: {made.stderr}")
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_a_block_device_is_overwritten_only_by_force(stored: Stored, device: Path) -> None:
    """Holes of the disk are zeroed on it; what lies behind the disk's end stays."""
    with pytest.raises(OutputExistsError):
        restore_image(stored.repository, stored.manifest, 0, device)
    with pytest.raises(UsageError):
        restore_image(
            stored.repository, stored.manifest, 0, device, format=ImageFormat.QCOW2, force=True
        )
    assert device.read_bytes() == b"\xee" * (48 * MIB)
    restore_image(stored.repository, stored.manifest, 0, device, force=True)
    expected = stored.raw.read_bytes()
    content = device.read_bytes()
    assert content[: len(expected)] == expected
    assert content[len(expected) :] == b"\xee" * (48 * MIB - len(expected))


def test_a_device_that_is_too_small_is_not_touched(device: Path, tmp_path: Path) -> None:
    """The sizes are compared before anything is written."""
    Repository.create(tmp_path / "r")
    with Repository.open(tmp_path / "r") as repository:
        manifest = commit_point(repository, MemoryReader(b"x" * (48 * MIB + 512)))
        with pytest.raises(OutputTooSmallError):
            restore_image(repository, manifest, 0, device, force=True)
    assert device.read_bytes() == b"\xee" * (48 * MIB)


def test_a_cancelled_restore_to_a_device_says_what_it_leaves(stored: Stored, device: Path) -> None:
    """A device has no second place to write to, so the operator must know."""
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(DeviceHalfWrittenError) as failure:
        restore_image(
            stored.repository, stored.manifest, 0, device, force=True,
            context=RunContext(cancel, Progress()),
        )  # fmt: skip
    assert isinstance(failure.value.__cause__, CancelledError)
