"""Disks in VHDX and VHD files keep the BlockReader contract, through the adapter of the product."""

from __future__ import annotations

import itertools
import uuid
from pathlib import Path

import pytest

from appliance.base.units import KIB, MIB
from appliance.sources.hyperv_image import HypervImageReader
from hyperv.vhdx.shape import VhdxShape
from hyperv.vhdx.writer import DynamicVhdxWriter, FileSink
from tests.contract.block_reader import BlockReaderSuite, MakeReader, sample_content
from tests.support.vhd_files import fixed_vhd
from tests.support.vhdx_chains import write_chain


class TestDynamicVhdx(BlockReaderSuite):
    """Written by ourselves; the last block ends behind the disk."""

    @pytest.fixture
    def content(self) -> bytes:
        return sample_content(2 * MIB) + bytes(3 * MIB) + sample_content(5 * KIB + 512, seed=2)

    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        numbers = itertools.count()

        def make_reader(content: bytes) -> HypervImageReader:
            path = tmp_path / f"{next(numbers)}.vhdx"
            ids = {name: uuid.uuid4() for name in ("disk_id", "data_write_id", "file_write_id")}
            shape = VhdxShape(disk_bytes=len(content), block_bytes=MIB, **ids)
            with path.open("wb", buffering=0) as new:
                writer = DynamicVhdxWriter(FileSink(new.fileno()), shape)
                writer.write_at(0, content)
                writer.finish()
            return HypervImageReader(path, allow_external=False)

        return make_reader


class TestDifferencingVhdx(BlockReaderSuite):
    """Every sector in the child or in the parent, at random."""

    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        numbers = itertools.count()

        def make_reader(content: bytes) -> HypervImageReader:
            folder = tmp_path / str(next(numbers))
            folder.mkdir()
            return HypervImageReader(write_chain(folder, content), allow_external=True)

        return make_reader


class TestFixedVhd(BlockReaderSuite):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        numbers = itertools.count()

        def make_reader(content: bytes) -> HypervImageReader:
            path = tmp_path / f"{next(numbers)}.vhd"
            path.write_bytes(fixed_vhd(content))
            return HypervImageReader(path, allow_external=False)

        return make_reader
