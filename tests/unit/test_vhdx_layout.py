"""The VHDX of a disk that is somewhere else, and new dynamic files, seen by our own reader."""

from __future__ import annotations

import random
import uuid
from pathlib import Path

import pytest

from hyperv.vhdx.errors import DiskFileError, OutOfDiskError, UnsupportedDiskFileError
from hyperv.vhdx.layout import FixedVhdxLayout, Part
from hyperv.vhdx.reader import ExtentKind, open_disk_file
from hyperv.vhdx.shape import VhdxShape
from hyperv.vhdx.source import LocalFile
from hyperv.vhdx.writer import DynamicVhdxWriter, FileSink
from tests.support.memory_source import MemorySource

MIB, TIB = 1 << 20, 1 << 40
DISK_ID, DATA_ID, FILE_ID = (uuid.UUID(int=number) for number in (1, 2, 3))


def shape(disk_bytes: int, sector_bytes: int = 512, block_bytes: int = 32 * MIB) -> VhdxShape:
    return VhdxShape(
        disk_bytes=disk_bytes, disk_id=DISK_ID, data_write_id=DATA_ID, file_write_id=FILE_ID,
        logical_sector_bytes=sector_bytes, block_bytes=block_bytes,
    )  # fmt: skip


class LayoutSource:
    """The file of a layout over a disk in which every MiB is filled with a byte of its number."""

    def __init__(self, layout: FixedVhdxLayout) -> None:
        self._layout = layout
        self.size_bytes = layout.file_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        length = min(length, self.size_bytes - offset)
        made = b""
        for piece in self._layout.pieces(offset, length):
            assert piece.offset == offset + len(made)
            if piece.part is Part.HEAD:
                made += self._layout.head(piece.offset, piece.length)
            elif piece.part is Part.PADDING:
                made += bytes(piece.length)
            else:
                made += b"".join(
                    bytes([(at >> 20) % 251])
                    for at in range(piece.disk_offset, piece.disk_offset + piece.length)
                )
        return made


@pytest.mark.parametrize(
    ("disk_bytes", "sector_bytes"),
    [
        (MIB, 512),
        (33 * MIB + 4096, 4096),
        (127 << 30, 512),
        (2 * TIB, 4096),
        (62 * TIB, 512),
        (64 * TIB, 4096),
    ],
)
def test_a_layout_reads_as_its_disk(disk_bytes: int, sector_bytes: int) -> None:
    """Our reader finds every byte of the disk where the layout puts it, at any size."""
    layout = FixedVhdxLayout(shape(disk_bytes, sector_bytes))
    disk = open_disk_file(LayoutSource(layout))
    assert disk.size_bytes == disk_bytes
    facts = disk.facts
    assert (facts.disk_id, facts.content_id) == (DISK_ID, DATA_ID)
    assert (facts.logical_sector_bytes, facts.physical_sector_bytes) == (sector_bytes, 4096)
    rng = random.Random(disk_bytes)
    for at in (0, disk_bytes - 2, *(rng.randrange(disk_bytes - 2) for _ in range(20))):
        assert disk.read_at(at, 2) == bytes([(at >> 20) % 251, (at + 1 >> 20) % 251])
    assert layout.payload_offset % MIB == 0


def test_any_part_of_the_head_is_what_the_whole_has_there() -> None:
    """Cut anywhere, aligned or not; what is outside `head_extents` is zeros."""
    layout = FixedVhdxLayout(shape(5 << 30))
    whole = layout.head(0, layout.payload_offset)
    rng = random.Random(3)
    for _ in range(200):
        at = rng.choice([rng.randrange(len(whole)), 3 * MIB + rng.randrange(2000)])
        length = min(rng.randrange(70_000), len(whole) - at)
        assert layout.head(at, length) == whole[at : at + length]
    rest = bytearray(whole)
    for offset, length in layout.head_extents():
        rest[offset : offset + length] = bytes(length)
    assert not any(rest)
    with pytest.raises(OutOfDiskError):
        layout.head(len(whole) - 1, 2)
    with pytest.raises(OutOfDiskError):
        list(layout.pieces(layout.file_bytes, 1))


