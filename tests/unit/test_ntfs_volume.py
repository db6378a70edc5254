"""Reading where a file lies in an NTFS volume, on volumes that mkntfs made and on damaged ones."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from hyperv.ntfs.errors import NtfsError
from hyperv.ntfs.file_record import FileRecord, Run, decode_runs
from hyperv.ntfs.volume import NtfsVolume
from tests.support.memory_device import MemoryDevice
from tests.support.needs import needs

MIB = 1 << 20
SIZE = 24 * MIB


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """24 MiB with two files: `plain` of 5 MiB allocated, and `words`, short enough for a record."""
    needs("mkntfs", "ntfscp", "ntfsfallocate")
    folder: Path = tmp_path_factory.mktemp("ntfs")
    path, words = folder / "volume", folder / "words"
    with path.open("wb") as file:
        file.truncate(SIZE)
    words.write_bytes(b"short")
    for command in (
        ["mkntfs", "-q", "-Q", "-F", "-c", "4096", "-p", "2048", "-H", "255", "-S", "63", path],
        ["ntfscp", "-q", "-f", path, "/dev/null", "plain"],
        ["ntfsfallocate", "-f", "-l", str(5 * MIB), path, "plain"],
        ["ntfscp", "-q", "-f", path, words, "words"],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    return path.read_bytes()


def test_a_settled_file_shows_what_lies_in_its_extents(image: bytes, tmp_path: Path) -> None:
    """Bytes written to the extents are those of the file, and ntfs-3g finds nothing wrong."""
    needs("ntfscat", "ntfsfix")
    device = MemoryDevice(image)
    volume = NtfsVolume(device)
    file = volume.find("plain")
    assert file.size_bytes == file.allocated_bytes == 5 * MIB
    volume.settle(file)
    content = random.Random(5).randbytes(5 * MIB)
    for extent in file.extents:
        part = content[extent.file_offset : extent.file_offset + extent.length]
        device.write_at(extent.volume_offset, part)
    path = tmp_path / "volume"
    path.write_bytes(device.read_at(0, SIZE))
    shown = subprocess.run(
        ["ntfscat", "-f", path, "plain"], check=True, capture_output=True, timeout=60
    ).stdout
    assert shown == content
    subprocess.run(["ntfsfix", "-n", path], check=True, capture_output=True, timeout=60)
    listed = subprocess.run(
        ["ntfsinfo", "-f", "-F", "plain", path], check=True, capture_output=True, timeout=60
    ).stdout
    assert listed.count(str(5 * MIB).encode()) >= 4  # in the name and in the data, twice each


@pytest.mark.parametrize("name", ["words", "Plain", "missing", "$MFT"])
def test_a_file_that_cannot_be_mapped_is_refused(image: bytes, name: str) -> None:
    """One that lies in its record, or is not there by exactly this name in the root folder."""
    with pytest.raises(NtfsError):
        NtfsVolume(MemoryDevice(image)).find(name)


def test_what_is_no_ntfs_volume_is_refused() -> None:
    """Zeros, and a boot sector whose numbers cannot be."""
    with pytest.raises(NtfsError):
        NtfsVolume(MemoryDevice(bytes(4096)))


def test_a_damaged_volume_ends_in_a_named_error_or_the_same_answer(image: bytes) -> None:
    """Whatever bytes of boot sector and records are changed: no hang, no other exception."""
    rng = random.Random(11)
    sound = NtfsVolume(MemoryDevice(image)).find("plain")
    (table,) = struct.unpack_from("<Q", image, 0x30)
    changed_at = [0, table * 4096, table * 4096 + sound.number * 1024]
    refused = 0
    for _ in range(400):
        damaged = bytearray(image)
        at = rng.choice(changed_at)
        for _ in range(rng.randrange(1, 6)):
            damaged[at + rng.randrange(600)] = rng.randrange(256)
        try:
            NtfsVolume(_Bounded(bytes(damaged))).find("plain")
        except NtfsError:
            refused += 1
    assert refused


class _Bounded:
    """Reads past the end as a file does: short."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read_at(self, offset: int, length: int) -> bytes:
        assert length <= 1 << 20
        return self._content[offset : offset + length]

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        raise AssertionError("nothing is written")


def test_runs_are_deltas_and_signed() -> None:
    """The example of the NTFS documentation: the second run lies before the first."""
    raw = bytes.fromhex("21 18 34 56 11 10 f0 00")
    assert decode_runs(raw) == [
        Run(first_in_file=0, first_in_volume=0x5634, clusters=0x18),
        Run(first_in_file=0x18, first_in_volume=0x5624, clusters=0x10),
    ]


@pytest.mark.parametrize("text", ["01 18", "21 18 34", "11 10 f0 00", "21 00 34 56 00", "91"])
def test_runs_that_cannot_be_are_refused(text: str) -> None:
    """Holes, runs that are cut off, before the volume, empty, or of impossible numbers."""
    with pytest.raises(NtfsError):
        decode_runs(bytes.fromhex(text))


def test_a_record_survives_reading_and_writing(image: bytes) -> None:
    """Guard words are taken out and put back."""
    (table,) = struct.unpack_from("<Q", image, 0x30)
    raw = image[table * 4096 : table * 4096 + 1024]
    assert FileRecord(raw).encoded() == raw
    torn = bytearray(raw)
    torn[1022] ^= 1
    with pytest.raises(NtfsError, match="torn"):
        FileRecord(bytes(torn))
