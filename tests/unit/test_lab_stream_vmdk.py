"""The lab's streamOptimized VMDKs: what QEMU makes of them, and what the lab makes of QEMU's."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.esx.sparse_extent import GRAIN_BYTES, SECTOR_BYTES, BadStreamError
from lab.esx.stream_vmdk_reader import ReceivedDisk, receive_vmdk
from lab.esx.stream_vmdk_writer import StreamDefect, descriptor_text, stream_vmdk
from tests.support.needs import needs

MIB = 1 << 20
UUID = "6000C295-0f12-3456-789a-bcdef0123456"


@dataclass(frozen=True)
class Content:
    """A disk in memory; the extents are what a test says."""

    data: bytes
    extents: tuple[tuple[int, int], ...] | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        assert offset + length <= len(self.data)
        return self.data[offset : offset + length]

    def allocated(self) -> list[tuple[int, int]]:
        return list(self.extents) if self.extents is not None else [(0, len(self.data))]


def write(content: Content, defect: StreamDefect | None = None) -> bytes:
    descriptor = descriptor_text(
        size_bytes=content.size_bytes, content_id=0x12345678, uuid=UUID, hardware_version=19
    )
    return b"".join(stream_vmdk(content, descriptor, defect))


def receive(stream: bytes) -> tuple[ReceivedDisk, bytes]:
    disk = bytearray()

    def write_at(offset: int, data: bytes) -> None:
        disk[offset : offset + len(data)] = data

    received = receive_vmdk(
        io.BytesIO(stream).read, lambda size: disk.extend(bytes(size)), write_at
    )
    return received, bytes(disk)


def sparse_disk(size_bytes: int, seed: int) -> bytes:
    """A disk with data here and there, a long hole, and data in its last sector."""
    rng = random.Random(seed)
    disk = bytearray(size_bytes)
    for _ in range(12):
        offset = rng.randrange(0, size_bytes // 3)
        piece = rng.choice((os.urandom(5000), b"text " * 20000))[: size_bytes - offset]
        disk[offset : offset + len(piece)] = piece
    disk[-SECTOR_BYTES:] = os.urandom(SECTOR_BYTES)
    return bytes(disk)


DISKS = {
    "three tables, one of them empty": sparse_disk(96 * MIB + 5 * SECTOR_BYTES, 1),
    "smaller than a grain": os.urandom(3 * SECTOR_BYTES),
    "full": os.urandom(33 * MIB),
    "empty": bytes(MIB),
}


@pytest.mark.parametrize("name", DISKS)
def test_what_is_written_is_received_again(name: str) -> None:
    """Same bytes; the sizes are told."""
    disk = DISKS[name]
    stream = write(Content(disk))
    received, copy = receive(stream)
    assert copy == disk
    assert (received.capacity_bytes, received.stream_bytes) == (len(disk), len(stream))
    assert received.populated_bytes <= -(-len(disk) // GRAIN_BYTES) * GRAIN_BYTES
    assert f"RW {len(disk) // SECTOR_BYTES} SPARSE" in received.descriptor


@pytest.mark.parametrize("name", DISKS)
def test_qemu_reads_what_is_written(name: str, tmp_path: Path) -> None:
    """qemu-img finds no error and the same content."""
    needs("qemu-img")
    disk, raw, vmdk = DISKS[name], tmp_path / "a.raw", tmp_path / "a.vmdk"
    raw.write_bytes(disk)
    vmdk.write_bytes(write(Content(disk)))
    subprocess.run(["qemu-img", "check", "-f", "vmdk", vmdk], check=True, capture_output=True)
    compare = ["qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, vmdk]
    subprocess.run(compare, check=True, capture_output=True)
    info = ["qemu-img", "info", "-f", "vmdk", "--output=json", vmdk]
    said = json.loads(subprocess.run(info, check=True, capture_output=True).stdout)
    assert said["virtual-size"] == len(disk)


@pytest.mark.parametrize("name", DISKS)
def test_what_qemu_writes_is_received(name: str, tmp_path: Path) -> None:
    """An OVA's disk comes from qemu-img as often as from a host."""
    needs("qemu-img")
    disk, raw, vmdk = DISKS[name], tmp_path / "a.raw", tmp_path / "a.vmdk"
    raw.write_bytes(disk)
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*convert, raw, vmdk], check=True, capture_output=True)
    assert receive(vmdk.read_bytes())[1] == disk


def test_holes_are_not_read() -> None:
    """What the extents leave out is not in the stream, overlapping grains come once."""
    disk = os.urandom(4 * GRAIN_BYTES)
    extents = ((10, 20), (GRAIN_BYTES - 5, 10), (GRAIN_BYTES + 100, 7))
    _, copy = receive(write(Content(disk, extents)))
    assert copy == disk[: 2 * GRAIN_BYTES] + bytes(2 * GRAIN_BYTES)


@pytest.mark.parametrize("defect", StreamDefect)
def test_a_stream_broken_on_purpose_is_refused(defect: StreamDefect) -> None:
    """Each defect is one the reader notices."""
    with pytest.raises(BadStreamError):
        receive(write(Content(os.urandom(MIB)), defect))


def test_a_stream_that_ends_early_is_refused() -> None:
    """Wherever it is cut."""
    stream = write(Content(DISKS["three tables, one of them empty"]))
    for length in [*range(0, len(stream), len(stream) // 31), len(stream) - 1, len(stream) - 512]:
        with pytest.raises(BadStreamError):
            receive(stream[:length])


def test_damage_to_the_structure_is_refused() -> None:
    """A flipped byte in header, markers, tables, directory or footer does not pass."""
    stream = write(Content(os.urandom(2 * GRAIN_BYTES)))
    tail = len(stream) - (5 + 2 + 2 + 1) * SECTOR_BYTES  # table, directory, footer, end
    front = [0, 4, 10, 12, 20, 28, 44, 56, 64, 73, 77, 128 * 512, 128 * 512 + 8]
    back = [sector * SECTOR_BYTES for sector in range(10)]
    back += [12, 7 * SECTOR_BYTES + 12, 8 * SECTOR_BYTES + 12, 8 * SECTOR_BYTES + 56]
    for place in [*front, *(tail + offset for offset in back)]:
        damaged = bytearray(stream)
        damaged[place] ^= 0x55
        with pytest.raises(BadStreamError):
            receive(bytes(damaged))
    with pytest.raises(BadStreamError, match="follow"):
        receive(stream + bytes(512))


def test_a_grain_that_would_unpack_to_gigabytes_is_bounded() -> None:
    """Size and unpacked length are limited before memory is spent."""
    stream = bytearray(write(Content(b"\1" * GRAIN_BYTES)))
    stream[128 * 512 + 8 : 128 * 512 + 12] = (0xFFFFFFF0).to_bytes(4, "little")
    with pytest.raises(BadStreamError, match="bytes"):
        receive(bytes(stream))
