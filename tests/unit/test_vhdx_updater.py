"""A VHDX file written in place holds what was written, and is a valid file at every moment."""

from __future__ import annotations

import os
import random
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv.vhdx.errors import NotUpdatableError, OutOfDiskError
from hyperv.vhdx.header import read_header
from hyperv.vhdx.reader import open_disk_file
from hyperv.vhdx.shape import VhdxShape
from hyperv.vhdx.updater import VhdxUpdater
from hyperv.vhdx.writer import DynamicVhdxWriter, FileSink
from tests.support.needs import needs
from tests.support.vhdx_files import MadeVhdx

MIB = 1 << 20
DISK_BYTES = 21 * MIB + 512  # the last block is partial


class LocalFile(FileSink):
    """What the updater asks of a file; `writes` until it breaks."""

    def __init__(self, fd: int, writes: int | None = None) -> None:
        super().__init__(fd, sync=False)
        self.fd = fd
        self.writes = writes

    @property
    def size_bytes(self) -> int:
        return os.fstat(self.fd).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        if self.writes is not None:
            self.writes -= 1
            if self.writes < 0:
                raise OSError("the power went")
        super().write_at(offset, data)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[LocalFile]:
    fd = os.open(tmp_path / "disk.vhdx", os.O_RDWR | os.O_CREAT)
    yield LocalFile(fd)
    os.close(fd)


def made(file: LocalFile, content: dict[int, bytes]) -> bytearray:
    """A dynamic file with this content by offset; what the whole disk is."""
    shape = VhdxShape(
        disk_bytes=DISK_BYTES,
        disk_id=uuid.uuid4(),
        data_write_id=uuid.uuid4(),
        file_write_id=uuid.uuid4(),
        block_bytes=2 * MIB,
    )
    writer, disk = DynamicVhdxWriter(file, shape), bytearray(DISK_BYTES)
    for offset, data in content.items():
        writer.write_at(offset, data)
        disk[offset : offset + len(data)] = data
    writer.finish()
    return disk


def read(file: LocalFile) -> bytes:
    return open_disk_file(file).read_at(0, DISK_BYTES)


def test_what_is_written_is_read_and_qemu_finds_nothing_wrong(
    file: LocalFile, tmp_path: Path
) -> None:
    """In blocks that are there, in new ones, across their borders, to the last sector."""
    needs("qemu-img")
    noise = random.Random(4)
    disk = made(file, {0: noise.randbytes(3 * MIB), 9 * MIB: noise.randbytes(100)})
    updater = VhdxUpdater(file)
    for _ in range(60):
        offset = noise.randrange(DISK_BYTES)
        data = noise.randbytes(min(noise.randrange(1, 5 * MIB), DISK_BYTES - offset))
        if noise.random() < 0.3:
            updater.zero_at(offset, len(data))
            data = bytes(len(data))
        else:
            updater.write_at(offset, data)
        disk[offset : offset + len(data)] = data
    updater.finish()
    assert read(file) == disk
    subprocess.run(["qemu-img", "check", "-q", tmp_path / "disk.vhdx"], check=True)


def test_zeros_take_no_space_where_there_are_zeros(file: LocalFile) -> None:
    """And what writes nothing leaves the file as it is, to the byte."""
    made(file, {0: b"boot"})
    before = file.read_at(0, file.size_bytes)
    updater = VhdxUpdater(file)
    updater.zero_at(4 * MIB, 8 * MIB)
    updater.write_at(6 * MIB, bytes(MIB))
    updater.finish()
    assert file.read_at(0, file.size_bytes) == before


def test_a_file_that_was_written_to_is_another_one(file: LocalFile) -> None:
    """New write ids in both headers, so that no child and no tracking takes it for what it was."""
    made(file, {0: b"boot"})
    before = read_header(file)
    updater = VhdxUpdater(file)
    updater.write_at(0, b"root")
    updater.finish()
    after = read_header(file)
    assert after.data_write_id != before.data_write_id
    assert after.file_write_id != before.file_write_id
    assert after.sequence == before.sequence + 2 and after.place == before.place


@pytest.mark.parametrize("writes", range(8))
def test_it_can_break_anywhere(file: LocalFile, writes: int) -> None:
    """The file stays readable, and every byte is the old one or the new one."""
    old = bytes(made(file, {0: b"\x11" * MIB}))
    broken = LocalFile(file.fd, writes)
    updater = VhdxUpdater(broken)
    with pytest.raises(OSError, match="the power went"):  # 2 headers, 4 pieces, 2 entries
        for offset in (0, 512 << 10, 6 * MIB, 10 * MIB):
            updater.write_at(offset, b"\x22" * 4096)
        updater.finish()
    found = read(file)
    for offset in (0, 512 << 10, 6 * MIB, 10 * MIB):
        assert found[offset : offset + 4096] in (old[offset : offset + 4096], b"\x22" * 4096)
    again = VhdxUpdater(file)
    again.write_at(6 * MIB, b"\x33" * 4096)
    again.finish()
    assert read(file)[6 * MIB : 6 * MIB + 4096] == b"\x33" * 4096


def test_what_cannot_be_written_in_place_is_refused(file: LocalFile) -> None:
    """A child, and something else; and nothing outside the disk is written."""
    parent = MadeVhdx(disk_bytes=8 * MIB)
    file.write_at(0, MadeVhdx(disk_bytes=8 * MIB, parent=parent).build())
    with pytest.raises(NotUpdatableError, match="differencing"):
        VhdxUpdater(file)
    file.write_at(0, b"conectix")
    with pytest.raises(NotUpdatableError, match="no VHDX"):
        VhdxUpdater(file)
    os.ftruncate(file.fd, 0)
    made(file, {})
    with pytest.raises(OutOfDiskError):
        VhdxUpdater(file).write_at(DISK_BYTES - 1, b"ab")
