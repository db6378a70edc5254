"""The vddk transport under the conformance suites; nbdkit's file plugin stands in for VDDK's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.sources.vddk_transport import VddkTransport
from tests.contract.block_reader import BlockReaderSuite, MakeReader
from tests.contract.transport import OpenDisk, TransportSuite
from tests.support.disk_as_block_reader import DiskAsBlockReader
from tests.support.needs import needs
from tests.support.vsphere_disk import disk_info, disk_request
from vmware.errors import TransportError
from vmware.transports.contract import DiskReader, DiskRequest
from vmware.transports.nbdkit_process import NbdkitProcess
from vmware.transports.vddk import NbdEndpoint, Vddk


class _Files(Vddk):
    """Serves a local file of the name that the disk has."""

    def __init__(self) -> None:
        super().__init__(None, lambda: "secret")

    def start(self, request: DiskRequest) -> NbdEndpoint:
        path = request.disk.file_name
        return NbdkitProcess("nbdkit", lambda secret: ["file", path], secret="secret")


def opened(path: Path, content: bytes, capacity_bytes: int | None = None) -> DiskReader:
    path.write_bytes(content)
    disk = disk_info(capacity_bytes or len(content), file_name=str(path))
    return VddkTransport(_Files()).open(disk_request(None, disk))


@pytest.fixture
def open_files(tmp_path: Path) -> OpenDisk:
    needs("nbdkit")
    numbers = itertools.count()

    def open_disk(content: bytes, planned: Sequence[tuple[int, int]] | None = None) -> DiskReader:
        return opened(tmp_path / f"disk{next(numbers)}", content)

    return open_disk


class TestVddk(TransportSuite):
    @pytest.fixture
    def open_disk(self, open_files: OpenDisk) -> OpenDisk:
        return open_files


class TestVddkAsBlockReader(BlockReaderSuite):
    @pytest.fixture
    def make(self, open_files: OpenDisk) -> MakeReader:
        return lambda content: DiskAsBlockReader(open_files(content))


def test_a_disk_of_another_size_is_refused(tmp_path: Path) -> None:
    """What VDDK shows must be the disk that the snapshot describes."""
    needs("nbdkit")
    with pytest.raises(TransportError, match="1024 bytes"):
        opened(tmp_path / "disk", bytes(1024), capacity_bytes=2048)
