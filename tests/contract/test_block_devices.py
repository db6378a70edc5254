"""Every BlockReader and BlockDevice of the product and of the test support, against one suite."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from appliance.base.units import KIB
from appliance.blocks.composed_device import ComposedDevice, Piece
from appliance.blocks.extents import Extent
from appliance.blocks.free_room import FreeRoom, RoomKeepingDevice
from appliance.blocks.layers import PrefetchReader, RecordingReader
from appliance.blocks.overlay import Overlay
from appliance.blocks.overlay_map import Geometry
from appliance.blocks.read_ahead import ReadAheadReader
from appliance.blocks.write_through import WriteThroughDevice
from appliance.blocks.zero_reader import ZeroReader
from tests.contract.block_device import BlockDeviceSuite
from tests.contract.block_reader import BlockReaderSuite, MakeReader, sample_content
from tests.support.memory_device import MemoryDevice
from tests.support.raw_file_reader import RawFileReader
from tests.support.sparse_device import SparseDevice

SMALL = Geometry(block_bytes=4 * KIB, segment_blocks=16)


def write_sparse(path: Path, content: bytes) -> Path:
    with open(path, "wb") as file:
        file.truncate(len(content))
        for start in range(0, len(content), 4 * KIB):
            block = content[start : start + 4 * KIB]
            if any(block):
                file.seek(start)
                file.write(block)
    return path


class TestMemoryDevice(BlockDeviceSuite):
    @pytest.fixture
    def make(self) -> MakeReader:
        return MemoryDevice


class TestSparseDevice(BlockDeviceSuite):
    @pytest.fixture
    def make(self) -> MakeReader:
        return lambda content: SparseDevice(len(content), content=content)


class TestRawFileReader(BlockReaderSuite):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        return lambda content: RawFileReader(write_sparse(tmp_path / "disk.raw", content))


class TestRecordingReader(BlockReaderSuite):
    @pytest.fixture
    def make(self) -> MakeReader:
        return lambda content: RecordingReader(MemoryDevice(content))


class TestPrefetchReader(BlockReaderSuite):
    @pytest.fixture
    def make(self) -> MakeReader:
        return lambda content: PrefetchReader(MemoryDevice(content), [Extent(0, len(content))])


class TestReadAheadReader(BlockReaderSuite):
    @pytest.fixture
    def make(self) -> MakeReader:
        return lambda content: ReadAheadReader(MemoryDevice(content))


class TestRoomKeepingDevice(BlockDeviceSuite):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        return lambda content: RoomKeepingDevice(MemoryDevice(content), FreeRoom(tmp_path, 1))


class TestComposedDevice(BlockDeviceSuite):
    """Of three ranges of two devices, neither in their order nor from their first byte."""

    @pytest.fixture
    def make(self) -> MakeReader:
        def composed(content: bytes) -> ComposedDevice:
            first, second = 300 * KIB + 512, 700 * KIB
            one = MemoryDevice(b"x" * 100 + content[second:] + content[:first])
            two = MemoryDevice(content[first:second])
            tail = len(content) - second
            return ComposedDevice(
                [
                    Piece(offset=0, length=first, device=one, device_offset=100 + tail),
                    Piece(offset=first, length=second - first, device=two, device_offset=0),
                    Piece(offset=second, length=tail, device=one, device_offset=100),
                ]
            )

        return composed


class TestOverlayOfNothing(BlockDeviceSuite):
    """An overlay that holds everything itself."""

    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        def written(content: bytes) -> Overlay:
            overlay = Overlay.create(tmp_path / "session", ZeroReader(len(content)), {}, SMALL)
            for start in range(0, len(content), 4 * KIB):
                block = content[start : start + 4 * KIB]
                if any(block):
                    overlay.write_at(start, block)
            return overlay

        return written


class TestOverlayUntouched(BlockDeviceSuite):
    """Everything comes from the base until somebody writes."""

    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        return lambda content: Overlay.create(tmp_path / "session", MemoryDevice(content), {})


class TestWriteThrough(BlockDeviceSuite):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        return lambda content: WriteThroughDevice(
            Overlay.create(tmp_path / "session", MemoryDevice(content), {})
        )


class TestOverlayOverRawFile(BlockDeviceSuite):
    """Reads and extents are handed down to a base with holes that is never at hand at once."""

    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        def make(content: bytes) -> Overlay:
            base = RawFileReader(write_sparse(tmp_path / "disk.raw", content))
            return Overlay.create(tmp_path / "session", base, {}, SMALL)

        return make


class TestOverlayMixed(BlockDeviceSuite):
    """Blocks of base, data and zeros in turns, over many small segments."""

    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        numbers = itertools.count()

        def make(content: bytes) -> Overlay:
            base = bytearray(sample_content(len(content), seed=2))
            overlay_parts = []
            for number, start in enumerate(range(0, len(content), 3 * KIB)):
                part = content[start : start + 3 * KIB]
                if number % 3 == 0:
                    base[start : start + len(part)] = part
                else:
                    overlay_parts.append((start, part))
            folder = tmp_path / f"session-{next(numbers)}"
            overlay = Overlay.create(folder, MemoryDevice(bytes(base)), {}, SMALL)
            for start, part in overlay_parts:
                if any(part):
                    overlay.write_at(start, part)
                else:
                    overlay.zero_at(start, len(part))
            return overlay

        return make
