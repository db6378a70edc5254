"""The sources of `backup image`, and the NBD device that restore writes, against the suites."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from appliance.blocks.device import BlockReader
from appliance.sources.image import open_disk_image
from appliance.sources.image_format import ImageFormat
from appliance.sources.qemu_nbd import QemuNbd
from tests.contract.block_device import BlockDeviceSuite
from tests.contract.block_reader import BlockReaderSuite, MakeReader
from tests.contract.test_block_devices import write_sparse
from tests.support.needs import needs


class TestRawImage(BlockReaderSuite):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        return lambda content: open_disk_image(write_sparse(tmp_path / "disk.raw", content))


@pytest.mark.integration
class TestQcow2Image(BlockReaderSuite):
    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        needs("qemu-img", "qemu-nbd")
        numbers = itertools.count()

        def make(content: bytes) -> BlockReader:
            raw, image = tmp_path / "disk.raw", tmp_path / f"{next(numbers)}.qcow2"
            command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]
            subprocess.run([*command, write_sparse(raw, content), image], check=True, timeout=30)
            return open_disk_image(image, ImageFormat.QCOW2)

        return make


@pytest.mark.integration
class TestNbdDevice(BlockDeviceSuite):
    @pytest.fixture
    def make(self, tmp_path: Path, request: pytest.FixtureRequest) -> MakeReader:
        needs("qemu-nbd")

        def make(content: bytes) -> BlockReader:
            path = write_sparse(tmp_path / "disk.raw", content)
            server = QemuNbd(path, ImageFormat.RAW, writable=True)
            request.addfinalizer(server.close)
            return server.device

        return make
