"""Raw files as a source: bytes, holes, and files that change under the reader."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.base.errors import OutOfRangeError
from appliance.base.units import GIB, MIB, TIB
from appliance.blocks.extents import ExtentKind
from appliance.sources.errors import NotADiskError, SourceShrankError
from appliance.sources.image import open_disk_image
from appliance.sources.raw_image import RawImageReader


def sparse_file(path: Path, size_bytes: int, pieces: dict[int, bytes]) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)


def test_any_range_reads_as_the_bytes_of_the_file(tmp_path: Path) -> None:
    """Sizes and offsets need no alignment; several threads may read at once."""
    data = random.Random(1).randbytes(3 * MIB + 17)
    (tmp_path / "disk").write_bytes(data)
    with open_disk_image(tmp_path / "disk") as disk, ThreadPoolExecutor(4) as pool:
        assert disk.size_bytes == len(data)
        ranges = [(at, min(70_001, len(data) - at)) for at in range(0, len(data), 70_001)]
        for (at, length), got in zip(
            ranges, pool.map(lambda r: disk.read_at(*r), ranges), strict=True
        ):
            assert got == data[at : at + length]
        at_once = disk.try_read_at(5, 100)
        assert at_once is None or bytes(at_once) == data[5:105]
        with pytest.raises(OutOfRangeError):
            disk.read_at(len(data) - 1, 2)


def test_the_map_covers_the_file_and_its_holes_read_as_zeros(tmp_path: Path) -> None:
    """The extents are contiguous, and every byte of data lies in a DATA extent."""
    pieces = {0: b"a" * 4096, 10 * MIB: b"b" * 100, 20 * MIB - 4096: b"c" * 4096}
    sparse_file(tmp_path / "disk", 24 * MIB + 5, pieces)
    with RawImageReader(tmp_path / "disk") as disk:
        position, zero_bytes = 0, 0
        while position < disk.size_bytes:
            for mapped in disk.map_extents(position, disk.size_bytes - position):
                assert mapped.offset == position
                position = mapped.end
                if mapped.kind is ExtentKind.ZERO:
                    zero_bytes += mapped.length
                    assert not any(disk.read_at(mapped.offset, mapped.length))
        assert zero_bytes > 20 * MIB
        inside = disk.map_extents(MIB + 1, 100)
        assert [(m.offset, m.length, m.kind) for m in inside] == [(MIB + 1, 100, ExtentKind.ZERO)]


def test_a_sparse_file_of_62_tib_is_mapped_by_its_extents(tmp_path: Path) -> None:
    """Holes cost nothing: as many extents come back as there are, not as there are segments."""
    size_bytes = 62 * TIB
    try:
        sparse_file(tmp_path / "disk", size_bytes, {7 * GIB: b"x", 15 * TIB: b"y"})
    except OSError:  # ext4 holds 16 TiB
        size_bytes = 15 * TIB + GIB
        sparse_file(tmp_path / "disk", size_bytes, {7 * GIB: b"x", 15 * TIB: b"y"})
    with RawImageReader(tmp_path / "disk") as disk:
        mapped = disk.map_extents(0, size_bytes)
        assert [m.kind for m in mapped] == [ExtentKind.ZERO, ExtentKind.DATA] * 2 + [
            ExtentKind.ZERO
        ]
        assert mapped[-1].end == size_bytes
        assert disk.read_at(15 * TIB, 2) == b"y\0"


def test_a_file_that_shrinks_is_an_error_not_zeros(tmp_path: Path) -> None:
    """Bytes that vanished are neither read nor mapped as a hole."""
    sparse_file(tmp_path / "disk", 4 * MIB, {0: b"x" * 4096})
    with RawImageReader(tmp_path / "disk") as disk:
        os.truncate(tmp_path / "disk", MIB)
        with pytest.raises(SourceShrankError):
            disk.read_at(MIB - 10, 20)
        with pytest.raises(SourceShrankError):
            disk.map_extents(2 * MIB, MIB)


def test_what_is_not_a_disk_is_refused(tmp_path: Path) -> None:
    """Folders, pipes, character devices and missing files: a typed error at once, no hanging."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "missing"):
        with pytest.raises(NotADiskError):
            open_disk_image(path)


def test_an_empty_file_is_an_empty_disk(tmp_path: Path) -> None:
    """Nothing to read, nothing to map."""
    (tmp_path / "disk").touch()
    with open_disk_image(tmp_path / "disk") as disk:
        assert (disk.size_bytes, disk.read_at(0, 0), disk.map_extents(0, 0)) == (0, b"", [])