def test_equal_shapes_make_equal_bytes() -> None:
    """A host that opens the same recovery point again sees the same file."""
    one, other = (FixedVhdxLayout(shape(MIB)) for _ in range(2))
    assert one.head(0, one.payload_offset) == other.head(0, other.payload_offset)


@pytest.mark.parametrize(
    ("disk_bytes", "sector_bytes", "block_bytes"),
    [
        (0, 512, 32 * MIB),
        (65 * TIB, 512, 32 * MIB),
        (MIB + 512, 4096, 32 * MIB),
        (MIB, 1024, 32 * MIB),
        (MIB, 512, 3 * MIB),
        (MIB, 512, 512 * MIB),
    ],
)
def test_a_disk_that_no_vhdx_can_hold_is_refused(
    disk_bytes: int, sector_bytes: int, block_bytes: int
) -> None:
    """Size, sectors and blocks of the format are checked before a byte is made."""
    with pytest.raises(UnsupportedDiskFileError):
        shape(disk_bytes, sector_bytes, block_bytes)


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_a_dynamic_file_holds_what_was_written_and_no_more(
    tmp_path: Path, sector_bytes: int
) -> None:
    """Random writes in any order read back; blocks never written take no space."""
    size = 20 * MIB + 3 * 4096
    rng = random.Random(9)
    expected = bytearray(size)
    with (tmp_path / "new.vhdx").open("wb", buffering=0) as new:
        writer = DynamicVhdxWriter(FileSink(new.fileno()), shape(size, sector_bytes, MIB))
        for _ in range(30):
            at = rng.choice([rng.randrange(4 * MIB), 9 * MIB, size - 100_000])
            data = rng.randbytes(rng.randrange(100_000))
            writer.write_at(at, data)
            expected[at : at + len(data)] = data
        writer.write_at(12 * MIB, bytes(3 * MIB))  # zeros where nothing is
        writer.write_at(1000, bytes(5000))  # zeros over what is there
        expected[1000:6000] = bytes(5000)
        with pytest.raises(OutOfDiskError):
            writer.write_at(size - 1, b"xx")
        writer.finish()
    with LocalFile(tmp_path / "new.vhdx") as file:
        disk = open_disk_file(file)
        assert disk.read_at(0, size) == expected
        kinds = [(extent.length, extent.kind) for extent in disk.map_extents(12 * MIB, 3 * MIB)]
        assert kinds == [(3 * MIB, ExtentKind.ZERO)]
        assert file.size_bytes == writer.file_bytes <= 4 * MIB + 9 * MIB


class CutSink:
    """Remembers every write and flush, to show what a crash between two of them leaves."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, bytes] | None] = []

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self.steps.append((offset, bytes(data)))

    def set_size(self, size_bytes: int) -> None:
        self.steps.append((size_bytes, b""))

    def flush(self) -> None:
        self.steps.append(None)


def test_a_file_cut_off_at_any_write_is_no_vhdx() -> None:
    """Whichever writes since the last flush a crash loses, it is refused or complete."""
    sink = CutSink()
    writer = DynamicVhdxWriter(sink, shape(3 * MIB, block_bytes=MIB))
    writer.write_at(0, b"a" * MIB)
    writer.write_at(2 * MIB, b"b" * MIB)
    writer.finish()
    flushes = [number for number, step in enumerate(sink.steps) if step is None]
    assert flushes[-1] == len(sink.steps) - 1
    for cut in range(len(sink.steps) + 1):
        durable = max([number for number in flushes if number < cut], default=0)
        for lost in [set[int](), *({number} for number in range(durable, cut))]:
            file = bytearray()
            for number, step in enumerate(sink.steps[:cut]):
                if step is None or number in lost:
                    continue
                offset, data = step
                file.extend(bytes(max(0, offset + len(data) - len(file))))
                file[offset : offset + len(data)] = data
            try:
                disk = open_disk_file(MemorySource(bytes(file)))
            except DiskFileError:
                assert cut < len(sink.steps)
                continue
            assert disk.read_at(0, 3 * MIB) == b"a" * MIB + bytes(MIB) + b"b" * MIB
