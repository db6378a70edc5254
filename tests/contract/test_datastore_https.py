"""The datastore HTTPS transport under both conformance suites, on each of its routes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from appliance.base.units import KIB
from tests.contract.block_reader import BlockReaderSuite, MakeReader
from tests.contract.transport import OpenDisk, TransportSuite
from tests.support.datastore_server import DatastoreServer
from tests.support.disk_as_block_reader import DiskAsBlockReader
from vmware.transports.contract import DiskReader
from vmware.transports.datastore_https import DatastoreHttpsTransport, Tuning

# Shrunk so that a few MiB cross every boundary.
SMALL = Tuning(
    piece_bytes=128 * KIB,
    ticket_piece_bytes=256 * KIB,
    window_bytes=512 * KIB,
    gap_bytes=8 * KIB,
    ticket_gap_bytes=16 * KIB,
    small_bytes=4 * KIB,
)


def _opener(server: DatastoreServer) -> OpenDisk:
    transport = DatastoreHttpsTransport(SMALL)

    def open_disk(content: bytes, planned: Sequence[tuple[int, int]] | None = None) -> DiskReader:
        server.show(content)
        plan = None if planned is None else tuple(planned)
        request = server.request(len(content), planned=plan)
        assert transport.refusal(request) is None
        return transport.open(request)

    return open_disk


@pytest.fixture(params=["vcenter", "host with tickets", "host by itself"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatastoreServer]:
    server = DatastoreServer(tmp_path, is_vcenter=request.param != "host by itself")
    if request.param == "vcenter":  # which does not say where its host is
        del server.session.properties["host-1"]
    yield server
    server.http.close()


class TestDatastoreHttps(TransportSuite):
    @pytest.fixture
    def open_disk(self, server: DatastoreServer) -> OpenDisk:
        return _opener(server)


class TestDatastoreHttpsAsBlockReader(BlockReaderSuite):
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[DatastoreServer]:
        server = DatastoreServer(tmp_path, is_vcenter=False)
        yield server
        server.http.close()

    @pytest.fixture
    def make(self, server: DatastoreServer) -> MakeReader:
        return lambda content: DiskAsBlockReader(_opener(server)(content, ()))
